"""Strategies: how gradients are made. Lazy, so that the registry of names can be read without JAX."""

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {"Strategy": "base", "Learner": "base", "BPTT": "bptt", "DRTRL": "drtrl"}
__all__ = ["BPTT", "DRTRL", "Learner", "Strategy", "names"]

if TYPE_CHECKING:
    from . import names as names
    from .base import Learner as Learner
    from .base import Strategy as Strategy
    from .bptt import BPTT as BPTT
    from .drtrl import DRTRL as DRTRL


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name == "names":
        return import_module(".names", __name__)
    raise AttributeError(f"module 'jaxtrain.strategies' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
