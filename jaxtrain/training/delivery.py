"""Delivery: from the metrics of a chunk to the record and to callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..callbacks.run import Run
from ..engine.nonfinite import Unscored, finite_steps
from ..engine.steps import NONFINITE_INDEX, ZERO_GRADIENT
from ..utils.logging import log
from .pipeline import Chunk
from .workload import Workload


class Delivery:
    """Delivers chunks in order: ``run.step`` counts the steps that were delivered, ``history`` holds what was written.

    Args:
        workload: The programs that the chunks come from.
        run: The run whose record and callbacks get the metrics.
    """

    def __init__(self, workload: Workload, run: Run):
        self.workload, self.run = workload, run
        self._audited, self._unscored = False, Unscored(run.recorder.log_every)
        self.history: list[dict[str, Any]] = []

    def deliver(self, chunk: Chunk | None) -> None:
        """Hand over the metrics of a chunk, if there is one. The rows that it completes are not written yet.

        Raises:
            NonFiniteError: A step was not finite, and the run is to fail then; the steps before it are delivered.
        """
        if chunk is None:
            return
        run, workload = self.run, self.workload
        arrays, first, n = chunk.metrics.fetch(), run.step, len(chunk.batches)
        bad, dead = arrays.pop(NONFINITE_INDEX)[:n], arrays.pop(ZERO_GRADIENT)[:n]
        n, error = finite_steps(
            bad, first, chunk.batches, workload.settings.nonfinite, workload.program, workload.batch_first
        )
        nums = {name: mean.num[:n] for name, mean in arrays.items()}
        weights = {name: mean.weight[:n] for name, mean in arrays.items()}
        self._unscored.add(first, weights["loss"], bad)
        if not self._audited:
            self._audit(dead, weights["grad_norm"], first)
        run.recorder.add(first, nums, weights)
        run.step = first + n
        with np.errstate(invalid="ignore", divide="ignore"):
            metrics = {name: nums[name] / weights[name] for name in nums}
        if n:
            run.callbacks("on_chunk_end", run, metrics)
        if error is not None:
            self.write_log()
            raise error

    def end(self) -> None:
        """Warn of a run in which nothing was scored."""
        self._unscored.end(self.run.restored_step or 0, self.run.step)

    def write_log(self) -> None:
        """Write the rows of the record that are complete."""
        run = self.run
        for row in run.recorder.take():
            run.callbacks("on_log", run, row)
            run.metrics.update({name: value for name, value in row.items() if name != "step"})
            self.history.append(row)

    def _audit(self, dead: np.ndarray, updates: np.ndarray, first: int) -> None:
        """After the first update: name parameters whose gradient was exactly zero though the rule trains them."""
        steps = np.flatnonzero(updates > 0)
        if not len(steps):
            return
        self._audited = True
        program = self.workload.program
        untrained = {report.name for report in program.parameter_reports if report.trains == "no"}
        zero = [name for name, flag in zip(program.optimizer.names, dead[steps[0]], strict=True) if flag]
        if surprising := [name for name in zero if name not in untrained]:
            log.warning(
                "step %d: the gradient of %s is exactly zero; does the loss depend on it, or is a unit saturated?",
                first + int(steps[0]) + 1,
                ", ".join(surprising),
            )
