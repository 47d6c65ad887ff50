"""Reading a model: metrics and predictions, without what only training needs (an optimizer, a rule, targets)."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint.load import build, load_into, refuse_other_parameters, require_module
from ..checkpoint.store import Saved
from ..core.functional import Functional
from ..core.metrics import Mean, Pending, plain, tag
from ..core.module import Module, Objective, Phases, phases_of
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
from ..data.batch import BATCH_FIRST, stated_layout, time_major
from ..data.eval_loader import alike, one_pass
from ..data.iterator import DataModule, as_data, encodes, set_up, warn_of_layout
from ..engine.nonfinite import Watched
from ..engine.steps import EVALUATE, PREDICT
from ..errors import DataError
from ..strategies import Strategy
from ..strategies.base import Network, choose_batching, input_of
from ..strategies.bptt import BPTTLearner
from ..strategies.padding import inert
from ..utils.logging import log

Kind = Literal["evaluate", "predict"]


class Evaluates(Protocol):
    @property
    def module(self) -> Module: ...

    def evaluate(self, batch: Any, index: int) -> Pending: ...


class Predicts(Protocol):
    def predict(self, batch: Any, index: int) -> Pending: ...


@dataclass
class Programs:
    """The compiled programs that read one module, and a snapshot of what they were traced from."""

    module: weakref.ref[Module]
    traced_from: Any = None
    compiled: dict[Any, Any] = field(default_factory=dict)


class Reader:
    """A module as it is during one call, and the programs that read it, one for each kind of batch.

    Raises what the module's own steps raise, and ValueError or TypeError with one line for a batch that does not fit.
    """

    def __init__(self, module: Module, strategy: Strategy, encode: Callable, kind: Kind, seed: int, programs: Programs):
        self._module, self._strategy, self._encode = module, strategy, encode
        self._kind: Kind = kind
        self._root = jax.random.key(seed)
        self._programs = programs
        if programs.traced_from != self._snapshot():
            programs.compiled.clear()

    @property
    def module(self) -> Module:
        return self._module

    def evaluate(self, batch: Any, index: int) -> Pending:
        """Metrics of one batch, ``Mean`` by name."""
        return self._run(batch, index)

    def predict(self, batch: Any, index: int) -> Pending:
        """Outputs over the learning phase of one batch, ``(T_l, B, ...)``."""
        return self._run(batch, index)

    def prepare(self, batch: Any) -> Any:
        """The program for batches of this kind, compiled where there is none."""
        key, compiled = (self._kind, kind_of(batch)), self._programs.compiled
        if key not in compiled:
            with brainstate.environ.context(**self._module.environ, fit=False):
                compiled[key] = self._compile(batch)
            self._programs.traced_from = self._snapshot()
        return compiled[key]

    def _run(self, batch: Any, index: int) -> Pending:
        program = self.prepare(batch)
        return Pending(program(self._values, self._root, np.int32(index), batch))

    def _snapshot(self) -> Any:
        return snapshot((self._module, dict(self._module.environ), self._encode, brainstate.environ.all()))

    def _compile(self, batch: Any) -> Any:
        module, model = self._module, self._module.model
        kind = self._kind
        drop_weak_types(parameters(model).values())
        objective = Objective(module, self._encode)
        phases = phases_of(module, batch)
        wanted = _batching(self._strategy)
        batching = choose_batching(wanted, model, input_of(objective, phases, kind), phases.sizes[2])
        learner = BPTTLearner(objective, Network(model, batching))
        named = _named(model)
        drop_weak_types([*named.values(), *learner.short_term_states()])

        def read(phases: Phases) -> Any:
            if kind == "predict":
                return learner.predict(phases)
            return learner.evaluate(inert(phases, objective.evaluate, learner.network, carried=False))

        def step(root, index, batch):
            set_key(fold_in(root, EVALUATE if kind == "evaluate" else PREDICT, index))
            return read(phases_of(module, batch))

        example = self._root, jnp.int32(0), batch
        functional = Functional(step, named, learner.short_term_states(), *example)
        values = {name: with_strong_types(state.value) for name, state in named.items()}
        return jax.jit(lambda values, *args: functional(values, *args)[1]).lower(values, *example).compile()

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The model's values when it is first read, as device arrays."""
        return {name: with_strong_types(state.value) for name, state in _named(self._module.model).items()}


def _named(model: Any) -> dict[str, State]:
    return {**parameters(model), **{f"model/{name}": state for name, state in long_term_states(model).items()}}


def _batching(strategy: Strategy) -> Any:
    """The batching that the strategy would train with, as far as it says."""
    required_batching = getattr(strategy, "lanes", "either")
    return getattr(strategy, "batching", "auto") if required_batching == "either" else required_batching


class Readers:
    """What one ``Fit`` remembers of the modules that it has read or trained, as long as they live."""

    def __init__(self, seed: int):
        self.seed = seed
        """The seed whose values a module has after a run."""
        self._programs: dict[int, Programs] = {}
        self._encoded: dict[int, tuple[weakref.ref[Module], str]] = {}
        self.told: set[str] = set()  # warnings of a layout: one call a batch must not repeat them

    def trained(self, module: Module, data: DataModule) -> None:
        """Remember whether a module is trained on inputs that its data encodes."""
        number = id(module)
        forget = lambda _: self._encoded.pop(number, None)  # noqa: E731
        if encodes(data):
            self._encoded[number] = weakref.ref(module, forget), type(data).__name__
        else:
            self._encoded.pop(number, None)

    def encoding(self, module: Module) -> str | None:
        """The name of the data that encoded the inputs that the module was trained on."""
        return self._encoded.get(id(module), (None, None))[1]

    def programs(self, module: Module) -> Programs:
        """Those of a module; a module that has been changed since then needs new ones, which ``Reader`` finds out."""
        number = id(module)
        if number not in self._programs:
            forget = lambda _: self._programs.pop(number, None)  # noqa: E731
            self._programs[number] = Programs(weakref.ref(module, forget))
        return self._programs[number]


def read(readers: Readers, module: Module, strategy: Strategy, data: Any, name: str, *, kind: Kind, seed: int,
         saved: Saved | None, batch_first: bool | None) -> tuple[Any, Iterator[Any], bool | None]:  # fmt: skip
    """A reader of a module, which is given a checkpoint's values first; one pass over the batches of its data called
    ``name``, or of bare batches; and the layout that is stated for them.

    A module that a run under way trains is read by that run's programs, with the values of its present step; bare
    batches then have the layout of the run's own, unless another one is stated, and their encoding.
    """
    require_module(module)
    live, bare = run_of(module), not isinstance(data, DataModule)
    data = as_data(data, batch_first=batch_first)
    set_up(data)
    source = data.train_data() if bare else getattr(data, f"{name}_data")()
    if source is None:
        raise ValueError(f"{type(data).__name__} has no {name} data: define {name}_data()")
    layout = stated_layout(source, name, data.batch_first)
    if live is not None:
        if saved is not None:
            refuse_in_use(module, f"a checkpoint (step {saved.step}) cannot be loaded")
        view, batches = live.view(source, None if bare else data.encode), one_pass(source, name, layout)
        first = next(batches)
        layout, batches = stated_layout(first, name, layout), itertools.chain([first], batches)
        if layout is None and bare:
            layout, batches = live.batch_first, map(time_major, batches) if live.batch_first else batches
        return view, alike(batches, name, layout) if kind == "evaluate" else batches, layout
    batches = one_pass(source, name, layout)
    first = next(batches)
    warn_of_layout(data, first, layout, readers.told)
    if bare and not encodes(data) and (owner := readers.encoding(module)):
        log.warning(
            f"{name} data: bare batches reach the model as they are, but {type(module).__name__} was trained on inputs "
            f"that {owner}.encode encodes: give them by {name}_data() of such a data module, or encode them yourself"
        )
    build(module, seed)
    if saved is not None:
        refuse_other_parameters(module, saved)  # before the model meets data that may be of other sizes
    reader = Reader(module, strategy, data.encode if encodes(data) else as_it_is, kind, seed, readers.programs(module))
    reader.prepare(first)
    if saved is not None:
        load_into(module, saved)
    batches = itertools.chain([first], batches)
    layout = stated_layout(first, name, layout)
    return reader, alike(batches, name, layout) if kind == "evaluate" else batches, layout


def as_it_is(x: Any) -> Any:
    """The encoding of data that has none."""
    return x


def evaluate(program: Evaluates, batches: Iterable[Any], prefix: str,
             interrupted: Callable[[], bool] = lambda: False,
             batch_first: bool | None = None) -> dict[str, Any] | None:  # fmt: skip
    """Weighted means over batches, ``{"val/loss": ...}``, of seeds side by side also
    ``{"seeds/val/loss": [...]}``; None where ``interrupted`` said so on the way. Warns where one is not finite, with a
    place in the data in the layout ``batch_first``."""
    total: dict[str, Mean] = {}
    watched = Watched(program.module, prefix, batch_first)
    late: list[tuple[int, Any, Pending]] = []  # fetched when the next one is under way

    def fetch(index: int, batch: Any, pending: Pending) -> None:
        found = pending.fetch()
        watched.look(index, batch, found)
        for name, mean in found.items():
            mean = Mean(np.asarray(mean.num, np.float64), np.asarray(mean.weight, np.float64))
            total[name] = total[name].merge(mean) if name in total else mean

    for index, batch in enumerate(batches):
        if interrupted():
            return None
        late.append((index, batch, program.evaluate(batch, index)))
        if len(late) > 1:
            fetch(*late.pop(0))
    for one in late:
        fetch(*one)
    watched.end(total)
    with np.errstate(invalid="ignore"):  # NaN where nothing weighs anything
        return {tag(prefix, name): plain(mean.num / mean.weight) for name, mean in total.items()}


def predict(reader: Predicts, batches: Iterable[Any], batch_first: bool | None) -> Any:
    """Outputs of every batch, joined along the sequences: ``(T_l, N, ...)``, or ``(N, T_l, ...)`` with the batch first.

    Raises:
        DataError: The outputs cannot be joined.
    """
    outputs: list[Any] = []
    for index, batch in enumerate(batches):
        outputs.append(reader.predict(batch, index).fetch())
        _refuse_apart(outputs[0], outputs[-1], index, batch_first)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *outputs)
    return time_major(joined) if batch_first else joined  # the swap is its own inverse


def _refuse_apart(first: Any, other: Any, index: int, batch_first: bool | None) -> None:
    """Raise DataError for outputs that cannot be joined along the sequences."""
    if not jax.tree.leaves(other):
        raise DataError("predict_step returned no array; expected (B, ...), a value for each sequence")
    for leaf in jax.tree.leaves(other):
        if leaf.ndim < 2:
            raise DataError(
                f"predict_step returned an array of shape {leaf.shape[1:]} in a time step; expected (B, ...), a value "
                "for each sequence"
            )
    time, expected = (jax.tree.leaves(outputs)[0].shape[0] for outputs in (other, first))
    if time != expected:
        raise DataError(
            f"predict data: batch {index} has outputs over {time} time steps, batch 0 over {expected}, and outputs are "
            "joined along the sequences: call predict once for each length"
            + (f", or {BATCH_FIRST}" if batch_first is None and time < expected else ""),
            index,
        )
