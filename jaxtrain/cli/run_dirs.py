"""Run directories seen from outside: the numbered folders of a recipe, and what one of them holds."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..utils.files import read_json


def numbered(root: Path) -> list[tuple[int, Path]]:
    """The numbered folders under `root`, ascending."""
    found = root.iterdir() if root.is_dir() else ()
    # A fork has its parent's number and a longer name, so it comes after it.
    return sorted((int(m[1]), path) for path in found if (m := re.match(r"(\d+)(-|$)", path.name)) and path.is_dir())


def newest_run(root: Path) -> Path | None:
    """The run of the highest number under a recipe's folder; folders in which no run began do not count."""
    started = [path for _, path in numbered(root) if (path / "config.json").exists()]
    return started[-1] if started else None


def fresh_run(root: Path, label: str, *, create: bool = True) -> Path:
    """A numbered folder of its own for a new run, `root/0001-label`; two starts at once get two numbers.

    With `create=False` only the name that is free now. Raises OSError where the folder cannot be made.
    """

    def following() -> Path:
        return root / f"{max((number for number, _ in numbered(root)), default=0) + 1:04d}-{label}"

    if not create:
        return following()
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # labels may differ, so mkdir alone would not keep the numbers apart
        path = following()
        path.mkdir()
        return path
    finally:
        os.close(handle)


def drop_unused(run_dir: Path) -> None:
    """Remove a folder in which no run began; one that holds anything stays."""
    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {".lock"}:
        (run_dir / ".lock").unlink(missing_ok=True)
        run_dir.rmdir()


def saved_config(run_dir: Path) -> dict[str, Any] | None:
    """The recipe's configuration in a run's config.json; None where there is none. RuntimeError: cannot be read."""
    path = run_dir / "config.json"
    return read_json(path).get("config") if path.exists() else None


def saved_steps(run_dir: Path) -> list[int]:
    """Steps with a checkpoint on disk, ascending. A folder gets its plain number only when it is complete."""
    folder = run_dir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def user_of(run_dir: Path) -> str | None:
    """The process that is training in a run directory, or None."""
    try:
        with open(run_dir / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "unknown"
    except FileNotFoundError:
        pass
    return None


def describe_run(run_dir: Path) -> str:
    """What a run directory holds, in a few lines, from its JSON files and folder names alone.

    Raises ConfigError where it is no run directory, RuntimeError where a file in it cannot be read.
    """
    if not (run_dir / "config.json").exists():
        raise ConfigError(f"{run_dir} is no run directory: it has no config.json")
    config = read_json(run_dir / "config.json")
    result = read_json(run_dir / "result.json") if (run_dir / "result.json").exists() else {}
    user, row = user_of(run_dir), _last_row(run_dir / "metrics.jsonl")
    if user is not None:
        status = f"running, process {user}"
    elif result:
        status = f"{result.get('status')} at step {result.get('step')}"
    else:
        status = "ended without a result: go on with --resume last"
    strategy = config.get("strategy") or {}
    if isinstance(strategy, dict):
        strategy = f"{strategy.get('name')} " + _pairs({key: v for key, v in strategy.items() if key != "name"})
    steps = saved_steps(run_dir)
    facts = {
        "run": run_dir,
        "status": status,
        "strategy": strategy,
        "config": _pairs(config.get("config") or {}) or "none recorded",
        "fit": _pairs({key: v for key, v in _table(config.get("fit")).items() if v is not None}),
        "data": _pairs(config.get("data") or {}),
        "parent": _pairs(config.get("parent") or {}),
        "seeds": ", ".join(map(str, result.get("seeds") or [])),
        "saved": ", ".join(map(str, steps)) or "no checkpoint",
        "best": _pairs(result.get("best") or {}),
        "train": _pairs(result.get("train") or {}),
        "val": _pairs(result.get("val") or {}),
        "last row": _pairs(row),
        "digest": result.get("digest"),
    }
    return "\n".join(f"{name:<10}{text}" for name, text in facts.items() if text)


def _table(value: Any) -> dict[str, Any]:
    """What should be a table; a damaged file may hold anything there."""
    return value if isinstance(value, dict) else {} if value is None else {"damaged": value}


def _pairs(values: Any) -> str:
    """`lr=0.003 clip=1.0`, nested tables flattened as `strategy_fields.window=1`."""
    values = _table(values)
    return " ".join(f"{name}={_short(value)}" for name, value in _flat(values, ""))


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _last_row(path: Path) -> dict[str, Any]:
    """The newest whole line of metrics.jsonl; a line that a crash tore is no row."""
    if not path.exists():
        return {}
    for line in reversed(path.read_text(errors="replace").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}
