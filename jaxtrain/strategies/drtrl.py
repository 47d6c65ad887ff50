"""D-RTRL: real-time recurrent learning with a (block-)diagonal Jacobian of the hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax

from ..module import Objective, Phases
from ..state import draws_random, parameters
from .base import Batching, Learner, Strategy, choose_batching, input_of
from .online import OnlineLearner, compile_rule

VMAP_FROM = 2**19
"""Trace elements, about lanes x parameters, from which mapping over lanes measures faster than a batched trace."""


@dataclass(frozen=True)
class DRTRL(Strategy):
    """D-RTRL: a trace of every recurrent weight is carried forward, its size lanes x parameters whatever the length
    of the sequence (Wang et al., Nature Communications 17:1745, 2026).

    ``vjp="multi-step"`` (the default) differentiates ``window`` time steps exactly and contracts the trace at the
    window's entry; ``vjp="single-step"`` contracts the trace at each time step and holds every other weight constant.
    On a GRU the reset gate's weight ``Wr`` acts on the hidden state only through ``Wh``, so no trace of it is kept:
    single-step leaves its gradient exactly zero, multi-step gives it the credit that lies within a window.

    ``window``: scored time steps differentiated together, tiled from the first one. A window that would span the
    whole sequence is BPTT and is refused. ``batching``: whether hidden states carry a batch axis, or the model is
    mapped over lanes; "auto" maps where the trace is large, which is faster, and the gradients are the same.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.DRTRL(window=5), max_steps=1000)
    """

    name: ClassVar[str] = "drtrl"
    vjp: Literal["multi-step", "single-step"] = "multi-step"
    window: int = 1
    batching: Batching = "auto"

    def __post_init__(self):
        if self.vjp not in ("multi-step", "single-step"):
            raise ValueError(f"DRTRL(vjp={self.vjp!r}): expected 'multi-step' or 'single-step'")
        if type(self.window) is not int or self.window < 1:
            raise ValueError(f"DRTRL(window={self.window!r}): expected a whole number of time steps, at least 1")
        if self.window > 1 and self.vjp == "single-step":
            raise ValueError(
                f"DRTRL(vjp='single-step', window={self.window}): a single-step rule has no window; drop one"
            )
        if self.window > 1 and self.batching == "vmap":
            raise ValueError(f"DRTRL(window={self.window}, batching='vmap'): windows need batched states")

    def bind(self, objective: Objective, example: Phases) -> Learner:
        warm, time, batch_size = example.sizes
        if self.window > time:
            raise ValueError(f"DRTRL(window={self.window}): the learning phase has only {time} time steps")
        if self.window == time and not warm and time > 1:
            raise ValueError(
                f"DRTRL(window={self.window}) spans the whole sequence, which is BPTT: use strategy='bptt'"
            )
        x = input_of(objective, example)
        batching = choose_batching("batched" if self.window > 1 else self.batching, objective.model, x, batch_size)
        if self.batching == "auto" and self.window == 1 and batching == "batched" and self._prefers_lanes(objective, x):
            try:
                return self._learner(objective, x, batch_size, "vmap")
            except Exception:  # noqa: S110 - mapping is only faster; states made in __init__, say, take a batch alone
                pass
        return self._learner(objective, x, batch_size, batching)

    def _learner(self, objective: Objective, x, batch_size: int, batching: str) -> Learner:
        rule = compile_rule(objective, x, batch_size, batching == "vmap", "d_rtrl", vjp_method=self.vjp)
        return OnlineLearner(objective, rule, self.window, batch_size)

    def _prefers_lanes(self, objective: Objective, x) -> bool:
        """A rule over sizes: large traces of models that draw no random numbers (lanes would draw other ones)."""
        batch_size = jax.tree.leaves(x)[0].shape[0]
        weights = sum(leaf.size for p in parameters(objective.model).values() for leaf in jax.tree.leaves(p.value))
        return batch_size * weights >= VMAP_FROM and not draws_random(objective.model, x)
