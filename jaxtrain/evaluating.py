"""Reading a model: metrics and predictions, without what only training needs (an optimizer, a rule, targets)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, Protocol

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from .alone import refuse_in_use, run_of
from .checkpoint import Saved
from .data import DataModule
from .loading import build, load_into, refuse_other_parameters, require_module
from .metrics import Mean, Pending, plain, tag
from .module import Module, Objective, Phases, check_phases
from .passes import alike, one_pass
from .program import EVALUATE, PREDICT
from .state import Functional, fold_in, kind_of, lasting, parameters, set_key, strengthen, strong
from .strategies import Strategy
from .strategies.base import Network, choose_batching, input_of
from .strategies.bptt import BPTTLearner

Kind = Literal["evaluate", "predict"]


class Evaluates(Protocol):
    def evaluate(self, batch: Any, index: int) -> Pending: ...


class Predicts(Protocol):
    def predict(self, batch: Any, index: int) -> Pending: ...


class Reader:
    """Compiled programs that evaluate, or predict with, a module's model as it is; one for each shape of batch.

    Raises what the module's own steps raise, and ValueError or TypeError with one line for a batch that does not fit.
    """

    def __init__(self, module: Module, strategy: Strategy, encode: Callable, example: Any, *, kind: Kind, seed: int):
        self._module, self._kind = module, kind
        self._root = jax.random.key(seed)
        self._executables: dict[Any, Any] = {}
        with self._environ():
            strengthen(parameters(module.model).values())
            objective = Objective(module, encode)
            phases = check_phases(module.phases(example))
            wanted = _batching(strategy)
            batching = choose_batching(wanted, module.model, input_of(objective, phases, kind), phases.sizes[2])
            self._learner = BPTTLearner(objective, Network(module.model, batching))
            self._named = {
                **parameters(module.model),
                **{f"model/{name}": state for name, state in lasting(module.model).items()},
            }
            strengthen([*self._named.values(), *self._learner.scratch()])

    def evaluate(self, batch: Any, index: int) -> Pending:
        """Metrics of one batch, ``Mean`` by name."""
        return self._run(batch, index, EVALUATE, self._learner.evaluate)

    def predict(self, batch: Any, index: int) -> Pending:
        """Outputs over the learning phase of one batch, ``(T_l, B, ...)``."""
        return self._run(batch, index, PREDICT, self._learner.predict)

    def _run(self, batch: Any, index: int, stream: int, read: Callable[[Phases], Any]) -> Pending:
        def step(root, index, batch):
            set_key(fold_in(root, stream, index))
            return read(check_phases(self._module.phases(batch)))

        key = (stream, kind_of(batch))
        if key not in self._executables:
            with self._environ():
                example = self._root, jnp.int32(0), batch
                functional = Functional(step, self._named, self._learner.scratch(), *example)
                result = lambda values, *args: functional(values, *args)[1]  # noqa: E731
                self._executables[key] = jax.jit(result).lower(self._values, *example).compile()
        return Pending(self._executables[key](self._values, self._root, np.int32(index), batch))

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The model's values when it is first read, as device arrays."""
        return {name: strong(state.value) for name, state in self._named.items()}

    def _environ(self):
        return brainstate.environ.context(**self._module.environ, fit=False)


def _batching(strategy: Strategy) -> Any:
    """The batching that the strategy would train with, as far as it says."""
    lanes = getattr(strategy, "lanes", "either")
    return getattr(strategy, "batching", "auto") if lanes == "either" else lanes


def read(module: Module, strategy: Strategy, data: DataModule, source: Any, name: str, *, kind: Kind, seed: int,
         saved: Saved | None, bare: bool) -> tuple[Any, Iterator[Any]]:  # fmt: skip
    """A reader of a module, which is given a checkpoint's values first, and one pass over a source of batches.

    A module that a run under way trains is read by that run's programs, with the values of its present step. ``bare``:
    the batches came without a data module.
    """
    require_module(module)
    live = run_of(module)
    if source is None:
        raise ValueError(f"{type(data).__name__} has no {name} data: define {name}_data()")
    if live is not None:
        if saved is not None:
            refuse_in_use(module, f"a checkpoint (step {saved.step}) cannot be loaded")
        reader, batches = live.view(source, None if bare else data.encode), one_pass(source, name)
        return reader, alike(batches, name) if kind == "evaluate" else batches
    batches = one_pass(source, name)
    first = next(batches)
    build(module, seed)
    if saved is not None:
        refuse_other_parameters(module, saved)  # before the model meets data that may be of other sizes
    reader = Reader(module, strategy, data.encode, first, kind=kind, seed=seed)
    if saved is not None:
        load_into(module, saved)
    batches = itertools.chain([first], batches)
    return reader, alike(batches, name) if kind == "evaluate" else batches


def evaluate(program: Evaluates, batches: Iterable[Any], prefix: str,
             interrupted: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:  # fmt: skip
    """Weighted means over batches, ``{"val/loss": ...}``, of seeds side by side also
    ``{"lanes/val/loss": [...]}``; None where ``interrupted`` said so on the way."""
    pendings = []
    for index, batch in enumerate(batches):
        if interrupted():
            return None
        pendings.append(program.evaluate(batch, index))
    total: dict[str, Mean] = {}
    for pending in pendings:
        for name, mean in pending.fetch().items():
            mean = Mean(np.asarray(mean.num, np.float64), np.asarray(mean.weight, np.float64))
            total[name] = total[name].merge(mean) if name in total else mean
    with np.errstate(invalid="ignore"):  # NaN where nothing weighs anything
        return {tag(prefix, name): plain(mean.num / mean.weight) for name, mean in total.items()}


def predict(reader: Predicts, batches: Iterable[Any]) -> Any:
    """Outputs of every batch, joined along the lanes: ``(T_l, N, ...)``."""
    outputs = [reader.predict(batch, index).fetch() for index, batch in enumerate(batches)]
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *outputs)
