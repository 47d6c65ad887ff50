"""The model of a run in progress, as callbacks read it: with the values of the current step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax

from ..callbacks.run import Run
from ..checkpoint.load import MODEL_PREFIX
from ..core.metrics import Pending
from ..core.ownership import alone, runs
from ..core.state import seeded, states_of, with_strong_types
from ..engine.program import Program
from ..engine.seeds import LIVE
from ..errors import DataError
from .progress import Progress
from .reader import What
from .workload import Workload


class Live:
    """The model's values at ``run.step``.

    The loop dispatches a chunk before it delivers the metrics of the previous one, and the program overwrites its
    values. So the values of ``run.step`` exist while no chunk is in flight, for example at a boundary. Otherwise the
    loop keeps a copy (``keep``) if a callback sets ``reads_model = True``.
    """

    def __init__(self, workload: Workload, run: Run, progress: Progress):
        self._workload, self._run, self._progress = workload, run, progress
        self._kept: tuple[int, dict[str, Any]] | None = None

    def keep(self) -> None:
        """Copy the model's current values, before the next chunk overwrites them."""
        program = self._workload.program
        own = {name: with_strong_types(value) for name, value in _of_model(program, program.values).items()}
        self._kept = self._progress.dispatched, program.devices.place(own)

    def params(self) -> dict[str, Any]:
        """A host copy of the parameters."""
        with alone("run.params"):
            return self._workload.program.host_parameters(self._values())

    def show(self) -> None:
        """Write the current values to the module's model, while the run is in progress."""
        if self in runs:
            with alone("run.module"):
                program = self._workload.program
                program.write_back(_of_model(program, self._values()))

    def view(self, source: Any, encode: Callable | None, what: What, seed: int | None) -> View:
        """The run's programs, to read batches of a source.

        Args:
            source: The source.
            encode: Encoding of its inputs, or None for that of the run's data.
            what: What is read of each batch.
            seed: Seed of random numbers; None: that of the run.

        Raises:
            DataError: The run reads this source itself, in order.
        """
        iterator = self._workload.iterator
        if iterator.reads(source):
            raise DataError(
                f"{iterator.name} data: the run reads this {type(source).__name__}, and another pass would move its "
                "position: pass another source of the same data"
            )
        # With several processes, perhaps only one of them reads. It then uses one of its own devices.
        several, encode = self._workload.processes > 1, encode or self._workload.data.encode
        return View(self._workload.program, self._values(), encode, what, seed, one_device=several)

    @property
    def batch_first(self) -> bool | None:
        """Layout of the run's train data, or None if it is not stated."""
        return self._workload.batch_first

    def trains(self, module: Any) -> bool:
        """Whether the run trains this module."""
        return module is self._run.own_module

    def uses(self, callback: Any) -> bool:
        """Whether this is a callback of the run."""
        return any(callback is own for own in self._run.callbacks)

    def shares(self, module: Any) -> bool:
        """Whether the run trains a state of the module's model."""
        model = getattr(module, "model", None)
        if not isinstance(model, brainstate.nn.Module):
            return False
        return not self._workload.program.state_ids.isdisjoint(id(state) for state in states_of(model).values())

    def describe(self) -> str:
        return f"a run in progress, at step {self._run.step}, trains {type(self._run.own_module).__name__}"

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
            f"the model's values at step {step} are overwritten: the program has those of step {dispatched}. Set "
            "reads_model = True in the callback's class, which copies them before each chunk, or read them at a "
            "boundary, for example in on_validation_end (a callback's boundaries() adds more). After a failure within "
            "a chunk they are lost"
        )


def _of_model(program: Program, values: dict[str, Any]) -> dict[str, Any]:
    """The values of the model, without those of the optimizer and the rule."""
    names = {*program.parameters, LIVE}
    return {name: value for name, value in values.items() if name in names or name.startswith(MODEL_PREFIX)}


class View:
    """A run's compiled programs with fixed values of its model. A program is compiled once per run and batch shape."""

    def __init__(self, program: Program, values: dict[str, Any], encode: Callable, what: What, seed: int | None, *,
                 one_device: bool):  # fmt: skip
        self._program, self._values, self._encode, self._what = program, values, encode, what
        self._root = None if seed is None else jax.random.key(seed)
        self._one_device = one_device
        self.module = program.module

    def evaluate(self, batch: Any, index: int) -> Pending:
        with self._reading():
            return self._program.evaluate(batch, index, self._values, first=self._one_device)

    def predict(self, batch: Any, index: int) -> Pending:
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self._values)):
            raise RuntimeError(
                "the run has trained on since this prediction began: read all of its batches within one event"
            )
        step = self._what.step(self._program.learner, self.module)
        with self._reading():
            read = self._program.read(
                self._what.key, step, batch, index, values=self._values, root=self._root, first=True
            )
            return Pending(read)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        objective = self._program.objective
        before, objective.encode = objective.encode, self._encode
        try:
            with seeded(0):  # the caller's random numbers do not change
                yield
        finally:
            objective.encode = before
