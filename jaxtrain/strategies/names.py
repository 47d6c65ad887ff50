"""The registry of strategies: names and fields for the command line, known without importing JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..utils.coerce import coerce, did_you_mean, field_types

if TYPE_CHECKING:
    from .base import Strategy


@dataclass(frozen=True)
class Field:
    """A strategy's field as the command line shows it."""

    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Entry:
    """Where a strategy lives (module in this package, class) and its fields, name -> Field; ``object`` is the class of
    a strategy that was registered from outside."""

    name: str
    module: str
    cls: str
    help: str
    fields: Mapping[str, Field]
    object: Any = None

    def check(self, fields: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """The fields with their types verified. Raises ConfigError for an unknown one or a wrong type."""
        where = where or f"strategy {self.name!r}"
        checked = {}
        for given, value in fields.items():
            name = given.replace("-", "_")
            if name not in self.fields:
                if self.name == "bptt" and name in TBPTT:  # what one looks for there is truncated BPTT
                    raise ConfigError(f"{where}: no field {given!r}; strategy 'tbptt' (truncated BPTT) has it")
                raise ConfigError(f"{where}: no field {given!r}; {did_you_mean(given, self.fields)}")
            checked[name] = coerce(value, self.fields[name].type, f"{where}: {name}")
        return checked


BATCHING = Field(Literal["auto", "batched", "vmap"], "auto", "states with a batch axis, or a model mapped over lanes")
REMAT = Field(bool, False, "recompute activations instead of storing them: less memory, more time")
CADENCE = {
    "update_every": Field(Literal["sequence"] | int, "sequence", "scored time steps an update, or sequence"),
    "carry": Field(Literal["reset", "carry"], "reset", "fresh hidden states and traces for a sequence, or go on"),
    "batching": BATCHING,
}
VJP = Literal["multi-step", "single-step"]
STEPPED = {
    **CADENCE,
    "vjp": Field(VJP, "multi-step", "what a loss sends back: through the window or time step, or to the hidden state"),
}
WINDOWED = {
    **STEPPED,
    "window": Field(int, 1, "scored time steps that are differentiated together"),
}
TBPTT = {**CADENCE, "window": Field(int, 10, "time steps that are differentiated together")}
DRTRL = {
    **WINDOWED,
    "engine": Field(Literal["auto", "reverse", "trace"], "auto", "going back in cut time steps, or a trace carried"),
    "segment": Field(int | Literal["auto", "sequence"], "auto", "time steps whose activations are kept at once"),
    "readout_memory": Field(bool, False, "credit also through what a leaky readout, a sum or a delay remembers"),
}
PP_PROP = {
    **WINDOWED,
    "decay": Field(float | None, None, "of the trace's means, in [0, 1); 0.9 where no rank is given either"),
    "rank": Field(int | None, None, "time steps instead of a decay"),
}
EPROP = {
    **CADENCE,
    "vjp": Field(VJP, "single-step", "what a loss sends back: through the time step, or to the hidden state alone"),
    "feedback": Field(Literal["symmetric", "random"], "symmetric", "the loss's own gradient, or a fixed random matrix"),
    "kappa": Field(float, 0.0, "low-pass filter of the trace, in [0, 1)"),
    "feedback_seed": Field(int, 0, "of the random matrix"),
}
SNAP = {**STEPPED, "n": Field(int, 2, "time steps within which a weight reaches a unit")}
THREE_FACTOR = {**CADENCE, "modulator": Field(str, "reward", "its sequence in Phases.extras")}
DNI = {
    **CADENCE,
    "fit_epochs": Field(int, 20, "passes over the first batch that fit the synthesiser"),
    "fit_lr": Field(float, 0.01, "rate of that fit"),
}
RECURSION = Literal["jacobian", "scalar_leak", "none"]
ETRACE = {
    **WINDOWED,
    **{
        name: Field(kind | None, None, "a coordinate of braintrace.ETraceConfig; a pair is input side, output side")
        for name, kind in (
            ("trace_factorization", Literal["per_param", "io_factorized"]),
            ("temporal_recursion", RECURSION | tuple[RECURSION, RECURSION]),
            ("recurrence_scope", Literal["diagonal", "coupled", "sparse_n"]),
            ("learning_signal", Literal["symmetric", "random_feedback"]),
            ("trace_filter", Literal["none", "kappa"]),
            ("decay", float | tuple[float, float]),
            ("kappa", float),
            ("sparse_n", int),
        )
    },
    "feedback_seed": Field(int, 0, "of the matrix of random_feedback"),
}

REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("bptt", "bptt", "BPTT", "backpropagation through time", {"remat": REMAT, "batching": BATCHING}),
        Entry("tbptt", "tbptt", "TBPTT", "truncated backpropagation through time", TBPTT),
        Entry("drtrl", "drtrl", "DRTRL", "diagonal RTRL", DRTRL),
        Entry("pp_prop", "rules", "PPProp", "D-RTRL with a factored trace, ES-D-RTRL", PP_PROP),
        Entry("eprop", "rules", "EProp", "e-prop", EPROP),
        Entry("ostl_recurrent", "rules", "OSTLRecurrent", "OSTL with recurrent mixing, SnAp-1", STEPPED),
        Entry("ostl_feedforward", "rules", "OSTLFeedforward", "OSTL without the temporal term", WINDOWED),
        Entry("snap", "rules", "SnAp", "SnAp-n", SNAP),
        Entry("uoro", "rules", "UORO", "rank-one RTRL, unbiased for what has a trace", CADENCE),
        Entry("three_factor", "rules", "ThreeFactor", "the trace times a reward", THREE_FACTOR),
        Entry("dni", "dni", "DNI", "D-RTRL with synthetic gradients", DNI),
        Entry("etrace", "rules", "ETrace", "any other coordinate of braintrace", ETRACE),
        Entry("readout_only", "readout", "ReadoutOnly", "the control: a random recurrence", CADENCE),
    )
}
ALIASES = {"es_drtrl": "pp_prop"}
CLASSES = {entry.cls: entry.module for entry in REGISTRY.values()}
"""Where each class of this package's strategies lives."""
GROUP = "jaxtrain.strategies"
"""Entry points of this group name strategies of other packages."""


def available() -> list[str]:
    """Every name that ``lookup`` knows, aliases apart; asks installed packages without importing them."""
    return [*REGISTRY, *(point.name for point in entry_points(group=GROUP) if point.name not in REGISTRY)]


def register(cls: Any) -> Any:
    """Make a strategy class known by its ``name``: a decorator, for a strategy outside this package.

    The class is a frozen dataclass that extends ``Strategy``; its fields become options, those with ``init=False`` and
    those whose annotation cannot be looked up apart. A package that wants its
    strategy found without an import names it as an entry point of the group ``jaxtrain.strategies``. A class that is
    defined again (a cell of a notebook that runs twice) takes the place of the one before. Raises TypeError for what is
    no such class, ValueError for a name that is taken, or a field without a default.
    """
    from .base import Strategy  # whoever has made a strategy has imported it already

    name = getattr(cls, "name", None)
    kind = isinstance(cls, type) and issubclass(cls, Strategy) and is_dataclass(cls)
    settings: Any = getattr(cls, "__dataclass_params__", None)
    if not (kind and settings.frozen and isinstance(name, str)):
        raise TypeError(
            f"register({cls!r}): expected a frozen dataclass that extends Strategy, with a class attribute name"
        )
    if name in ALIASES or (name in REGISTRY and not _same_class(REGISTRY[name].object, cls)):
        raise ValueError(f"register({cls.__name__}): the name {name!r} is taken; choose another")
    hints, summary = field_types(cls), (cls.__doc__ or name).strip().splitlines()[0]
    defaults = {field.name: _default(cls, field) for field in fields(cls) if field.init}
    found = {name: Field(hints[name], default, "") for name, default in defaults.items() if name in hints}
    REGISTRY[name] = Entry(name, cls.__module__, cls.__name__, summary, found, cls)
    return cls


def _same_class(old: Any, new: type) -> bool:
    return old is not None and (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _default(cls: type, field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    raise ValueError(f"register({cls.__name__}): the field {field.name!r} has no default; a name alone must make one")


def lookup(name: str) -> Entry:
    """The entry of a strategy. Raises ConfigError (a ValueError) that lists the names for an unknown one, or where an
    installed package's entry point has another name than its class."""
    name = ALIASES.get(name, name)
    if name not in REGISTRY:
        for point in entry_points(group=GROUP, name=name):
            cls = register(point.load())
            if cls.name != name:
                raise ConfigError(
                    f"strategy {name!r}: its entry point loads {cls.__name__}, whose name is {cls.name!r}; the package "
                    "must give both the same name"
                )
    if name not in REGISTRY:
        raise ConfigError(f"unknown strategy {name!r}; {did_you_mean(name, available())}")
    return REGISTRY[name]


def make_strategy(name: str, **fields: Any) -> Strategy:
    """The strategy object for a name and its fields: `make_strategy("drtrl", window=3)`.

    Raises ConfigError (a ValueError) for an unknown name, an unknown field, or a value of the wrong type.
    """
    entry = lookup(name)
    fields = entry.check(fields)
    cls = entry.object or getattr(import_module(f"{__package__}.{entry.module}"), entry.cls)
    return cls(**fields)
