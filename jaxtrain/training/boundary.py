"""Boundary: the events between two chunks, in a fixed order."""

from __future__ import annotations

from typing import Literal

from ..callbacks.base import Callback
from ..callbacks.run import Requests
from ..core.metrics import numbers
from ..data.datamodule import change_task
from ..period import Period
from ..utils.files import as_json
from .checkpointer import Checkpointer
from .control import Control
from .evaluate import evaluate_sets
from .pipeline import Delivery
from .progress import Ending, Progress


class Boundary:
    """Probes, validation, end of an epoch, log entries and, as the last action at a step, the checkpoint.

    All metrics have been delivered, and no chunk is in flight. If a signal interrupts a validation, the rest of the
    boundary is left to the run that resumes from this step's checkpoint.
    """

    def __init__(self, delivery: Delivery, progress: Progress, control: Control, checkpointer: Checkpointer):
        self._workload, self._run, self._delivery = delivery.workload, delivery.run, delivery
        self._progress, self._control, self._checkpointer = progress, control, checkpointer

    def cross(self, due: Literal["boundary", "signal"]) -> None:
        """Do what is due. A signal alone ends the run without the events of a boundary."""
        if due == "boundary":
            self._probe()
            self.complete()
        else:
            self._delivery.write_log()
            self._end_by_signal()

    def complete(self) -> None:
        """Everything after the probes. A run that was interrupted within a boundary resumes here."""
        run, control, progress = self._run, self._control, self._progress
        ending = control.ending(run.step)
        due = control.take_validation(run.step) or ending is not None or progress.stage == "validation"
        if due and not self._validate():
            progress.stage = "validation"
            return self._end_by_signal()
        progress.stage = "between steps"
        if control.schedule.is_epoch_end(run.step):
            run.callbacks("on_epoch_end", run)
        if self._validated:  # max_time may end the run here only if no validation is due
            ending = ending or control.ending(run.step, clock=True)
        if ending is not None:
            run.recorder.force(run.step, {})
        self._delivery.write_log()
        self._act(*control.take(ending))
        run.score = None

    def _act(self, requests: Requests, ending: Ending | None) -> None:
        run, task = self._run, requests.task
        if task is not None and ending is None:
            self._workload.change_task(task, run, self._control.schedule)
        elif task is not None:  # the task with which a later run continues from here, under a larger budget
            change_task(self._workload.data, as_json(task, f"run.set_task at step {run.step}"))
        if ending is not None:
            self._end(ending)
        elif self._control.signal is not None:
            self._end_by_signal()
        elif requests.save:
            self._checkpointer.save()

    def _end_by_signal(self) -> None:
        self._end(self._control.by_signal())

    def _end(self, ending: Ending) -> None:
        self._progress.ending = ending
        self._checkpointer.save()

    # ------------------------------------------------------------------------------------------------- probes

    def _probe(self) -> None:
        """Run the probes that are due."""
        run, length = self._run, self._control.schedule.epoch_length
        for callback in run.callbacks.alive():
            every = Period.of(callback.probe_every)
            if every is not None and every.due(run.step, length):
                self._probe_for(callback)

    def _probe_for(self, callback: Callback) -> None:
        run, program, recorder = self._run, self._workload.program, self._run.recorder
        values = program.probe(callback, program.example, run.step).fetch()
        # Values that the callback logs get an entry of their own: the next regular entry may belong to a later step.
        waiting, recorder.logged = recorder.logged, {}
        run.callbacks.tell(callback, "on_probe", run, values)
        logged, recorder.logged = recorder.logged, waiting
        if logged:
            recorder.measured(run.step, logged)

    # --------------------------------------------------------------------------------------------- validation

    @property
    def _validated(self) -> bool:
        """Whether the validation of this step is done, or there is no validation data."""
        return not self._workload.val or self._run.last_validation == self._run.step

    def _validate(self) -> bool:
        """Validate, unless this is done. Returns False if a signal came before the end."""
        run, control, val = self._run, self._control, self._workload.val
        if self._validated:
            return True
        if control.signal is not None:
            return False
        with self._progress.timed("validate"):
            run.callbacks("on_validation_start", run)
            # After an interruption, all sets are validated again.
            metrics = evaluate_sets(self._workload.program, val, lambda: control.poll_signal() is not None)
            if metrics is None:
                return False
            shown = numbers(metrics)
            metrics |= shown
            run.recorder.force(run.step, shown)
            run.metrics.update(metrics)
            run.last_validation = run.step
            control.schedule.validated()
            run.callbacks("on_validation_end", run, metrics)
        return True
