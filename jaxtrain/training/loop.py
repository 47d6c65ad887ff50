"""The training loop: chunks of steps, and boundaries between them."""

from __future__ import annotations

from typing import NoReturn

from ..callbacks.run import Run
from ..utils.logging import log, one_line
from .boundary import Boundary
from .checkpointer import Checkpointer
from .control import Control
from .live import Live
from .pipeline import Delivery, Pipeline
from .progress import Ending, Progress
from .workload import Workload


class Loop:
    """Trains until the run ends."""

    def __init__(
        self, workload: Workload, run: Run, progress: Progress, control: Control, checkpointer: Checkpointer, live: Live
    ):
        self._run, self._progress, self._control, self._checkpointer = run, progress, control, checkpointer
        self.delivery = Delivery(workload, run)
        keep = live.keep if any(callback.reads_model for callback in run.callbacks) else None
        self._pipeline = Pipeline(workload, progress, keep)
        self._boundary = Boundary(self.delivery, progress, control, checkpointer)

    def train(self) -> Ending:
        """Train until the budget is spent, a callback or a signal ends the run, or an error is raised."""
        progress, pipeline, schedule = self._progress, self._pipeline, self._control.schedule
        self._begin()
        while progress.ending is None:
            self._announce_chunk()
            pipeline.dispatch(schedule.length(progress.dispatched))
            self.delivery.deliver(pipeline.previous())
            self.delivery.write_log()
            if pipeline.failure is not None:
                self._fail(pipeline.failure)
            pipeline.prefetch(schedule.length(progress.dispatched))
            if due := self._control.poll(progress.dispatched):
                # The log entry of this step is not written yet: events of the boundary add to it.
                self.delivery.deliver(pipeline.drain())
                self._boundary.cross(due)
        self.delivery.end()
        return progress.ending

    def _begin(self) -> None:
        """Complete the boundary in which a resumed run was interrupted, or find that nothing is left to train."""
        progress, schedule = self._progress, self._control.schedule
        if progress.stage == "validation":
            self._boundary.complete()
        elif progress.ending is None and schedule.is_over(progress.dispatched):
            progress.ending = Ending("finished")
            log.info("nothing to train: step %d, and the budget is %d", progress.dispatched, schedule.total)

    def _announce_chunk(self) -> None:
        run, step = self._run, self._progress.dispatched
        if self._control.schedule.is_epoch_end(step) or step == 0:
            run.callbacks("on_epoch_start", run)
        run.callbacks("on_chunk_start", run)

    def _fail(self, error: Exception) -> NoReturn:
        """Save the complete steps before an error of the data, and raise it."""
        self.delivery.deliver(self._pipeline.drain())
        step = self._run.step
        if not self._control.all_failed(step):
            error.add_note(f"jaxtrain: step {step} is not saved: the other processes had no error here")
            raise error
        try:
            self.delivery.write_log()
            self._checkpointer.save()
            self._checkpointer.wait()
        except Exception as failure:
            error.add_note(f"jaxtrain: step {step} is not saved: {one_line(failure)}")
        raise error
