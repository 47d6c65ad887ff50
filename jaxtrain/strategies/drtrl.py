"""D-RTRL: real-time recurrent learning with a (block-)diagonal Jacobian of the hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .rule import WindowedRule


@dataclass(frozen=True)
class DRTRL(WindowedRule):
    """D-RTRL: a trace of every recurrent weight is carried forward, its size lanes x parameters whatever the length
    of the sequence (Wang et al., Nature Communications 17:1745, 2026).

    On a GRU the reset gate's weight ``Wr`` acts on the hidden state only through ``Wh``, so no trace of it is kept:
    ``vjp="single-step"`` leaves its gradient exactly zero, the default ``vjp="multi-step"`` gives it the credit that
    lies within a window. See ``WindowedRule`` and ``OnlineRule`` for the fields.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.DRTRL(window=5), max_steps=1000)
    """

    name: ClassVar[str] = "drtrl"

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "d_rtrl", {"vjp_method": self.vjp}
