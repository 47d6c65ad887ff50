"""Session: a run from its first event to its last, and what must happen at its end whatever fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Self

from ..callbacks.checkpoint import kept_by
from ..checkpoint.locate import CHECKPOINTS, Origin
from ..checkpoint.store import Store
from ..distributed import processes
from ..errors import NonFiniteError
from ..utils.files import read_json, write_json
from ..utils.logging import log, one_line
from .checkpointer import Checkpointer
from .control import Control
from .evaluate import Readers
from .loop import Loop
from .outcome import summarize
from .prepare import Prepared
from .progress import Ending
from .result import Result, Status
from .signals import Signals


@contextmanager
def in_all_processes() -> Iterator[None]:
    """A run in every process: an error in here is told to the others, which wait for this one."""
    processes.begin()
    with processes.report_failures():
        yield


class Session(ExitStack):
    """Trains a prepared run, and ends it in this order: on_exception after an error, the module gets its values back,
    the store is closed, result.json is written, on_fit_end.

    Every one of these is done whatever fails. The first error is raised, and later ones become its notes.

    Args:
        prepared: The run.
        origin: Where it starts.
        readers: Told of the seed whose values the module holds in the end.
        started: When the call of ``Fit.run`` began, by ``time.perf_counter``.
    """

    result: Result

    def __init__(self, prepared: Prepared, origin: Origin, readers: Readers, started: float):
        super().__init__()
        self._prepared, self._origin, self._readers, self._started = prepared, origin, readers, started
        self._status: Status = "failed"
        self._saved: bool | None = None
        self._earlier = _earlier_ending(prepared, origin)
        progress, schedule = prepared.progress, prepared.schedule
        over = progress.stage == "between steps" and schedule.is_over(progress.dispatched)
        self._trains = self._earlier is None and not over

    def __enter__(self) -> Self:
        super().__enter__()
        prepared, run_dir = self._prepared, self._origin.run_dir
        workload, run, progress = prepared.workload, prepared.run, prepared.progress
        kept, store = kept_by(workload.settings.checkpoint), None
        if run_dir is not None:
            store = Store(run_dir / CHECKPOINTS, last=kept["keep_last"], best=kept["keep_best"], mode=kept["mode"])
            if processes.is_first() and (self._trains or not (run_dir / "config.json").exists()):
                write_json(run_dir / "config.json", run.config)
        self._signals = Signals()
        self._checkpointer = Checkpointer(store, workload, run, progress)
        control = Control(prepared.schedule, self._signals, run)
        self._loop = Loop(workload, run, progress, control, self._checkpointer, prepared.live)
        self._at_exit("on_fit_end", self._announce_end)
        self._at_exit("the result", self._record)
        self._at_exit("closing the store", lambda error: self._checkpointer.close())
        self._at_exit("giving the module its values", self._write_back)
        self._at_exit("on_exception", self._announce_error)
        return self

    def train(self) -> None:
        """Train until the run ends."""
        run, progress, origin = self._prepared.run, self._prepared.progress, self._origin
        # JAX catches signals for several processes, which must all end at the same step.
        with self._signals if processes.count() == 1 else nullcontext():
            run.callbacks("on_fit_start", run)
            if origin.saved is not None or origin.restarted:
                run.callbacks("on_restore", run)
            if (earlier := self._earlier) is not None:
                progress.ending = earlier
                why = f": {earlier.reason}" if earlier.reason else ""
                on = f"; resume={run.step} trains on" if earlier.status == "stopped" else ""
                log.info("already %s at step %d%s%s", earlier.status, run.step, why, on)
            if self._trains and origin.run_dir is not None and processes.is_first():
                (origin.run_dir / "result.json").unlink(missing_ok=True)  # of an earlier part of the run
            ending = self._loop.train()
            self._saved = self._checkpointer.wait()
            self._status = ending.status

    def _at_exit(self, what: str, act: Callable[[BaseException | None], None]) -> None:
        """Register what happens at the exit, before all that was registered earlier. It is given the error so far."""

        def leave(kind: object, error: BaseException | None, trace: object) -> bool:
            try:
                act(error)
            except Exception as later:
                if error is None:
                    raise
                error.add_note(f"jaxtrain: {what} failed, too: {one_line(later)}")
            return False

        self.push(leave)

    def _announce_error(self, error: BaseException | None) -> None:
        if error is not None:
            self._prepared.run.callbacks("on_exception", self._prepared.run, error)

    def _write_back(self, error: BaseException | None) -> None:
        # Values that are not finite are of no use; and a process that failed must not wait for the others.
        if not isinstance(error, NonFiniteError) and (self._status != "failed" or processes.count() == 1):
            self._readers.seed = self._prepared.workload.program.write_back()

    def _record(self, error: BaseException | None) -> None:
        prepared, total = self._prepared, time.perf_counter() - self._started
        run, status = prepared.run, self._status
        self.result = summarize(prepared, status, self._loop.delivery.history, self._saved, total)
        if run.run_dir is not None and processes.is_first():
            path = run.run_dir / "result.json"
            # Where nothing was left to train, what the run came to, and how fast, is known better already.
            if self._trains or not path.exists() or read_json(path).get("status") != status:
                write_json(path, self.result.summary)

    def _announce_end(self, error: BaseException | None) -> None:
        run = self._prepared.run
        with run.closed():
            run.callbacks("on_fit_end", run, self._status)


def _earlier_ending(prepared: Prepared, origin: Origin) -> Ending | None:
    """How the run ended before, where it stays so: it was not asked to train on, nor given a larger budget."""
    over = None if origin.saved is None else origin.saved.meta["ending"]
    progress = prepared.progress
    if over is None or progress.stage == "validation":
        return None
    status, reason = over
    goes_on = origin.explicit if status == "stopped" else not prepared.schedule.is_over(progress.dispatched)
    return None if goes_on else Ending(status, reason)
