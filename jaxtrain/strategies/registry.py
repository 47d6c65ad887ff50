"""The registry of strategies: classes by name. Importing it, or looking a strategy up, imports no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
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
    "eprop": "rules:EProp",
    "ostl_recurrent": "rules:OSTLRecurrent",
    "ostl_feedforward": "rules:OSTLFeedforward",
    "snap": "rules:SnAp",
    "uoro": "rules:UORO",
    "three_factor": "rules:ThreeFactor",
    "dni": "rules:DNI",
    "etrace": "rules:ETrace",
    "readout_only": "bptt:ReadoutOnly",
}
"""Name -> "file in specs:class", or the class that was registered."""
ALIASES = {"es_drtrl": "pp_prop"}
GROUP = "jaxtrain.strategies"
"""Entry points of this group name strategies of other packages."""


def available() -> list[str]:
    """Every name that ``lookup`` knows, aliases apart; asks installed packages without importing them."""
    return [*REGISTRY, *(point.name for point in entry_points(group=GROUP) if point.name not in REGISTRY)]


def register(cls: Any) -> Any:
    """Make a strategy known by its ``name``; a decorator for strategies outside this package.

    The fields of the class become options, those with ``init=False`` and those whose annotation cannot be looked up
    apart. A package that wants its strategy found without an import names it as an entry point of the group
    ``jaxtrain.strategies``. A class that is defined again (a cell of a notebook that runs twice) replaces the one
    before.

    Args:
        cls: A frozen dataclass that extends ``Strategy``, all of whose fields have defaults.

    Returns:
        The same class.

    Raises:
        TypeError: It is no such class.
        ValueError: Its name is taken, or a field has no default.
    """
    name = getattr(cls, "name", None)
    kind = isinstance(cls, type) and issubclass(cls, Strategy) and is_dataclass(cls)
    settings: Any = getattr(cls, "__dataclass_params__", None)
    if not (kind and settings.frozen and isinstance(name, str)):
        raise TypeError(
            f"register({cls!r}): expected a frozen dataclass that extends Strategy, with a class attribute name"
        )
    if name in ALIASES or (name in REGISTRY and not _same_class(REGISTRY[name], cls)):
        raise ValueError(f"register({cls.__name__}): the name {name!r} is taken; choose another")
    for field in fields(cls):
        if field.init and field.default is field.default_factory is MISSING:
            raise ValueError(
                f"register({cls.__name__}): the field {field.name!r} has no default; a name alone must make one"
            )
    REGISTRY[name] = cls
    return cls


def _same_class(old: Any, new: type) -> bool:
    return isinstance(old, type) and (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def lookup(name: str) -> type[Strategy]:
    """The class of a strategy.

    Raises:
        ConfigError: The name is unknown, or an installed package's entry point has another name than its class.
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
        raise ConfigError(f"unknown strategy {name!r}; {did_you_mean(name, available())}")
    found = REGISTRY[name]
    if isinstance(found, str):
        module, _, cls_name = found.partition(":")
        return getattr(import_module(f"{__package__}.specs.{module}"), cls_name)
    return found


def check(cls: type[Strategy], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Values for the fields of a strategy, their types verified; dashes in names count as underscores.

    Raises:
        ConfigError: A field is unknown, or its value has the wrong type. The message begins with ``where``.
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
    """The strategy object for a name and its fields: ``make_strategy("drtrl", window=3)``.

    Raises:
        ConfigError: The name or a field is unknown, or a value has the wrong type.
        ValueError: The values do not go together.
    """
    cls = lookup(name)
    return cls(**check(cls, values))
