"""JSON, atomic writes, and the lock of a run directory."""

from __future__ import annotations

import fcntl
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """Convert ``value`` to strict JSON: nonfinite numbers become None; paths and other objects become text."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def as_json(value: Any, what: str, kinds: str = "plain numbers, text, lists and dicts") -> Any:
    """``value`` as it reads back from JSON (tuples become lists), so that it equals what a checkpoint holds.

    Raises:
        TypeError: JSON cannot represent the value, for example a numpy number; the message begins with ``what`` and
            ends with ``kinds``, what is accepted.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} is not JSON ({error}): it is saved in checkpoints; give {kinds}") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a machine after a power failure, sees either the old or the new content.

    Only one process at a time may write a path; the lock of the run directory ensures this.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # left by a process that was killed
    try:
        with open(temporary, "xb") as file:  # creates the file, so it never follows a link
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``jsonable(value)`` atomically."""
    write_atomic(path, json.dumps(jsonable(value), indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises RuntimeError if it cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RuntimeError(f"cannot read {path}: {error}; move the run directory aside or restore the file") from error
    if not isinstance(value, dict):
        raise RuntimeError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


class RunLock:
    """Creates a run directory if it is missing and locks it. The kernel releases the lock when the process dies.

    On exit, directories that it created and that are still empty are removed. With None it does nothing.

    Raises:
        OSError: The directory cannot be written.
        RuntimeError: Another process holds the lock.
    """

    def __init__(self, run_dir: Path | None):
        self._run_dir, self._file = run_dir, None
        self._created: list[Path] = []

    def __enter__(self) -> RunLock:
        if self._run_dir is None:
            return self
        self._created = [path for path in (self._run_dir, *self._run_dir.parents) if not path.exists()]
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link could make it overwrite another file
            self._file = os.fdopen(os.open(self._run_dir / ".lock", flags, 0o666), "r+")
        except OSError as error:
            raise OSError(error.errno, f"cannot write the run directory {self._run_dir}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with self._file as file:
                pid = file.read().strip() or "unknown"
            raise RuntimeError(
                f"run directory {self._run_dir} is in use by process {pid}: wait for it, or choose another run_dir"
            ) from None
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._run_dir is None or self._file is None:
            return
        if self._created and [entry.name for entry in self._run_dir.iterdir()] == [".lock"]:
            (self._run_dir / ".lock").unlink()
            with suppress(OSError):  # not empty
                for path in self._created:
                    path.rmdir()
        self._file.close()
