"""A rule's gradient against BPTT's: cosine, ratio of norms, agreement of signs; in total and by parameter."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..core.metrics import Metrics
from ..core.module import Phases
from ..core.state import State, add_to, long_term_states
from .base import Learner, trained, zeros_like_parameters
from .bptt import BPTTLearner

TOTAL = ""
"""The name under which the comparison of the whole gradient stands."""


def gradient_of(learner: Learner, phases: Phases) -> dict[str, Any]:
    """Traced: the gradient that a learner hands to ``update`` over one batch, summed, the weights held fixed; of the
    parameters that the module trains."""
    zeros = zeros_like_parameters(trained(learner.objective))
    totals = {name: State(value) for name, value in zeros.items()}

    def update(grads: dict[str, Any], weight: Any, metrics: Metrics) -> Metrics:
        for name, grad in grads.items():
            totals[name].value = add_to(totals[name].value, grad)
        return metrics

    if learner.carried:  # others begin anew by themselves, and begun twice they would draw other random numbers
        learner.restart(phases.sizes[2])
    learner.learn(phases, update)
    return {name: total.value for name, total in totals.items()}


def compare(learner: Learner, phases: Phases) -> dict[str, dict[str, jax.Array]]:
    """Traced: ``{parameter name or TOTAL: {cosine, norm_ratio, sign_agreement}}`` of a learner against BPTT.

    ``sign_agreement`` counts the entries that are not zero in both. Where a gradient is exactly zero: under both, the
    two agree (1, 1, 1); under the rule alone, (0, 0, 0); under BPTT alone there is no ratio, (0, NaN, 0). A gradient
    that is not finite makes all three NaN.
    """
    # The same random numbers in the model, and the same running statistics, for both.
    touched = [brainstate.random.DEFAULT, *long_term_states(learner.objective.model).values()]
    before = [state.value for state in touched]
    rule = gradient_of(learner, phases)
    for state, value in zip(touched, before, strict=True):
        state.value = value
    truth = gradient_of(BPTTLearner(learner.objective, learner.network), phases)
    flat = {name: (_flat(rule[name]), _flat(truth[name])) for name in truth}
    flat[TOTAL] = (
        jnp.concatenate([ours for ours, _ in flat.values()]),
        jnp.concatenate([theirs for _, theirs in flat.values()]),
    )
    return {name: _compare(*pair) for name, pair in flat.items()}


def _flat(value: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(value)])


def _compare(a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
    # Divided by the largest number first: squares of small gradients underflow.
    scales = jnp.max(jnp.abs(a)), jnp.max(jnp.abs(b))
    ours, theirs = scales[0] != 0, scales[1] != 0
    a, b = (x / jnp.where(scale != 0, scale, 1) for x, scale in ((a, scales[0]), (b, scales[1])))
    norms = jnp.linalg.norm(a), jnp.linalg.norm(b)
    some = (a != 0) | (b != 0)
    found = {
        "cosine": jnp.real(jnp.vdot(b, a)) / jnp.where(ours & theirs, norms[0] * norms[1], 1),
        "norm_ratio": jnp.where(theirs, norms[0] / jnp.where(theirs, norms[1], 1) * (scales[0] / scales[1]), jnp.nan),
        "sign_agreement": (some & (jnp.sign(a) == jnp.sign(b))).sum() / jnp.maximum(some.sum(), 1),
    }
    finite = jnp.isfinite(scales[0]) & jnp.isfinite(scales[1])
    neither = ~ours & ~theirs
    return {name: jnp.where(finite, jnp.where(neither, 1.0, value), jnp.nan) for name, value in found.items()}
