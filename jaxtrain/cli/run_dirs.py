"""Run directories seen from outside: the numbered directories of a recipe, and the files in one."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.migration import upgrade_options
from ..utils.files import read_json


def numbered(root: Path) -> list[tuple[int, Path]]:
    """The numbered directories under `root` in ascending order."""
    paths = root.iterdir() if root.is_dir() else ()
    # A fork has its parent's number and a longer name, so it comes after it.
    return sorted((int(m[1]), path) for path in paths if (m := re.match(r"(\d+)(-|$)", path.name)) and path.is_dir())


def newest_run(root: Path) -> Path | None:
    """The run with the highest number under a recipe's directory, ignoring directories in which no run started."""
    started = [path for _, path in numbered(root) if (path / "config.json").exists()]
    return started[-1] if started else None


def fresh_run(root: Path, label: str, *, create: bool = True) -> Path:
    """Create the next numbered directory, `root/0001-label`. Two programs that start at once get different numbers.

    With `create=False`, return only the next free name. Raises OSError if the directory cannot be created.
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
    """Remove a directory in which no run started; one that holds files stays."""
    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {".lock"}:
        (run_dir / ".lock").unlink(missing_ok=True)
        run_dir.rmdir()


def saved_config(run_dir: Path) -> dict[str, Any] | None:
    """The recipe's options in a run's config.json, or None. Raises RuntimeError if the file cannot be read."""
    path = run_dir / "config.json"
    config = read_json(path).get("config") if path.exists() else None
    return None if config is None else upgrade_options(config)


def saved_devices(run_dir: Path) -> int | Literal["auto"]:
    """The number of devices in a run's config.json; "auto" if no run was started there."""
    path = run_dir / "config.json"
    return (read_json(path).get("fit") or {}).get("devices", 1) if path.exists() else "auto"


def saved_steps(run_dir: Path) -> list[int]:
    """Steps with a checkpoint, in ascending order. The name of an incomplete checkpoint is not a number."""
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
