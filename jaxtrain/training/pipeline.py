"""Chunks of steps: they are dispatched to the device, and their metrics are delivered one chunk later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..callbacks.run import Run
from ..core.metrics import Pending
from ..core.state import seeded
from ..engine.nonfinite import Unscored, finite_steps
from ..engine.steps import NONFINITE_INDEX, ZERO_GRADIENT
from ..strategies.recording import spiked, spikes_of
from ..utils.logging import log
from .progress import Progress
from .reader import What
from .workload import Workload

SPIKED = What("predict", lambda learner, phases, root, index: spiked(learner, phases), "spiked")


@dataclass(frozen=True)
class Chunk:
    """Steps that were dispatched together."""

    metrics: Pending
    batches: list[Any]


class Pipeline:
    """Dispatches chunks, and returns each one while the next one computes.

    At most one chunk is in flight after ``previous``, and none after ``drain``.

    Args:
        workload: The programs and the data.
        progress: Counts the dispatched steps.
        keep: Called before each dispatch, which overwrites the model's values.
    """

    def __init__(self, workload: Workload, progress: Progress, keep: Callable[[], None] | None = None):
        self._workload, self._progress, self._keep = workload, progress, keep
        self._chunks: deque[Chunk] = deque()
        self.failure: Exception | None = None
        """An error of the data. It is not raised at once, because the complete steps before it count."""

    def dispatch(self, n: int) -> None:
        """Dispatch the next ``n`` steps; if the data fails, those before the failure."""
        iterator, start = self._workload.iterator, self._progress.dispatched
        try:
            batches = iterator.take(n)
        except Exception as error:
            self.failure = error
            batches = iterator.take(iterator.ready)
        if not batches:
            return
        if self._keep is not None:
            self._keep()
        self._chunks.append(Chunk(self._workload.program.train(batches, start), batches))
        self._progress.dispatched += len(batches)

    def previous(self) -> Chunk | None:
        """The chunk before the newest one, or None."""
        return self._chunks.popleft() if len(self._chunks) > 1 else None

    def drain(self) -> Chunk | None:
        """The last chunk in flight, or None."""
        return self._chunks.popleft() if self._chunks else None

    def prefetch(self, n: int) -> None:
        """Read the batches of the next ``n`` steps while the device computes."""
        self._workload.iterator.prefetch(n)


class Delivery:
    """Delivers the metrics of chunks in order to callbacks and the log. ``run.step`` counts the delivered steps.

    Args:
        workload: The programs that ran the chunks.
        run: The run whose recorder and callbacks receive the metrics.
    """

    def __init__(self, workload: Workload, run: Run):
        self.workload, self.run = workload, run
        self._audited, self._unscored = False, Unscored(run.recorder.log_every)
        self.history: list[dict[str, Any]] = []
        """The log entries written so far."""

    def deliver(self, chunk: Chunk | None) -> None:
        """Deliver the metrics of a chunk, if there is one. Completed log entries are written by ``write_log``.

        Raises:
            NonFiniteError: A step was not finite, under ``Fit(nonfinite="raise")``. The steps before it are delivered.
        """
        if chunk is None:
            return
        run, workload = self.run, self.workload
        arrays, first, n = chunk.metrics.fetch(), run.step, len(chunk.batches)
        nonfinite, zero_gradient = arrays.pop(NONFINITE_INDEX)[:n], arrays.pop(ZERO_GRADIENT)[:n]
        policy = workload.settings.nonfinite
        n, error = finite_steps(nonfinite, first, chunk.batches, policy, workload.program, workload.batch_first)
        nums = {name: mean.num[:n] for name, mean in arrays.items()}
        weights = {name: mean.weight[:n] for name, mean in arrays.items()}
        self._unscored.add(first, weights["loss"], nonfinite)
        if not self._audited:
            self._audit(zero_gradient, weights["grad_norm"], first, chunk.batches)
        run.recorder.add(first, nums, weights)
        run.step = first + n
        with np.errstate(invalid="ignore", divide="ignore"):
            metrics = {name: nums[name] / weights[name] for name in nums}
        if n:
            run.callbacks("on_chunk_end", run, metrics)
        if error is not None:
            self.write_log()
            raise error

    def write_log(self) -> None:
        """Write the log entries that are complete."""
        run = self.run
        for entry in run.recorder.take():
            run.callbacks("on_log", run, entry)
            run.metrics.update({name: value for name, value in entry.items() if name != "step"})
            self.history.append(entry)

    def end(self) -> None:
        """Log a warning if no time step of the run was scored."""
        self._unscored.end(self.run.restored_step or 0, self.run.step)

    def _audit(self, zero_gradient: np.ndarray, updates: np.ndarray, first: int, batches: list[Any]) -> None:
        """After the first update: name parameters whose gradient was exactly zero, and neurons that do not spike."""
        steps = np.flatnonzero(updates > 0)
        if not len(steps):
            return
        self._audited = True
        optimizer, flags, number = self.workload.program.optimizer, zero_gradient[steps[0]], first + int(steps[0])
        learns = {name for name, flag in zip(optimizer.leaves.values(), flags, strict=True) if not flag}
        zero = ", ".join(name for name in optimizer.names if name not in learns)
        what = f"the gradient of {zero} is exactly zero; " if zero else ""
        if flags.any() and (silent := ", ".join(self._silent(batches[steps[0]], number))):
            what += f"{silent} emits no spikes, so weights that read only its spikes have no gradient: "
            log.warning("step %d: %sscale up its input, or lower its V_th", number + 1, what)
        elif zero:
            log.warning("step %d: %sdoes the loss depend on it, or is a unit saturated?", number + 1, what)

    def _silent(self, batch: Any, number: int) -> list[str]:
        """The neurons of which none spikes in a batch, under the current parameters. Compiles a program."""
        program = self.workload.program
        if not spikes_of(program.learner):
            return []
        try:
            with seeded(0):
                step = SPIKED.step(program.learner, program.module)
                found = program.read(SPIKED.key, step, batch, number, first=True)
        except Exception:  # a warning must not end the run
            log.debug("spikes could not be read", exc_info=True)
            return []
        return [name for name, each in found.items() if not each]
