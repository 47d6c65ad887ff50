"""What the files of a run directory say about the run. Does not import JAX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.run_dirs import saved_steps, user_of
from ..errors import ConfigError
from ..utils.files import read_json

COPIED = ("reason", "digest", "saved", "seeds", "seconds", "steps_per_second", "train", "val", "test")
"""Keys of result.json that the facts hold unchanged."""


def facts(run_dir: Path) -> dict[str, Any]:
    """The facts of a run, under the keys that docs/command_line.md lists.

    Raises:
        ConfigError: It is not a run directory.
        RuntimeError: A file in it cannot be read.
    """
    if not (run_dir / "config.json").exists():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    config, process, log = read_json(run_dir / "config.json"), user_of(run_dir), log_entries(run_dir)
    result = read_json(run_dir / "result.json") if (run_dir / "result.json").exists() and process is None else {}
    ended = result.get("status") if result else "killed"
    for name, value in {"step": result.get("step", 0), "score": as_table(result.get("best")).get("score", 0)}.items():
        if not isinstance(value, int | float) and (name, value) != ("score", None):  # null: not finite
            raise RuntimeError(f"{run_dir / 'result.json'} is damaged: {name} is {value!r}, expected a number")
    fit, steps = as_table(config.get("fit")), saved_steps(run_dir)
    logged = [entry["step"] for entry in log if isinstance(entry.get("step"), int)]
    written = [run_dir / name for name in ("config.json", "metrics.jsonl", "result.json", "checkpoints")]
    return {
        "run": str(run_dir),
        "status": ended if process is None else "running",
        "process": process,
        "step": result.get("step", max([*logged, *steps], default=0)),
        "max_steps": config.get("steps", fit.get("max_steps")),
        "rule": as_table(config.get("strategy")).get("name"),
        "best": result.get("best") or _best(log, as_table(fit.get("checkpoint"))),
        **{name: result.get(name) for name in COPIED},
        "checkpoints": steps,
        "changed": max(path.stat().st_mtime for path in written if path.exists()),
        **{name: config.get(name) for name in ("strategy", "config", "fit", "data", "parent", "command", "versions")},
        "last_entry": log[-1] if log else None,
        "curves": _curves(log),
    }


def as_table(value: Any) -> Mapping[str, Any]:
    """The value if it is a table. A damaged file may hold something else."""
    return value if isinstance(value, dict) else {}


def log_entries(run_dir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl. A crash may leave an incomplete one."""
    entries, path = [], run_dir / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        entries += [entry] if isinstance(entry, dict) else []
    return entries


def _best(log: list[dict[str, Any]], checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best validation of a run without a result, by the monitor of its checkpoints."""
    tag, sign = str(checkpoint.get("monitor")), -1 if checkpoint.get("mode") == "max" else 1
    scores = [(sign * entry[tag], entry.get("step")) for entry in log if isinstance(entry.get(tag), int | float)]
    if not scores:
        return None
    score, step = min(scores, key=lambda score: score[0])
    return {"monitor": tag, "score": sign * score, "step": step}


def _curves(log: list[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """Step and value of the training and validation metrics that are single numbers; a nonfinite value is None."""
    curves: dict[str, list[list[Any]]] = {}
    for entry in log:
        for tag, value in entry.items():
            if tag.startswith(("train/", "val/")) and (value is None or isinstance(value, int | float)):
                curves.setdefault(tag, []).append([entry.get("step"), value])
    return curves
