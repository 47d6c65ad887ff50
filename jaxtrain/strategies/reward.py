"""Learning from a reward: what the batch must contain, the learning signal, and the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.module import Phases
from .base import ParameterReport
from .parameter_report import PARTLY, TRAINS, Traces, Verdict


def check_modulator(name: str, units: set[tuple[int, ...]], example: Phases) -> None:
    """Raise ValueError if ``Phases.extras`` does not contain the reward, or if its shape is wrong.

    Args:
        name: Name of the reward sequence.
        units: The shapes of the hidden states of one sequence.
        example: A batch.
    """
    extras = example.extras or {}
    if name not in extras:
        raise ValueError(
            f"ThreeFactor(modulator={name!r}): Phases.extras holds {list(extras)}; give it "
            f"the reward as a sequence: in Module.phases, Phases(..., extras={{{name!r}: reward}}) with "
            f"reward (T_l, B), (T_l, B, 1) or (T_l, B, units); extras reach learning_step by keyword, too, so it "
            f"takes {name}=. The recipes have none; an example is in docs/strategies.md"
        )
    given = np.shape(extras[name])
    if given[2:] not in ((), (1,)) and units != {given[2:]}:
        wanted = ", ".join(str((*example.sizes[1:], *more)) for more in ((), (1,), *units))
        raise ValueError(
            f"ThreeFactor(modulator={name!r}): Phases.extras[{name!r}] has shape {given}; "
            f"expected one of {wanted}: time steps, sequences, units"
        )


def weighted(reward: Any, weights: Any, lead: int) -> Any:
    """The reward multiplied by the weights; a reward of weight 0 may have any value, including NaN.

    Args:
        reward: The reward. Its first ``lead`` axes are those of the weights, of which the last may be missing.
        weights: Weights of sequences.
        lead: The number of these axes.
    """
    weights = jnp.broadcast_to(weights.reshape(*weights.shape, *(1,) * (lead - weights.ndim)), reward.shape[:lead])
    weights = weights.reshape(*weights.shape, *(1,) * (reward.ndim - lead))
    return jnp.where(weights != 0, weights * reward, 0)


def signals(reward: Any, weights: Any, hidden: dict[str, Any]) -> dict[str, Any]:
    """The learning signal of each hidden state.

    Args:
        reward: ``(T, B)``, ``(T, B, 1)`` or ``(T, B, units)``.
        weights: ``(T,)`` or ``(T, B)``.
        hidden: The hidden states, ``(T, B, units)``.
    """
    signal = weighted(reward, weights, 2)

    def one(value: Any) -> Any:
        shaped = signal
        if signal.size == signal.shape[0] * signal.shape[1]:  # one number per sequence, for all units
            shaped = signal.reshape(*signal.shape[:2], *(1,) * (value.ndim - 2))
        return jnp.broadcast_to(shaped, value.shape).astype(value.dtype)

    return {name: one(value) for name, value in hidden.items()}


def describe_rewarded(params: Iterable[str], traces: Traces) -> list[ParameterReport]:
    """The report of a rule whose learning signal is a reward."""
    why = "no trace of it is kept, and the loss's own gradient is not used: its gradient is exactly zero"
    partly = f"{PARTLY}: the other has no credit"  # this rule has no option that gives it any

    def one(name: str) -> ParameterReport:
        if name not in traces.states:
            return ParameterReport(name, "no", why)
        verdict: Verdict = ("in part", partly) if name in traces.partial else TRAINS
        return ParameterReport(name, *verdict, traces.sizes.get(name, 0))

    return [one(name) for name in params]
