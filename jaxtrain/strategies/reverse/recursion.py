"""What distinguishes one online rule from another: a recursion backward in time over known Jacobians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..specs.backward_rule import BackwardRule

Values = dict[str, Any]
"""Arrays ``(T, B, units)`` by hidden state."""
Cotangents = tuple[Values, Values, Values]
"""``(lam, mu, late)``: cotangents of the trace and of the filtered trace after a time step, and the learning signals at
the entry of the next time step. Each value is ``(B, units)``."""


@dataclass
class Signals:
    """Learning signals and Jacobians of a block of time steps.

    Attributes:
        before: Cotangents of the hidden states at the entry of each time step.
        after: Cotangents of the new hidden states (single-step rules), else zeros.
        jacobian: ``jacobian[n][m]``: derivative of the new state ``n`` by the old state ``m``.
        keep: 0 where a sequence restarts at the time step, else 1, ``(T, B)``; None without resets.
        steps: Numbers of the time steps since the restart of the rule, from 1.
        is_filtered: Whether the filter on the trace advances with the trace after the time step, ``(T,)``.
    """

    before: Values
    after: Values
    jacobian: dict[str, Values]
    keep: Any
    steps: Any
    is_filtered: Any


jax.tree_util.register_dataclass(Signals, ["before", "after", "jacobian", "keep", "steps", "is_filtered"], [])


def keep_sequences(keep: Any, value: Any) -> Any:
    """``value`` with zeros for the sequences that restart (``keep`` is 0), if there are any."""
    return value if keep is None else value * keep.reshape(*keep.shape, *(1,) * (value.ndim - keep.ndim))


def receive(rule: BackwardRule, state: Cotangents, after: Values, is_filtered: Any) -> tuple[Values, Values]:
    """Cotangents of the trace and of the filtered trace at one time step, the latter as seen from the step before.

    braintrace's filter is part of its backward pass: ``f_t = kappa f_{t-1} + e_t`` if ``is_filtered``, else
    ``f_t = f_{t-1}``.

    Args:
        rule: The rule.
        state: Cotangents from the time steps that follow.
        after: Learning signals after this time step.
        is_filtered: Whether the filter advances here.
    """
    lam, mu, late = state
    signal = {n: after[n] + late[n] for n in lam}
    if not rule.kappa:
        return {n: signal[n] + lam[n] for n in lam}, mu
    signal = {n: signal[n] + mu[n] for n in lam}
    lam = {n: is_filtered * signal[n] + lam[n] for n in lam}
    return lam, {n: jnp.where(is_filtered, rule.kappa, 1.0) * value for n, value in signal.items()}


def propagate(rule: BackwardRule, state: Cotangents, signals: Signals) -> tuple[Cotangents, Values]:
    """Cotangents of the trace in a block, backward in time.

    Returns:
        The state for the block before, and the cotangents of the trace after each time step.
    """

    def back(state: Cotangents, s: Signals) -> tuple[Cotangents, Values]:
        lam, mu = receive(rule, state, s.after, s.is_filtered)
        earlier = {m: sum(s.jacobian[n][m] * lam[n] for n in lam if m in s.jacobian[n]) for m in lam}
        mu = {n: keep_sequences(s.keep, value) for n, value in mu.items()} if rule.kappa else mu
        return (earlier, mu, s.before), lam

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


def received_factored(decay: float, total: Any, signal: Values, eps: Any, fix: Any) -> tuple[Any, Any]:
    """``(Q, q)`` of one time step by relation, from ``Q`` of the next one."""
    c = {n: value * fix for n, value in signal.items()}
    q = {i: sum(eps[n][i] * c[n] for n in eps if i in eps[n]) for i in total}
    return {i: q[i] + decay * total[i] for i in total}, q


def propagate_factored(rule: BackwardRule, state: Any, signals: Signals, eps: Any, current: bool) -> tuple[Any, Any]:
    """Like ``propagate`` for a factored trace; the state is ``(Q, late)``.

    The input side's filter, ``ex_t = x_t + a ex_{t-1}``, is moved to the other side: ``sum_t ex_t q_t = sum_s x_s Q_s``
    with ``Q_s = q_s + a Q_{s+1}``. A bias has no input side.

    Returns:
        The state for the block before, and ``(Q, q)`` by relation: weights get ``Q``, biases ``q``.
    """
    decay = rule.decay
    assert decay is not None
    fix = correction(decay, signals.steps, current)

    def back(state, xs):
        total, late = state
        s, eps, fix = xs
        total, q = received_factored(decay, total, {n: s.after[n] + late[n] for n in s.after}, eps, fix)
        return ({i: keep_sequences(s.keep, value) for i, value in total.items()}, s.before), (total, q)

    return jax.lax.scan(back, state, (signals, eps, fix), reverse=True)
