"""Strategies: how gradients are made. Lazy, so that the registry of names can be read without JAX."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import names as names

_HOME = {
    "Strategy": "base",
    "Learner": "base",
    "OnlineRule": "rule",
    "SteppedRule": "rule",
    "WindowedRule": "rule",
    "register": "names",
    **names.CLASSES,
}
EXPORTS = (*_HOME,)
"""What is public here: the bases, and every strategy of the registry."""
__all__ = ["names", *EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .base import Learner as Learner
    from .base import Strategy as Strategy
    from .bptt import BPTT as BPTT
    from .dni import DNI as DNI
    from .drtrl import DRTRL as DRTRL
    from .names import register as register
    from .readout import ReadoutOnly as ReadoutOnly
    from .rule import OnlineRule as OnlineRule
    from .rule import SteppedRule as SteppedRule
    from .rule import WindowedRule as WindowedRule
    from .rules import UORO as UORO
    from .rules import EProp as EProp
    from .rules import ETrace as ETrace
    from .rules import OSTLFeedforward as OSTLFeedforward
    from .rules import OSTLRecurrent as OSTLRecurrent
    from .rules import PPProp as PPProp
    from .rules import SnAp as SnAp
    from .rules import ThreeFactor as ThreeFactor
    from .tbptt import TBPTT as TBPTT


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'jaxtrain.strategies' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
