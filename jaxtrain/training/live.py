"""What callbacks read of a run under way: module, parameters and predictions with the values of its present step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax

from ..callbacks.run import Run
from ..checkpoint.load import MODEL_PREFIX
from ..core.metrics import Pending
from ..core.module import Module, phases_of
from ..core.ownership import alone, runs
from ..core.state import fold_in, seeded, set_key, states_of, with_strong_types
from ..engine.program import Program
from ..engine.seeds import LIVE
from ..engine.steps import PREDICT
from ..errors import DataError
from .progress import Progress
from .workload import Workload


class Live:
    """The values of ``run.step``.

    The loop dispatches a chunk before it delivers the metrics of the one before, and the program is given its values to
    overwrite. So those of ``run.step`` exist while nothing is in flight, as at a boundary; beyond, the loop keeps them
    (``keep``) where a callback says ``reads_model = True``.
    """

    def __init__(self, workload: Workload, run: Run, progress: Progress):
        self._workload, self._run, self._progress = workload, run, progress
        self._kept: tuple[int, dict[str, Any]] | None = None

    def keep(self) -> None:
        """Keep the model's present values beyond the dispatch of the next chunk."""
        program = self._workload.program
        own = {name: with_strong_types(value) for name, value in _of_model(program, program.values).items()}
        self._kept = self._progress.dispatched, program.devices.place(own)

    def params(self) -> dict[str, Any]:
        """A host copy of the parameters."""
        with alone("run.params"):
            return self._workload.program.host_parameters(self._values())

    def show(self) -> None:
        """Give the module's model the present values, while the run is under way."""
        if self in runs:
            with alone("run.module"):
                program = self._workload.program
                program.write_back(_of_model(program, self._values()))

    def view(self, source: Any, encode: Callable | None) -> View:
        """The run's programs, to read batches of this source; without an ``encode`` of its own, by that of the run's
        data."""
        iterator = self._workload.iterator
        if iterator.reads(source):
            raise DataError(
                f"{iterator.name} data: the run reads this {type(source).__name__}, and a pass over it "
                "would move its place: give another one that reads the same data"
            )
        # Of several processes one may be alone in asking: it then uses one device of its own.
        several, own = self._workload.processes > 1, encode or self._workload.data.encode
        return View(self._workload.program, self._values(), own, one_device=several)

    @property
    def batch_first(self) -> bool | None:
        """The layout of the run's own train data."""
        return self._workload.batch_first

    def trains(self, module: Any) -> bool:
        return module is self._run.own_module

    def tells(self, callback: Any) -> bool:
        return any(callback is own for own in self._run.callbacks)

    def shares(self, module: Any) -> bool:
        """Whether it trains a state of the module's model."""
        model = getattr(module, "model", None)
        if not isinstance(model, brainstate.nn.Module):
            return False
        return not self._workload.program.state_ids.isdisjoint(id(state) for state in states_of(model).values())

    def describe(self) -> str:
        return f"a run under way, at step {self._run.step}, trains {type(self._run.own_module).__name__}"

    def _values(self) -> dict[str, Any]:
        step, dispatched, program = self._run.step, self._progress.dispatched, self._workload.program
        lost = any(leaf.is_deleted() for leaf in jax.tree.leaves(program.values))
        if step == dispatched and not lost:
            return program.values
        if self._kept is not None and self._kept[0] == step and not lost:
            return {**program.values, **self._kept[1]}
        if lost or self._kept is not None:
            raise RuntimeError(f"the model's values at step {step} are lost: the run failed within a chunk")
        raise RuntimeError(
            f"the model's values at step {step} are gone: the program holds those of step {dispatched} by now. Set "
            "reads_model = True in the callback's class, which copies them each chunk, or read them at a boundary, "
            "as in on_validation_end (boundaries() of a callback adds some). After a failure within a chunk they are "
            "lost"
        )


def _of_model(program: Program, values: dict[str, Any]) -> dict[str, Any]:
    mine = {*program.parameters, LIVE}
    return {name: value for name, value in values.items() if name in mine or name.startswith(MODEL_PREFIX)}


class View:
    """A run's compiled programs on certain values of its model; one for each shape of batch, made once a run."""

    def __init__(self, program: Program, values: dict[str, Any], encode: Callable, *, one_device: bool):
        self._program, self._values, self._encode, self._one_device = program, values, encode, one_device

    @property
    def module(self) -> Module:
        return self._program.module

    def evaluate(self, batch: Any, index: int) -> Pending:
        with self._reading():
            return self._program.evaluate(batch, index, self._values, first=self._one_device)

    def predict(self, batch: Any, index: int) -> Pending:
        program = self._program

        def step(root, index, batch):
            set_key(fold_in(root, PREDICT, index))
            return program.learner.predict(phases_of(program.module, batch))

        with self._reading():
            return Pending(program.read("predict", step, batch, index, values=self._values, first=True))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        objective = self._program.objective
        before, objective.encode = objective.encode, self._encode
        try:
            with seeded(0):  # the caller's random numbers stay as they are
                yield
        finally:
            objective.encode = before
