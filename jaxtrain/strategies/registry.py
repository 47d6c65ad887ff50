"""The registry of strategies. Neither importing this module nor looking up a strategy imports JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..errors import ConfigError
from ..utils.coerce import coerce, did_you_mean, field_types
from .specs.base import Strategy

REGISTRY: dict[str, str | type[Strategy]] = {
    "bptt": "bptt:BPTT",
    "tbptt": "bptt:TBPTT",
    "drtrl": "drtrl:DRTRL",
    "pp_prop": "drtrl:PPProp",
    "eprop": "braintrace_rules:EProp",
    "ostl_recurrent": "braintrace_rules:OSTLRecurrent",
    "ostl_feedforward": "braintrace_rules:OSTLFeedforward",
    "snap": "braintrace_rules:SnAp",
    "uoro": "braintrace_rules:UORO",
    "three_factor": "braintrace_rules:ThreeFactor",
    "dni": "braintrace_rules:DNI",
    "etrace": "etrace:ETrace",
    "readout_only": "bptt:ReadoutOnly",
}
"""For each name, ``"file in specs:class"`` or a registered class."""
ALIASES = {"es_drtrl": "pp_prop"}
BRAINTRACE = {"d_rtrl": "drtrl", "es_d_rtrl": "pp_prop", "etraceconfig": "etrace"}
"""Names in braintrace, in lower case, that differ from those of the classes here."""
GROUP = "jaxtrain.strategies"
"""The group of entry points in which other packages announce their strategies."""


def available() -> list[str]:
    """Return all names that ``lookup`` accepts, except aliases. Installed packages are found, but not imported."""
    return [*REGISTRY, *(point.name for point in entry_points(group=GROUP) if point.name not in REGISTRY)]


def register(cls: Any) -> Any:
    """Register a strategy under its ``name``. Use this function as a class decorator.

    The fields of the class become options, except fields with ``init=False`` and fields whose annotation cannot be
    resolved. If a package declares its strategy as an entry point of the group ``jaxtrain.strategies``, the strategy is
    found without an import. A class that is defined again, for example by a notebook cell that runs twice, replaces
    the previous one.

    Args:
        cls: A frozen dataclass that extends ``Strategy`` and has a class attribute ``name``. All fields need defaults.

    Returns:
        The same class.

    Raises:
        TypeError: ``cls`` is not such a class.
        ValueError: The name is taken, or a field has no default.

    Example::

        @jaxtrain.register
        @dataclass(frozen=True)
        class Mine(jaxtrain.strategies.Strategy):
            name: ClassVar[str] = "mine"

            def bind(self, objective, example): ...
    """
    name = getattr(cls, "name", None)
    # A subclass inherits the parameters of a base class that is a dataclass, so only its own count.
    settings: Any = (
        vars(cls).get("__dataclass_params__") if isinstance(cls, type) and issubclass(cls, Strategy) else None
    )
    if settings is None or not settings.frozen or not isinstance(name, str):
        raise TypeError(
            f"register({cls!r}): expected a frozen dataclass that extends Strategy, with a class attribute name; put "
            "@dataclass(frozen=True) below @register"
        )
    if any(field.name == "name" for field in fields(cls)):
        raise TypeError(f"register({cls.__name__}): name is a field; write name: ClassVar[str] = {name!r}")
    if name in ALIASES or (name in REGISTRY and not _same_class(REGISTRY[name], cls)):
        raise ValueError(f"register({cls.__name__}): the name {name!r} is taken; choose another")
    for field in fields(cls):
        if field.init and field.default is field.default_factory is MISSING:
            raise ValueError(
                f"register({cls.__name__}): the field {field.name!r} has no default; "
                "the strategy must be constructible without arguments"
            )
    REGISTRY[name] = cls
    return cls


def _same_class(old: Any, new: type) -> bool:
    """Whether ``new`` is a repeated definition of ``old``."""
    return isinstance(old, type) and (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def here(name: str) -> str | None:
    """The name here of an algorithm or a class, of braintrace or of jaxtrain; None if there is none.

    >>> here("ES_D_RTRL")
    'pp_prop'
    """
    classes = {spec.partition(":")[2].lower(): key for key, spec in REGISTRY.items() if isinstance(spec, str)}
    return {**{key: key for key in REGISTRY}, **classes, **BRAINTRACE}.get(name.lower())


def lookup(name: str) -> type[Strategy]:
    """Return the class of a strategy.

    Args:
        name: A name or an alias.

    Raises:
        ConfigError: The name is unknown, or the name of an installed package's entry point differs from that of its
            class.
    """
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
        own = (
            f"import the file that registers a rule of your own first, or declare the rule as an entry point of {GROUP}"
        )
        raise ConfigError(f"unknown strategy {name!r}; {did_you_mean(here(name) or name, available())}; {own}")
    found = REGISTRY[name]
    if isinstance(found, str):
        module, _, cls_name = found.partition(":")
        return getattr(import_module(f"{__package__}.specs.{module}"), cls_name)
    return found


def check(cls: type[Strategy], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Check values for the fields of a strategy.

    Args:
        cls: The class of the strategy.
        values: Values by field name; dashes in names count as underscores.
        where: Start of the error message (default: ``strategy 'name'``).

    Returns:
        The values, converted to the types of the fields.

    Raises:
        ConfigError: A field is unknown, or its value has the wrong type.
    """
    where, types = where or f"strategy {cls.name!r}", field_types(cls)
    checked = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in types:
            if cls.name == "bptt" and name in field_types(lookup("tbptt")):
                raise ConfigError(f"{where}: no field {given!r}; strategy 'tbptt' (truncated BPTT) has it")
            raise ConfigError(f"{where}: no field {given!r}; {did_you_mean(given, types)}")
        checked[name] = coerce(value, types[name], f"{where}: {name}")
    return checked


def make_strategy(name: str, **values: Any) -> Strategy:
    """Create a strategy: ``make_strategy("drtrl", window=3)``.

    Args:
        name: Name of the strategy.
        **values: Values of its fields.

    Raises:
        ConfigError: The name or a field is unknown, or a value has the wrong type.
        ValueError: A value is out of range, or two values exclude each other.
    """
    cls = lookup(name)
    return cls(**check(cls, values))
