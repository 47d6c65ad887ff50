"""The registry of strategies: names and fields for the command line, known without importing JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from ..config import ConfigError, coerce, did_you_mean

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
    """Where a strategy lives (module in this package, class) and its fields, name -> Field."""

    name: str
    module: str
    cls: str
    help: str
    fields: Mapping[str, Field]

    def check(self, fields: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """The fields with their types verified. Raises ConfigError for an unknown one or a wrong type."""
        where = where or f"strategy {self.name!r}"
        checked = {}
        for given, value in fields.items():
            name = given.replace("-", "_")
            if name not in self.fields:
                raise ConfigError(f"{where}: no field {given!r}; {did_you_mean(given, self.fields)}")
            checked[name] = coerce(value, self.fields[name].type, f"{where}: {name}")
        return checked


BATCHING = Field(Literal["auto", "batched", "vmap"], "auto", "states with a batch axis, or a model mapped over lanes")
REMAT = Field(bool, False, "recompute activations instead of storing them: less memory, more time")
VJP = Field(
    Literal["multi-step", "single-step"], "multi-step", "what a loss sends back: through the window, or one time step"
)
WINDOW = Field(int, 1, "time steps of the learning phase that are differentiated together")

REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("bptt", "bptt", "BPTT", "backpropagation through time", {"remat": REMAT, "batching": BATCHING}),
        Entry("drtrl", "drtrl", "DRTRL", "diagonal RTRL", {"vjp": VJP, "window": WINDOW, "batching": BATCHING}),
    )
}


def lookup(name: str) -> Entry:
    """The entry of a strategy. Raises ConfigError (a ValueError) that lists the names for an unknown one."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown strategy {name!r}; {did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]


def make_strategy(name: str, **fields: Any) -> Strategy:
    """The strategy object for a name and its fields: `make_strategy("drtrl", window=3)`.

    Raises ConfigError (a ValueError) for an unknown name, an unknown field, or a value of the wrong type.
    """
    entry = lookup(name)
    fields = entry.check(fields)
    return getattr(import_module(f"{__package__}.{entry.module}"), entry.cls)(**fields)
