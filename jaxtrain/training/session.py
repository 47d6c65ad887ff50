"""Session: a run from its first event to its last. Its end is carried out even if something fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ..callbacks.checkpoint import kept_by
from ..checkpoint.locate import Origin
from ..checkpoint.run_directory import CHECKPOINTS
from ..checkpoint.store import Store
from ..core.metrics import numbers
from ..errors import NonFiniteError, ProcessEnded, ProcessError
from ..utils.files import read_json, write_json
from ..utils.logging import log, one_line
from .checkpointer import Checkpointer
from .control import Control
from .evaluate import evaluate_sets
from .loop import Loop
from .prepare import Prepared
from .progress import Ending, Status
from .reader import Readers
from .result import Result, summarize
from .signals import Signals


class Session(ExitStack):
    """Trains a prepared run and ends it.

    The end consists of: on_exception after an error, writing values back to the module, closing the store, writing
    result.json, on_fit_end. Each of these is done even if others fail. The first error is raised, and later errors
    become notes of it.

    Args:
        prepared: The run.
        origin: Where it starts.
        readers: Receives the seed whose values the module has at the end.
        started: ``time.perf_counter()`` when ``Fit.run`` was called.
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
        workload, run, run_dir, store = prepared.workload, prepared.run, origin.run_dir, None
        self._control = Control(schedule, Signals(), run)
        if run_dir is not None:
            kept = kept_by(workload.settings.checkpoint)
            store = Store(run_dir / CHECKPOINTS, last=kept["keep_last"], best=kept["keep_best"], mode=kept["mode"])
            if self._control.writes and (self._trains or not (run_dir / "config.json").exists()):
                write_json(run_dir / "config.json", run.config)
        self._checkpointer = Checkpointer(store, workload, run, progress)
        self._loop = Loop(workload, run, progress, self._control, self._checkpointer, prepared.live)
        self._at_exit("on_fit_end", self._announce_end)
        self._at_exit("writing the result", self._write_result)
        self._at_exit("closing the store", self._close_store)
        self._at_exit("writing values back to the module", self._write_back)
        self._at_exit("on_exception", self._announce_error)

    def train(self) -> None:
        """Train until the run ends."""
        run, origin, earlier = self._prepared.run, self._origin, self._earlier
        with self._control.catch_signals(), self._control.explain_lost():
            run.callbacks("on_fit_start", run)
            if origin.saved is not None or origin.restarted:
                run.callbacks("on_restore", run)
            if earlier is not None:
                self._prepared.progress.ending = earlier
                why = f" ({earlier.reason})" if earlier.reason else ""
                advice = f"; pass resume={run.step} to continue training" if earlier.status == "stopped" else ""
                log.info("run already %s at step %d%s%s", earlier.status, run.step, why, advice)
            if self._trains and origin.run_dir is not None and self._control.writes:
                (origin.run_dir / "result.json").unlink(missing_ok=True)  # from an earlier part of the run
            ending = self._loop.train()
            self._saved = self._checkpointer.wait()
            self._status = ending.status
            if ending.status in ("finished", "stopped"):
                self._test()

    def _test(self) -> None:
        """Compute the metrics of the test data, if there is any. A signal ends the test, and the run with it."""
        prepared, control = self._prepared, self._control
        run, workload, progress = prepared.run, prepared.workload, prepared.progress
        if not workload.test:
            return
        with progress.timed("test"):
            metrics = evaluate_sets(workload.program, workload.test, lambda: control.poll_signal() is not None)
        if metrics is None:
            progress.ending = control.by_signal()
            self._status = progress.ending.status
            return
        if self._trains or not self._recorded().get("test"):  # else the log has this entry
            run.recorder.measured(run.step, numbers(metrics))
            self._loop.delivery.write_log()
        run.metrics.update(metrics)

    def _at_exit(self, what: str, act: Callable[[BaseException | None], None]) -> None:
        """Register an action of the end, to run before those registered earlier. It receives the error, if any."""

        def leave(kind: object, error: BaseException | None, trace: object) -> None:
            try:
                act(error)
            except Exception as later:
                if error is None:
                    raise
                error.add_note(f"jaxtrain: {what} failed, too: {one_line(later)}")

        self.push(leave)

    def _announce_error(self, error: BaseException | None) -> None:
        if error is not None:
            self._prepared.run.callbacks("on_exception", self._prepared.run, error)

    def _write_back(self, error: BaseException | None) -> None:
        # Values that are not finite are of no use, and a process that failed must not wait for the others.
        if not isinstance(error, NonFiniteError) and (self._status != "failed" or self._control.alone):
            self._readers.seed = self._prepared.workload.program.write_back()

    def _close_store(self, error: BaseException | None) -> None:
        if not isinstance(error, ProcessEnded):  # Orbax would wait for the process that has ended
            self._checkpointer.close()

    def _write_result(self, error: BaseException | None) -> None:
        prepared, seconds = self._prepared, time.perf_counter() - self._started
        run_dir, status = prepared.run.run_dir, self._status
        if error is not None and status == "failed":
            reason = str(error) if isinstance(error, ProcessError) else one_line(error)
            prepared.progress.ending = Ending("failed", reason)
        self.result = summarize(prepared, status, self._loop.delivery.history, self._saved, seconds)
        if run_dir is not None and self._control.writes:
            path = run_dir / "result.json"
            # If nothing was left to train, the existing result has more information, for example the speed.
            before = self._recorded()
            if self._trains or before.get("status") != status:
                write_json(path, self.result.summary)
            elif prepared.workload.test:
                now = self.result.summary
                write_json(path, {**before, **{name: now[name] for name in ("test", "per_seed") if name in now}})

    def _recorded(self) -> dict[str, Any]:
        """The result of the run so far, as its directory has it."""
        run_dir = self._prepared.run.run_dir
        path = None if run_dir is None else run_dir / "result.json"
        return {} if path is None or not path.exists() else read_json(path)

    def _announce_end(self, error: BaseException | None) -> None:
        run = self._prepared.run
        with run.closed():
            run.callbacks("on_fit_end", run, self._status)


def _earlier_ending(prepared: Prepared, origin: Origin) -> Ending | None:
    """How the run ended before, unless it now continues: on request, or under a larger budget."""
    over = None if origin.saved is None else origin.saved.meta["ending"]
    progress = prepared.progress
    if over is None or progress.stage == "validation":
        return None
    status, reason = over
    continues = origin.explicit if status == "stopped" else not prepared.schedule.is_over(progress.dispatched)
    return None if continues else Ending(status, reason)
