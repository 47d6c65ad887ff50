"""Reading a module: compiled programs for metrics, predictions and the like, without what only training needs.

An optimizer, a learning rule and (for predictions) targets are not needed.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint.load import build, load_into, refuse_other_parameters, require_module
from ..checkpoint.store import Saved
from ..core.functional import Functional
from ..core.metrics import Pending
from ..core.module import Module, Phases
from ..core.objective import Objective, phases_of
from ..core.ownership import refuse_in_use, run_of
from ..core.snapshots import snapshot
from ..core.state import (
    State,
    drop_weak_types,
    fold_in,
    kind_of,
    long_term_states,
    parameters,
    set_key,
    with_strong_types,
)
from ..data.batch import stated_layout, time_major
from ..data.datamodule import DataModule, as_data, encodes, named_sources, set_up, warn_of_layout
from ..data.eval_loader import alike, one_pass, shapes_of
from ..engine.steps import EVALUATE, PREDICT
from ..errors import DataError
from ..strategies import OnlineRule, Strategy
from ..strategies.base import Learner, Network, choose_batching
from ..strategies.bptt import BPTTLearner
from ..strategies.inputs import input_of
from ..strategies.padding import inert
from ..utils.logging import log


@dataclass(frozen=True)
class What:
    """What is read of each batch.

    Attributes:
        kind: Which step of the module runs.
        compute: ``compute(learner, phases, root, index)``, traced; returns arrays. Random numbers derive from the root
            key and the number of the batch.
        key: Identifies the program among those of one module.
    """

    kind: Literal["evaluate", "predict"]
    compute: Callable[[Learner, Phases, Any, Any], Any]
    key: Hashable

    def step(self, learner: Learner, module: Module) -> Callable[[Any, Any, Any], Any]:
        """The traced function of a root key, the number of a batch and the batch."""

        def step(root: Any, index: Any, batch: Any) -> Any:
            set_key(fold_in(root, EVALUATE if self.kind == "evaluate" else PREDICT, index))
            return self.compute(learner, phases_of(module, batch), root, index)

        return step


def _metrics(learner: Learner, phases: Phases, root: Any, index: Any) -> Any:
    return learner.evaluate(inert(phases, learner.objective.evaluate, learner.network, carried=False))


METRICS = What("evaluate", _metrics, "evaluate")
PREDICTIONS = What("predict", lambda learner, phases, root, index: learner.predict(phases), "predict")


@dataclass
class ModuleCache:
    """What one ``Fit`` remembers of a module."""

    module: weakref.ref[Module]
    """Removes the entry when the module is deleted."""
    traced_from: Any = None
    """A snapshot of what the programs were traced from."""
    compiled: dict[Any, Any] = field(default_factory=dict)
    """Compiled programs, by kind and by shapes of the batch."""
    encoded_by: str | None = None
    """Class of the data that encoded the inputs that the module was trained on, or None."""
    batch_first: bool | None = None
    """Layout of the data that the module was trained on, if it is stated."""


class Readers:
    """What one ``Fit`` remembers of the modules that it has read or trained, as long as they exist."""

    def __init__(self, seed: int):
        self.seed = seed
        """The seed whose values a module has after a run."""
        self._modules: dict[int, ModuleCache] = {}
        self.logged: set[str] = set()
        """Warnings about a layout that are not repeated, for example if ``predict`` is called for each batch."""

    def of(self, module: Module) -> ModuleCache:
        """The cache of a module. Programs of a module that has changed since are discarded by ``Reader``."""
        number = id(module)
        if number not in self._modules:
            forget = lambda _: self._modules.pop(number, None)  # noqa: E731
            self._modules[number] = ModuleCache(weakref.ref(module, forget))
        return self._modules[number]

    def trained(self, module: Module, data: DataModule, batch_first: bool | None) -> None:
        """Remember the layout of the data that a module is trained on, and whether the data encodes its inputs."""
        cache = self.of(module)
        cache.encoded_by, cache.batch_first = type(data).__name__ if encodes(data) else None, batch_first


class Reader:
    """A module with the values that it has at ``hold``, and programs that read it, one for each kind of batch.

    Its methods raise the errors of the module's steps, and ValueError or TypeError for a batch that does not fit.
    """

    def __init__(self, module: Module, strategy: Strategy, encode: Callable, what: What, seed: int, cache: ModuleCache):
        self.module, self._strategy, self._encode, self._what = module, strategy, encode, what
        self._root = jax.random.key(seed)
        self._cache = cache
        if cache.traced_from != self._snapshot():
            cache.compiled.clear()

    def hold(self) -> None:
        """Take the values that the model has now."""
        self._values = {name: with_strong_types(state.value) for name, state in _named(self.module.model).items()}

    def evaluate(self, batch: Any, index: int) -> Pending:
        """What is read of one batch: metrics by name, or arrays ``(T, B, ...)``."""
        program = self.prepare(batch)
        return Pending(program(self._values, self._root, np.int32(index), batch))

    predict = evaluate

    def prepare(self, batch: Any) -> Any:
        """The program for batches like this one. It is compiled if there is none yet."""
        key, compiled = (self._what.key, kind_of(batch)), self._cache.compiled
        if key not in compiled:
            with brainstate.environ.context(**self.module.environ, fit=False):
                compiled[key] = self._compile(batch)
            self._cache.traced_from = self._snapshot()
        return compiled[key]

    def _snapshot(self) -> Any:
        return snapshot((self.module, dict(self.module.environ), self._encode, brainstate.environ.all()))

    def _compile(self, batch: Any) -> Any:
        module, model, what = self.module, self.module.model, self._what
        drop_weak_types(parameters(model).values())
        objective = Objective(module, self._encode)
        phases = phases_of(module, batch)
        wanted = batching_of(self._strategy)
        batching = choose_batching(wanted, model, input_of(objective, phases, what.kind), phases.sizes[2])
        learner = BPTTLearner(objective, Network(model, batching))
        named = _named(model)
        drop_weak_types([*named.values(), *learner.short_term_states()])
        example = self._root, jnp.int32(0), batch
        functional = Functional(what.step(learner, module), named, learner.short_term_states(), *example)
        values = {name: with_strong_types(state.value) for name, state in named.items()}
        return jax.jit(lambda values, *args: functional(values, *args)[1]).lower(values, *example).compile()


def _named(model: Any) -> dict[str, State]:
    return {**parameters(model), **{f"model/{name}": state for name, state in long_term_states(model).items()}}


def batching_of(strategy: Strategy) -> Any:
    """The batching with which the strategy would train, as far as the strategy determines it."""
    required = strategy.works_in()[0] if isinstance(strategy, OnlineRule) else "either"
    return getattr(strategy, "batching", "auto") if required == "either" else required


def read(readers: Readers, module: Module, strategy: Strategy, data: Any, name: str, *, what: What, seed: int | None,
         saved: Saved | None, batch_first: bool | None,
         source: Any = None) -> tuple[Any, Iterator[Any], bool | None]:  # fmt: skip
    """Prepare to read a module.

    A module that a run in progress trains is read by the programs of that run, with the values of its current step.
    Bare batches then have the encoding of the run's data. Unless another layout is stated, they have the layout of the
    data of that run, or of the last run in which the ``Fit`` trained the module.

    Args:
        readers: What the ``Fit`` remembers of modules.
        module: The module. It is built if necessary.
        strategy: The strategy of the ``Fit``, which determines the batching.
        data: A data module, or a source of bare batches.
        name: "val", "test" or "predict"; of one of several named sets, such as "val/clean".
        what: What is computed of each batch.
        seed: Seed of random numbers; None: that of the ``Fit``, or of the run.
        saved: A checkpoint whose values the module receives first, or None.
        batch_first: Layout of bare batches, or None.
        source: The data module's source of this name, or None to ask for its predict data.

    Returns:
        An object with ``evaluate`` and ``predict``, one pass over the batches, and their layout if it is stated.
    """
    require_module(module)
    live, bare = run_of(module), not isinstance(data, DataModule)
    data = as_data(data, batch_first=batch_first)
    set_up(data)
    if source is None:
        source = data.train_data() if bare else _given(data, name)
    if what.kind == "predict" and (dropped := getattr(source, "dropped", 0)):
        raise DataError(
            f"predict data: its batches leave out {dropped} sequences; give {type(source).__name__} last='pad'"
        )
    if live is not None and saved is not None:
        refuse_in_use(module, f"a checkpoint (step {saved.step}) cannot be loaded")
    reader = None if live is None else live.view(source, None if bare else data.encode, what, seed)
    layout = stated_layout(source, name, data.batch_first)
    batches = one_pass(source, name, layout)
    first, cache = next(batches), readers.of(module)
    layout = stated_layout(first, name, layout)
    if bare and layout is None:
        layout = cache.batch_first if live is None else live.batch_first
        first, batches = (time_major(first), map(time_major, batches)) if layout else (first, batches)
    batches = itertools.chain([first], batches)
    if live is None:
        warn_of_layout(data, first, layout, readers.logged)
        if bare and not encodes(data) and cache.encoded_by is not None:
            log.warning(
                f"{name} data: bare batches are passed to the model without encoding, but {type(module).__name__} was "
                f"trained on inputs that {cache.encoded_by}.encode encodes: pass a data module of this class with "
                f"{name}_data(), or encode the batches"
            )
        build(module, readers.seed)
        if saved is not None:
            refuse_other_parameters(module, saved)  # before the model receives data, whose sizes may not match
        encode, own = data.encode if encodes(data) else _identity, readers.seed if seed is None else seed
        reader = Reader(module, strategy, encode, what, own, cache)
        reader.prepare(first)
        if saved is not None:
            load_into(module, saved)
        reader.hold()
    if what.kind == "evaluate":
        batches = alike(batches, name, layout, shapes_of(source, name))
    return reader, batches, layout


def prefixes(data: Any, name: str, batch_first: bool | None) -> dict[str, tuple[Any, Any]]:
    """The sets of a validation or test by the prefix of their metrics, as ``read`` takes them: data and source.

    Raises:
        ValueError: A data module has no such data.
    """
    if not isinstance(data, DataModule):
        given = named_sources(data, name) if isinstance(data, dict | list | tuple) else {name: data}
        return {prefix: (each, None) for prefix, each in given.items()}
    set_up(as_data(data, batch_first=batch_first))
    return {prefix: (data, source) for prefix, source in named_sources(_given(data, name), name).items()}


def _given(data: DataModule, name: str) -> Any:
    """What a data module has of a name. It is asked once, because it may read files for the answer."""
    source = getattr(data, f"{name}_data")()
    if source is None:
        instead = ", or pass data.val_data()" if name == "predict" else ""
        raise ValueError(f"{type(data).__name__} has no {name} data: define {name}_data(){instead}")
    return source


def _identity(x: Any) -> Any:
    return x
