"""The loop: chunks of steps, event edges between them, and what happens at an edge, in this order and no other."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..callbacks.base import Callback, Callbacks
from ..callbacks.run import Requests, Run
from ..checkpoint.locate import run_key
from ..checkpoint.store import Store
from ..core.metrics import Pending
from ..data.iterator import DataModule, Feed, change_task, identity_of
from ..data.passes import Passes
from ..distributed import processes
from ..engine.nonfinite import Unscored, judged
from ..engine.program import BAD, DEAD, NonFinite, Program
from ..period import Period
from ..utils.files import as_json
from ..utils.logging import log, one_line
from .evaluate import evaluate
from .live import Live
from .result import Status
from .schedule import Schedule
from .signals import Signals

OTHER_DATA = (
    "%s data: batch %d is not the one that the run had before step %d: the source gives others each time it starts, so "
    "the run goes on, but not as if it was never stopped (some samples may come twice in this epoch, others never). "
    "Seed its shuffle, or give it state_dict() and load_state_dict()"
)
ALONE = 10
"""Seconds after which an error that the other processes do not have is this one's alone."""


class Loop:
    """One run under way. ``position`` counts dispatched steps; ``run.step`` those whose metrics have been delivered."""

    def __init__(self, *, run: Run, program: Program, callbacks: Callbacks, schedule: Schedule, data: DataModule,
                 feed: Feed, val: Passes | None, store: Store | None, nonfinite: NonFinite, signals: Signals,
                 retask: Callable[[Loop, dict[str, Any]], None]):  # fmt: skip
        self.run, self.program, self.callbacks, self.schedule = run, program, callbacks, schedule
        self.data, self.feed, self.val, self.store = data, feed, val, store
        self.nonfinite: NonFinite = nonfinite
        self.signals = signals
        self._retask = retask
        self.position = run.step
        run.has_validation = val is not None
        run.live = self.live = Live(self)
        self._unscored = Unscored(run.recorder.log_every)
        self._keeps = any(callback.reads_model for callback in callbacks)
        for callback in callbacks:
            callback.reset()
        self.status: Status | None = None
        self.reason: str | None = None
        self.saved: bool | None = None
        self.history: list[dict[str, Any]] = []
        self.seconds = {"validate": 0.0, "checkpoint": 0.0}
        self.cut = False
        """Whether the run was ended between the two halves of an edge, with a validation still to come."""
        self.resumed_cut: int | None = None
        """The step whose checkpoint was saved in the middle of an edge; it is written anew when the edge is over."""
        self.inexact: list[int] = []
        """Steps from which the run went on with other data than it was trained on before them."""
        self.over = False
        """Whether the run has come to its end, rather than to the end of this process's time."""
        self._audited, self._error = False, None
        self._late: tuple[Pending, list[Any]] | None = None

    def train(self) -> None:
        """Run until the budget is spent, a callback or a signal ends it, or something fails."""
        if self.cut:
            self._edge_after_probes()
        elif self.status is None and self.is_over():
            self.status = "finished"
            log.info("nothing to train: step %d, and the budget is %d", self.position, self.schedule.total)
        while self.status is None:
            if self.schedule.is_epoch_end(self.position) or self.position == 0:
                self.callbacks("on_epoch_start", self.run)
            self.callbacks("on_chunk_start", self.run)
            late, self._late = self._late, self._dispatch(self.schedule.length(self.position))
            self._deliver(late)
            if self._error is None:
                self.feed.prefetch(self.schedule.length(self.position) if not self.is_over() else 0)
                self._look()
            if self._at_edge():
                due = self._edge_due()
                self._deliver(self._late)
                self._late = None
                self._edge(due)
        self._unscored.end(self.run.restored_step or 0, self.run.step)

    # ------------------------------------------------------------------------------------------------- a chunk

    def _dispatch(self, n: int) -> tuple[Pending, list[Any]] | None:
        try:
            batches = self.feed.take(n)
        except Exception as error:
            self._error = error  # raised at the edge: whole steps before the one that failed still count
            batches = self.feed.take(self.feed.ready)
        if not batches:
            return None
        if self._keeps:
            self.live.keep()
        pending = self.program.train(batches, self.position)
        self.position += len(batches)
        return pending, batches

    def _deliver(self, chunk: tuple[Pending, list[Any]] | None) -> None:
        """Hand the metrics of a dispatched chunk to the record and to the callbacks."""
        if chunk is None:
            return
        arrays = chunk[0].fetch()
        batches, first = chunk[1], self.run.step
        n = len(batches)
        bad, dead = arrays.pop(BAD)[:n], arrays.pop(DEAD)[:n]
        n, error = judged(bad, first, batches, self.nonfinite, self.program, self.live.batch_first)
        nums = {name: mean.num[:n] for name, mean in arrays.items()}
        weights = {name: mean.weight[:n] for name, mean in arrays.items()}
        self._unscored.add(first, weights["loss"], bad)
        if not self._audited:
            self._audit(dead, weights["grad_norm"], first)
        self.run.recorder.add(first, nums, weights)
        self.run.step = first + n
        with np.errstate(invalid="ignore", divide="ignore"):
            metrics = {name: nums[name] / weights[name] for name in nums}
        if n:
            self.callbacks("on_chunk_end", self.run, metrics)
        if error is not None or self.run.step < self.position or not self._at_edge():
            self._finish_rows()  # at an edge the row of its step waits until all of the edge's events are over
        if error is not None:
            raise error

    def _audit(self, dead: np.ndarray, updates: np.ndarray, first: int) -> None:
        """After the first update: name parameters whose gradient was exactly zero though the rule trains them."""
        steps = np.flatnonzero(updates > 0)
        if not len(steps):
            return
        self._audited = True
        untrained = {row.name for row in self.program.rows if row.trains == "no"}
        zero = [name for name, flag in zip(self.program.optimizer.names, dead[steps[0]], strict=True) if flag]
        surprising = [name for name in zero if name not in untrained]
        if surprising:
            log.warning(
                "step %d: the gradient of %s is exactly zero; does the loss depend on it, or is a unit saturated?",
                first + int(steps[0]) + 1, ", ".join(surprising),
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- an edge

    def _look(self) -> None:
        """Once a chunk: whether a signal has come, and what the clock says."""
        self.signals.poll()
        self._look_at_clock()
        self._agree()

    def _look_at_clock(self) -> None:
        now = self.schedule.look()
        if processes.count() > 1:
            self.schedule.validate_now, self.schedule.out_of_time = processes.from_first(now)

    def _agree(self) -> None:
        """Of several processes the first one decides what callbacks have asked for: their clocks differ."""
        if processes.count() > 1:
            asked = as_json(vars(self.run.requests), f"what callbacks ask for at step {self.run.step}")
            self.run.requests = Requests(**processes.from_first(asked))

    def stay_over(self, status: Status, reason: str | None) -> None:
        self.status, self.reason = status, reason
        why = (f": {reason}" if reason else "") + (f"; resume={self.run.step} trains on" if status == "stopped" else "")
        log.info("already %s at step %d%s", status, self.run.step, why)

    def is_over(self) -> bool:
        return self.schedule.is_over(self.position)

    def _at_edge(self) -> bool:
        return self._error is not None or self.signals.received is not None or self._edge_due()

    def _edge_due(self) -> bool:
        """Whether an edge is due at ``position``, also without a failure or a signal."""
        return (
            self.run.requests.any()
            or self.schedule.is_edge(self.position)
            or self.schedule.out_of_time
            or self.schedule.validate_now
        )

    def _edge(self, due: bool) -> None:
        if self._error is not None:
            if not processes.all_here(f"error/{self.run.step}", ALONE):
                self._error.add_note(
                    f"jaxtrain: step {self.run.step} is not saved: the other processes had no error here"
                )
                raise self._error
            try:
                self._finish_rows()
                self._save()
                if self.store is not None:
                    self.store.wait()
            except Exception as error:
                self._error.add_note(f"jaxtrain: step {self.run.step} is not saved: {one_line(error)}")
            raise self._error
        if not due:  # a signal alone: what callbacks asked for on the way waits, as it would have without the signal
            self._finish_rows()
            self._end_by_signal()
            return
        self._agree()
        for callback in self.callbacks.alive():
            if callback.probe_every is not None and self._probe_due(callback):
                self._probe(callback)
        self._edge_after_probes()

    def _edge_after_probes(self) -> None:
        self._agree()
        run = self.run
        ending = self._ending()
        due = self.cut or run.requests.validate or self.schedule.validation_due(run.step) or ending is not None
        self.cut = run.requests.validate = False
        if self.val is not None and due and run.last_validation != run.step and not self._validate():
            self.cut = True  # a signal: this step's checkpoint says that the rest of the edge is still to come
            self._end_by_signal()
            return
        if self.schedule.is_epoch_end(run.step):
            self.callbacks("on_epoch_end", run)
        self._agree()
        if self.val is None or run.last_validation == run.step:  # a run ends with a validation
            self._look_at_clock()
            ending = ending or self._ending()
        if ending is not None:
            run.recorder.force(run.step, {})
        self._finish_rows()
        self._agree()
        # What was asked for too late for this edge waits for the next one.
        requests, stop = run.requests, run.requests.stop if ending is None else None
        run.requests = Requests(validate=requests.validate, stop=stop)
        if requests.task is not None and ending is None:
            self._retask(self, requests.task)
        elif requests.task is not None:  # a run that goes on from here, under a larger budget, begins with it
            change_task(self.data, as_json(requests.task, f"run.retask at step {run.step}"))
        if ending is not None:
            self.status, self.reason = ending
            self.over = requests.stop is not None or self.is_over()
            self._save()
        elif self.signals.received is not None:
            self._end_by_signal()
        elif requests.save:
            self._save()
        run.score = None

    def _ending(self) -> tuple[Status, str | None] | None:
        """Status and reason if the run ends here of itself."""
        if self.run.requests.stop is not None:
            return "stopped", self.run.requests.stop
        if self.is_over():
            return "finished", None
        return ("stopped", "max_time reached") if self.schedule.out_of_time else None

    def _end_by_signal(self) -> None:
        self.status = "interrupted" if self.signals.received == "SIGINT" else "terminated"
        self.reason = self.signals.received
        self._save()

    def _probe_due(self, callback: Callback) -> bool:
        every = Period.of(callback.probe_every)
        return every is not None and every.due(self.run.step, self.schedule.epoch_length)

    def _probe(self, callback: Callback) -> None:
        values, recorder = self.program.probe(callback, self.program.example, self.run.step).fetch(), self.run.recorder
        waiting, recorder.logged = recorder.logged, {}
        self.callbacks.tell(callback, "on_probe", self.run, values)
        logged, recorder.logged = recorder.logged, waiting
        if logged:  # no row is due here, and a later one is not where it belongs
            recorder.measured(self.run.step, logged)

    def _validate(self) -> bool:
        """Whether the validation was completed; a signal cuts it."""
        if self.signals.received is not None or self.val is None:
            return False
        with self._timed("validate"):
            self.callbacks("on_validation_start", self.run)
            cut = lambda: self.signals.poll() is not None  # noqa: E731
            metrics = evaluate(self.program, self.val.once(), "val", cut, self.val.batch_first)
            if metrics is None:
                return False
            self.run.recorder.force(self.run.step, metrics)
            self.run.metrics.update(metrics)
            self.run.last_validation = self.run.step
            self.schedule.validated()
            self.callbacks("on_validation_end", self.run, metrics)
        return True

    def _finish_rows(self) -> None:
        for row in self.run.recorder.take():
            self.callbacks("on_row", self.run, row)
            self.run.metrics.update({name: value for name, value in row.items() if name != "step"})
            self.history.append(row)

    # -------------------------------------------------------------------------------------------------- saving

    def _save(self) -> None:
        """Save this step, the last thing that happens at it."""
        if self.store is None:
            return
        with self._timed("checkpoint"):
            self.callbacks("flush")
            params, train = self.program.state()
            replace = self.resumed_cut == self.run.step
            if self.store.save(self.run.step, params, train, self._meta(), self.run.score, replace=replace):
                with self.run.closed():
                    self.callbacks("on_checkpoint", self.run, self.store.directory / f"{self.run.step:08d}")

    def _meta(self) -> dict[str, Any]:
        run = self.run
        params, train = self.program.signature()
        return {
            "schema": 1,
            "step": run.step,
            "model": params,
            "optimizer": train,
            "optimizer_settings": self.program.optimizer.settings(),
            "strategy": run.config["strategy"],
            "seeds": run.config["fit"]["seeds"],
            "run": run_key(run.config),
            "data": identity_of(self.data),
            "feed": self.feed.mark(),
            "inexact": self.inexact,
            "task": self.data.task,
            "callbacks": self.callbacks.states(),
            "recorder": run.recorder.state(),
            "metrics": run.metrics,
            "last_validation": run.last_validation,
            "cut": self.cut,
            "requests": vars(run.requests),
            "over": [self.status, self.reason] if self.over else None,
            "versions": run.config.get("versions", {}),
        }

    def restore(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's metadata (its arrays are the program's business)."""
        run = self.run
        run.step = self.position = run.restored_step = meta["step"]
        run.recorder.load_state(meta["recorder"])
        run.metrics, run.last_validation = dict(meta["metrics"]), meta["last_validation"]
        run.requests = Requests(**meta["requests"])
        self.inexact = list(meta.get("inexact", ()))
        if self.feed.differs:
            self.inexact.append(run.step)
            log.warning(OTHER_DATA, self.feed.name, self.feed.taken - 1, run.step)
            self.program.learner.notes.append(f"inexact: the data differs from that before step {run.step}")
        self.cut = meta["cut"]
        self.resumed_cut = meta["step"] if meta["cut"] else None
        pending = run.recorder.rows  # those of an edge that was cut
        run.first_open_row = pending[0]["step"] if pending else None
        keys = self.callbacks.keys()
        for key, state in meta["callbacks"].items():
            if key in keys:
                keys[key].load_state(state)
            elif state:
                log.warning("resume: the checkpoint holds the state of a callback that this run lacks: %s", key)
        for key in keys:
            if key not in meta["callbacks"] and keys[key].state():
                log.warning("resume: %s was not part of the saved run and starts anew", key)

    @contextmanager
    def _timed(self, what: str):
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
