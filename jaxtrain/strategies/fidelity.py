"""Comparison of a rule's gradient with BPTT's: cosine, ratio of norms and agreement of signs, by parameter."""

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
"""The key of the comparison of the whole gradient; the other keys are parameter names."""


def gradient_of(learner: Learner, phases: Phases) -> dict[str, Any]:
    """Traced: the sum of the gradients that a learner passes to ``update`` for one batch, with fixed parameters.

    Returns:
        Gradients of ``sum(w * loss)`` by name, for the parameters that the module trains.
    """
    zeros = zeros_like_parameters(trained(learner.objective))
    totals = {name: State(value) for name, value in zeros.items()}

    def update(grads: dict[str, Any], weight: Any, metrics: Metrics) -> Metrics:
        for name, grad in grads.items():
            totals[name].value = add_to(totals[name].value, grad)
        return metrics

    if learner.carried:  # other learners restart in ``learn``; a second restart would draw other random numbers
        learner.restart(phases.sizes[2])
    learner.learn(phases, update)
    return {name: total.value for name, total in totals.items()}


def compare(learner: Learner, phases: Phases) -> dict[str, dict[str, jax.Array]]:
    """Traced: compare the gradient of a learner with that of BPTT.

    Args:
        learner: The learner.
        phases: One batch.

    Returns:
        ``cosine``, ``norm_ratio`` and ``sign_agreement`` for each parameter name, and for ``TOTAL``. ``sign_agreement``
        counts entries that are nonzero in at least one of the gradients. If both gradients are exactly zero, the values
        are (1, 1, 1). If only the rule's is, (0, 0, 0). If only BPTT's is, (0, NaN, 0). All are NaN if a gradient is
        not finite.
    """
    # Both use the same random numbers and the same running statistics.
    touched = [brainstate.random.DEFAULT, *long_term_states(learner.objective.model).values()]
    before = [state.value for state in touched]
    rule = gradient_of(learner, phases)
    for state, value in zip(touched, before, strict=True):
        state.value = value
    truth = gradient_of(BPTTLearner(learner.objective, learner.network), phases)
    flat = {name: (_flat(rule[name]), _flat(truth[name])) for name in truth}
    ours, theirs = map(jnp.concatenate, zip(*flat.values(), strict=True))
    return {name: _compare(*pair) for name, pair in {**flat, TOTAL: (ours, theirs)}.items()}


def _flat(value: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(value)])


def _compare(a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
    # Divide by the largest number first, because squares of small gradients underflow.
    scales = jnp.max(jnp.abs(a)), jnp.max(jnp.abs(b))
    ours, theirs = scales[0] != 0, scales[1] != 0
    a, b = (x / jnp.where(scale != 0, scale, 1) for x, scale in ((a, scales[0]), (b, scales[1])))
    norms = jnp.linalg.norm(a), jnp.linalg.norm(b)
    some = (a != 0) | (b != 0)
    measures = {
        "cosine": jnp.real(jnp.vdot(b, a)) / jnp.where(ours & theirs, norms[0] * norms[1], 1),
        "norm_ratio": jnp.where(theirs, norms[0] / jnp.where(theirs, norms[1], 1) * (scales[0] / scales[1]), jnp.nan),
        "sign_agreement": (some & (jnp.sign(a) == jnp.sign(b))).sum() / jnp.maximum(some.sum(), 1),
    }
    finite = jnp.isfinite(scales[0]) & jnp.isfinite(scales[1])
    neither = ~ours & ~theirs
    return {name: jnp.where(finite, jnp.where(neither, 1.0, value), jnp.nan) for name, value in measures.items()}
