"""A run: what callbacks see of it, what it returns, and its directory (config.json, result.json, the lock)."""

from __future__ import annotations

import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from .callback import Callbacks
    from .module import Module
    from .record import Recorder

Status = Literal["finished", "stopped", "interrupted", "terminated", "failed"]
EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 130, "terminated": 143}


class NonFiniteError(FloatingPointError):
    """A loss, metric or gradient became NaN or infinite under ``Fit(nonfinite="raise")``."""


@dataclass
class Result:
    """What ``fit.run`` returns.

    ``status``: finished, stopped (by a callback or the clock), interrupted (Ctrl-C) or terminated (SIGTERM); a run that
    failed raises, and says "failed" in result.json.
    ``history``: the rows of the record that this process wrote. ``metrics``: the last value of every tag.
    ``saved``: whether the newest state is on disk (None without a run directory). ``report``: the pre-flight report.
    ``summary``: what result.json holds.
    """

    status: Status
    step: int
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    run_dir: Path | None = None
    best: dict[str, Any] | None = None
    digest: str | None = None
    saved: bool | None = None
    report: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, 130 (Ctrl-C) or 143 (SIGTERM) as the status says; 1 where the newest state is not on disk."""
        return 1 if self.saved is False else EXIT_CODES[self.status]


@dataclass
class Requests:
    """What callbacks asked for; the loop reads and clears it at the next event edge."""

    save: bool = False
    validate: bool = False
    stop: str | None = None
    task: dict[str, Any] | None = None

    def any(self) -> bool:
        return self.save or self.validate or self.stop is not None or self.task is not None


class Run:
    """A callback's view of a run.

    ``step``: train batches completed whose metrics have been delivered. ``metrics``: the last value of every tag.
    ``run_dir``: None without one. ``restored_step``: the step a resumed run started from, else None.
    ``config``: what config.json holds. ``last_validation``: the step of the last complete validation.
    """

    def __init__(self, *, module: Module, callbacks: Callbacks, recorder: Recorder, config: dict[str, Any],
                 run_dir: Path | None, max_steps: int | None, epoch_length: int | None, batch_size: int,
                 params: Callable[[], dict[str, Any]]):  # fmt: skip
        self.module = module
        self.callbacks = callbacks
        self.recorder = recorder
        self.config = config
        self.run_dir = run_dir
        self.max_steps = max_steps
        self.epoch_length = epoch_length
        self.batch_size = batch_size
        self.step = 0
        self.restored_step: int | None = None
        self.first_open_row: int | None = None
        """After a restore: the step of the first row that the checkpoint still holds, to be written later."""
        self.last_validation: int | None = None
        self.metrics: dict[str, float] = {}
        self.requests = Requests()
        self.score: float | None = None
        self._params = params
        self._rows_open = True

    @property
    def row_limit(self) -> int:
        """At the time of ``on_restore``: the last step whose rows the record may hold."""
        return self.step if self.first_open_row is None else self.first_open_row - 1

    def log(self, values: dict[str, float]) -> None:
        """Put values into the next row of the record (tag -> number)."""
        if not self._rows_open:
            raise RuntimeError(
                f"run.log({list(values)}) in on_checkpoint or on_fit_end: the row of step {self.step} is written; "
                "log in on_validation_end or on_chunk_end"
            )
        self.recorder.log(self.step, values)
        self.metrics.update({name: float(value) for name, value in values.items()})

    @contextmanager
    def closed(self) -> Iterator[None]:
        """While the rows of this step are already written."""
        self._rows_open = False
        try:
            yield
        finally:
            self._rows_open = True

    def figure(self, tag: str, figure: Any) -> None:
        """Hand a matplotlib figure to the loggers under ``tag`` at this step."""
        self.callbacks("on_figure", self, tag, figure)

    def stop(self, reason: str) -> None:
        """End the run at the next event edge, after a validation and a save."""
        self.requests.stop = self.requests.stop or reason

    def save(self, score: float | None = None) -> None:
        """Save a checkpoint at the next event edge; ``score`` is the value, measured at this very step, for best-k."""
        self.requests.save = True
        if score is not None:
            self.score = score

    def validate(self) -> None:
        """Validate at the next event edge."""
        self.requests.validate = True

    def retask(self, **params: Any) -> None:
        """Change the data module's ``task`` at the next event edge (a curriculum)."""
        self.requests.task = {**(self.requests.task or {}), **params}

    def params(self) -> dict[str, Any]:
        """A host copy of the parameters, name -> pytree of numpy arrays, at the last dispatched step."""
        return self._params()


class RunLock:
    """A run directory, made if it is missing and locked while in use; the kernel drops the lock when a process dies.

    A directory that it made and that nothing was written to is removed again. None: no directory, no lock.
    """

    def __init__(self, run_dir: Path | None):
        self._run_dir, self._file, self._made = run_dir, None, False

    def __enter__(self) -> RunLock:
        if self._run_dir is None:
            return self
        self._made = not self._run_dir.exists()
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._file = open(self._run_dir / ".lock", "a+")
        except OSError as error:
            raise OSError(error.errno, f"cannot write the run directory {self._run_dir}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            pid = self._file.read().strip() or "unknown"
            self._file.close()
            raise RuntimeError(
                f"run directory {self._run_dir} is in use by process {pid}: wait for it, or choose another run_dir"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._run_dir is None or self._file is None:
            return
        if self._made and [entry.name for entry in self._run_dir.iterdir()] == [".lock"]:
            (self._run_dir / ".lock").unlink()
            self._run_dir.rmdir()
        self._file.close()


def jsonable(value: Any) -> Any:
    """``value`` as strict JSON: non-finite numbers become None, paths and other objects their text."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(jsonable(value), file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RuntimeError(f"cannot read {path}: {error}; move the run directory aside or restore the file") from error
    if not isinstance(value, dict):
        raise RuntimeError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value
