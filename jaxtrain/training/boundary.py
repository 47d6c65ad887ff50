"""Boundary: what happens between two chunks where something is due, in this order and no other."""

from __future__ import annotations

from ..callbacks.base import Callback
from ..data.datamodule import change_task
from ..period import Period
from ..utils.files import as_json
from .checkpointer import Checkpointer
from .control import Control, Due, Orders
from .delivery import Delivery
from .evaluate import evaluate
from .progress import Ending, Progress


class Boundary:
    """Probes, validation, the end of an epoch, rows, and the checkpoint as the last thing at its step.

    All metrics are delivered, and nothing is in flight. A signal may end a validation: the rest of the boundary is then
    left to the run that resumes from this step's checkpoint.
    """

    def __init__(self, delivery: Delivery, progress: Progress, control: Control, checkpointer: Checkpointer):
        self._workload, self._run, self._delivery = delivery.workload, delivery.run, delivery
        self._progress, self._control, self._checkpointer = progress, control, checkpointer

    def cross(self, due: Due) -> None:
        """Do what is due."""
        if due.event:
            self._probe()
            self.complete()
        else:
            self._delivery.write_log()
            self._leave()

    def complete(self) -> None:
        """All that comes after the probes; a run that was resumed in the middle of a boundary goes on here."""
        run, control, progress = self._run, self._control, self._progress
        ending = control.ending(run.step)
        due = control.take_validation(run.step) or ending is not None or progress.stage == "validation"
        if due and not self._validate():
            progress.stage = "validation"
            return self._leave()
        progress.stage = "between steps"
        if control.schedule.is_epoch_end(run.step):
            run.callbacks("on_epoch_end", run)
        if self._validated():  # a run ends with a validation
            ending = ending or control.ending(run.step, clock=True)
        if ending is not None:
            run.recorder.force(run.step, {})
        self._delivery.write_log()
        self._act(*control.take(ending))
        run.score = None

    def _act(self, orders: Orders, ending: Ending | None) -> None:
        run, task = self._run, orders.task
        if task is not None and ending is None:
            self._workload.change_task(task, run, self._control.schedule)
        elif task is not None:  # a run that goes on from here, under a larger budget, begins with it
            change_task(self._workload.data, as_json(task, f"run.set_task at step {run.step}"))
        if ending is not None:
            self._end(ending)
        elif self._control.signal is not None:
            self._leave()
        elif orders.save:
            self._checkpointer.save()

    def _leave(self) -> None:
        """End the run because of a signal."""
        signal = self._control.signal
        self._end(Ending("interrupted" if signal == "SIGINT" else "terminated", signal))

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
        run, program = self._run, self._workload.program
        values, recorder = program.probe(callback, program.example, run.step).fetch(), run.recorder
        waiting, recorder.logged = recorder.logged, {}
        run.callbacks.tell(callback, "on_probe", run, values)
        logged, recorder.logged = recorder.logged, waiting
        if logged:  # no row is due here, and a later one is not where it belongs
            recorder.measured(run.step, logged)

    # --------------------------------------------------------------------------------------------- validation

    def _validated(self) -> bool:
        """Whether nothing is left to validate at this step."""
        return self._workload.val is None or self._run.last_validation == self._run.step

    def _validate(self) -> bool:
        """Validate where that is not done yet. Returns False where a signal came before the end."""
        run, control = self._run, self._control
        if self._validated():
            return True
        if control.signal is not None:
            return False
        assert self._workload.val is not None
        with self._progress.timed("validate"):
            run.callbacks("on_validation_start", run)
            val = self._workload.val
            interrupted = lambda: control.poll_signal() is not None  # noqa: E731
            metrics = evaluate(self._workload.program, val.once(), "val", interrupted, val.batch_first)
            if metrics is None:
                return False
            run.recorder.force(run.step, metrics)
            run.metrics.update(metrics)
            run.last_validation = run.step
            control.schedule.validated()
            run.callbacks("on_validation_end", run, metrics)
        return True
