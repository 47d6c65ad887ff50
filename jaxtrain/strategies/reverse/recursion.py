"""What distinguishes one online rule from another: a recursion backward in time over known Jacobians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..specs.backward_rule import BackwardRule

Values = dict[str, Any]
"""Arrays ``(T, B, units)`` by hidden state."""


@dataclass
class Signals:
    """Learning signals and Jacobians of a block of time steps.

    Attributes:
        before: Cotangents of the hidden states at the entry of each time step.
        after: Cotangents of the new hidden states (single-step rules), else zeros.
        jacobian: ``jacobian[n][m]``: derivative of the new state ``n`` by the old state ``m``.
        factor: ``factor[n][i]``: derivative of the new state ``n`` by the output of relation ``i``.
        keep: 0 where a sequence restarts at the time step, else 1, ``(T, B)``; None without resets.
        steps: Numbers of the time steps since the restart of the rule, from 1.
        is_filtered: 1 where the filter on the trace advances, else 0, ``(T,)``.
    """

    before: Values
    after: Values
    jacobian: dict[str, Values]
    factor: dict[str, dict[int, Any]]
    keep: Any
    steps: Any
    is_filtered: Any


jax.tree_util.register_dataclass(Signals, ["before", "after", "jacobian", "factor", "keep", "steps", "is_filtered"], [])


def _kept(keep: Any, value: Any) -> Any:
    return value if keep is None else value * keep.reshape(*keep.shape, *(1,) * (value.ndim - keep.ndim))


def propagate(rule: BackwardRule, state: tuple[Values, Values, Values], signals: Signals) -> tuple[Any, dict[int, Any]]:
    """Cotangents of the traced products in a block, backward in time.

    Args:
        rule: The rule.
        state: ``(lam, mu, late)`` from the block that follows in time: cotangents of the trace, filtered signals, and
            the signals of the next time step's entry.
        signals: Learning signals and Jacobians of the block.

    Returns:
        The state for the block before, and cotangents ``{relation: (T, B, units)}``.
    """

    def back(state, xs):
        lam, mu, late = state
        s: Signals = xs
        signal = {n: s.after[n] + late[n] for n in lam}
        if rule.kappa:
            signal = {n: s.is_filtered * (value + rule.kappa * mu[n]) for n, value in signal.items()}
        lam = {n: signal[n] + lam[n] for n in lam}
        relations = dict.fromkeys(i for by in s.factor.values() for i in by)
        delta = {i: sum(s.factor[n][i] * lam[n] for n in lam if i in s.factor[n]) for i in relations}
        lam = {m: sum(s.jacobian[n][m] * lam[n] for n in lam if m in s.jacobian[n]) for m in lam}
        mu = {n: _kept(s.keep, value) for n, value in signal.items()}
        return (lam, mu, s.before), delta

    return jax.lax.scan(back, state, signals, reverse=True)


def filtered_factors(decay: float, eps: Any, jacobian: dict[str, Values], factor: Any) -> tuple[Any, Any]:
    """The output side of a factored trace, forward through a block: the last value and every value."""

    def step(eps, xs):
        jacobian, factor = xs
        eps = {
            n: {
                i: (1 - decay) * factor[n][i] + decay * sum(jacobian[n][m] * eps[m][i] for m in jacobian[n])
                for i in factor[n]
            }
            for n in factor
        }
        return eps, eps

    return jax.lax.scan(step, eps, (jacobian, factor))


def correction(decay: float, steps: Any, current: bool) -> Any:
    """braintrace's correction of an average that starts at zero.

    braintrace divides the trace of s updates by ``1 - decay^s`` in single-step rules and at the entry of a window
    (``current``), and by ``1 - decay^(s + 1)`` in multi-step rules without a window.
    """
    k = steps if current else steps + 1
    return 1 / jnp.maximum(jnp.where(k - 1 < 1000, 1 - decay ** k.astype(jnp.float32), 1), 1e-8)


def propagate_factored(rule: BackwardRule, state: Any, signals: Signals, eps: Any, current: bool) -> tuple[Any, Any]:
    """Like ``propagate`` for a factored trace; the state is ``(Q, late)``.

    The input side's filter, ``ex_t = x_t + a ex_{t-1}``, is moved to the other side: ``sum_t ex_t q_t = sum_s x_s Q_s``
    with ``Q_s = q_s + a Q_{s+1}``. A bias has no input side.

    Returns:
        The state for the block before, and ``(Q, q)`` by relation: weights get ``Q``, biases ``q``.
    """
    assert rule.decay is not None
    a = rule.decay
    fix = correction(rule.decay, signals.steps, current)

    def back(state, xs):
        total, late = state
        s, eps, fix = xs
        c = {n: (s.after[n] + late[n]) * fix for n in s.after}
        q = {i: sum(eps[n][i] * c[n] for n in eps if i in eps[n]) for i in total}
        total = {i: q[i] + a * total[i] for i in total}
        out = (total, q)
        return ({i: _kept(s.keep, value) for i, value in total.items()}, s.before), out

    return jax.lax.scan(back, state, (signals, eps, fix), reverse=True)
