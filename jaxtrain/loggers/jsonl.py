"""JSONL: writes the log entries of a run to metrics.jsonl, one JSON object per line."""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..callbacks.base import Callback
from ..utils.files import write_atomic
from .appender import Appender

if TYPE_CHECKING:
    from ..callbacks.run import Run

log = logging.getLogger("jaxtrain")
FILE = "metrics.jsonl"


class JSONL(Callback):
    """Writes every log entry to ``run_dir/metrics.jsonl``, from which other loggers restore their history.

    An entry is ``{"step": 50, "train/loss": 0.7, ...}``. A nonfinite number is written as ``null``, and its tag is
    listed under ``"nonfinite"``. Entries reach the file immediately, and the disk before a checkpoint is saved. A
    resumed run first truncates the file at the restored step; a new run empties it. If the disk does not accept
    entries, they are buffered, and checkpoints saved meanwhile contain them.

    >>> callbacks = [JSONL()]

    Raises:
        ValueError: The run has no run directory.
        OSError: At the end of the run, if entries could not be written.
    """

    rank = "record"

    def __init__(self) -> None:
        self._file: Appender | None = None
        self._restored: list[dict[str, Any]] = []
        """Log entries from the checkpoint that the run continues from."""

    def reset(self) -> None:
        self._restored = []

    def state(self) -> dict[str, Any]:
        """Return the log entries that may not be on disk."""
        unsynced = b"" if self._file is None else self._file.unsynced
        return {"waiting": [json.loads(line) for line in unsynced.splitlines()]} if unsynced else {}

    def load_state(self, state: dict[str, Any]) -> None:
        self._restored = list(state.get("waiting", ()))

    def on_fit_start(self, run: Run) -> None:
        if run.run_dir is None:
            raise ValueError("JSONL needs a run directory: Fit(run_dir=...)")
        if run.restored_step is None:
            self._open(run, last=-1)

    def on_restore(self, run: Run) -> None:
        kept = self._open(run, last=run.log_limit)
        for entry in restored_entries(run)[kept:]:
            self.on_log(run, entry)

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError(f"JSONL: a log entry for step {row['step']} after on_fit_end; the file is closed")
        self._file.write(encode(row))
        self.flush(sync=False)

    def flush(self, sync: bool = True) -> None:
        """Write to disk what was recorded so far, and with ``sync`` wait until it is there."""
        if self._file is not None:
            self._file.flush(sync)

    def on_fit_end(self, run: Run, status: str) -> None:
        self._close()

    def _open(self, run: Run, last: int) -> int:
        """Open the file, and remove entries after step ``last``. Returns the number of entries that were kept."""
        assert run.run_dir is not None
        path = run.run_dir / FILE
        self._close()
        entries = read_log(path) if path.exists() else []
        kept = [entry for entry in entries if entry["step"] <= last]
        if removed := len(entries) - len(kept):
            log.info("%s: the run continues from step %d; later log entries removed: %d", path, run.step, removed)
        if path.exists():
            write_atomic(path, b"".join(map(encode, kept)))
        self._file = Appender(path)
        return len(kept)

    def restored(self, run: Run) -> list[dict[str, Any]]:
        """Return log entries that the checkpoint of ``run`` holds because the file may lack them."""
        return [] if run.forked else self._restored

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def restored_entries(run: Run) -> list[dict[str, Any]]:
    """The log entries that a resumed run continues from. Valid during ``on_restore``.

    These are the entries of the file, then those that only the checkpoint holds. The result is the same before and
    after JSONL has written the latter back, and while the disk is still full.
    """
    assert run.run_dir is not None
    path = run.run_dir / FILE
    entries = read_log(path) if path.exists() else []
    for logger in run.callbacks:
        if isinstance(logger, JSONL):
            there = {entry["step"] for entry in entries}
            entries += [entry for entry in logger.restored(run) if entry["step"] not in there]
    return [entry for entry in entries if entry["step"] <= run.log_limit]


def encode(entry: dict[str, Any]) -> bytes:
    """One line of the file: strict JSON, with floats as the shortest text that reads back exactly."""
    line, nonfinite = {}, list(entry.get("nonfinite", ()))
    for tag, value in entry.items():
        if tag == "nonfinite":
            continue
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = int(value)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = float(value)
            if not math.isfinite(value):
                value = None
                nonfinite.append(tag)
        elif isinstance(value, list):  # one number per seed
            value = [number if number is not None and math.isfinite(number) else None for number in value]
            if None in value and tag not in nonfinite:
                nonfinite.append(tag)
        line[tag] = value
    if nonfinite:
        line["nonfinite"] = nonfinite
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the log entries of a metrics.jsonl.

    An incomplete last line (the process died while writing it) is skipped. Any other line that is not a log entry is
    skipped with a warning that names it.

    >>> entries = read_log("checkpoints/demo/metrics.jsonl")  # doctest: +SKIP

    Args:
        path: The file.

    Returns:
        The entries as dicts, in the order of the file, with ``null`` as None.

    Raises:
        FileNotFoundError: There is no such file.
    """
    lines = Path(path).read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
        elif number < len(lines):
            log.warning(
                '%s: line %d is not a log entry; expected a JSON object with a "step"; it is skipped', path, number
            )
    return entries
