"""``jaxtrain info RUN_DIR``: what a run directory holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.run_dirs import saved_steps, user_of
from ..cli.summary import flat
from ..errors import ConfigError
from ..utils.files import read_json


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments of ``jaxtrain info`` and print the description of a run."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="e.g. checkpoints/copy_gru/0001-drtrl-seed0")
    print(describe_run(parser.parse_args(argv).run_dir.expanduser()))
    return 0


def describe_run(run_dir: Path) -> str:
    """Describe a run directory, one fact per line, from its JSON files and directory names.

    Raises ConfigError if it is not a run directory, RuntimeError if a file in it cannot be read.
    """
    if not (run_dir / "config.json").exists():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    config = read_json(run_dir / "config.json")
    result = read_json(run_dir / "result.json") if (run_dir / "result.json").exists() else {}
    user = user_of(run_dir)
    if user is not None:
        status = f"running, process {user}"
    elif result:
        status = f"{result.get('status')} at step {result.get('step')}"
    else:
        status = "stopped unexpectedly; continue with --resume last"
    options, fit = config.get("config"), config.get("fit")
    if isinstance(options, dict):  # the strategy and its fields have a section of their own
        options = {name: value for name, value in options.items() if name not in ("strategy", "strategy_fields")}
    if isinstance(fit, dict):
        fit = {name: value for name, value in fit.items() if value is not None}
    facts = {
        "run": str(run_dir),
        "status": status,
        "checkpoints": ", ".join(map(str, saved_steps(run_dir))) or "none",
        "seeds": ", ".join(map(str, result.get("seeds") or [])),
        "digest": result.get("digest"),
    }
    sections = {
        "strategy": config.get("strategy"),
        "config": options,
        "fit": fit,
        "data": config.get("data"),
        "parent": config.get("parent"),
        "best": result.get("best"),
        "train": result.get("train"),
        "val": result.get("val"),
        "last log entry": _last_entry(run_dir / "metrics.jsonl"),
    }
    lines = _columns({name: text for name, text in facts.items() if text})
    for title, values in sections.items():
        if values:
            lines += ["", title, *(f"  {line}" for line in _columns(_table(values)))]
    return "\n".join(lines)


def _table(values: Any) -> dict[str, str]:
    """Names and texts of a section. A damaged file may hold something other than a table."""
    return dict(flat(values if isinstance(values, dict) else {"damaged": values}))


def _columns(values: Mapping[str, str]) -> list[str]:
    width = max(map(len, values)) + 2
    return [f"{name:<{width}}{text}" for name, text in values.items()]


def _last_entry(path: Path) -> dict[str, Any]:
    """The newest complete line of metrics.jsonl. A crash may leave an incomplete one."""
    if not path.exists():
        return {}
    for line in reversed(path.read_text(errors="replace").splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            return entry
    return {}
