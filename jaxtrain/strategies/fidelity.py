"""A rule's gradient against BPTT's: cosine, ratio of norms, agreement of signs; in total and by parameter."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..metrics import Metrics
from ..module import Phases
from ..state import State, add_to, parameters
from .base import Learner, zeros_like_parameters
from .bptt import BPTTLearner

TOTAL = ""
"""The name under which the comparison of the whole gradient stands."""


def gradient_of(learner: Learner, phases: Phases) -> dict[str, Any]:
    """Traced: the gradient that a learner hands to ``update`` over one batch, summed, the weights held fixed."""
    states: dict[str, State] = {**parameters(learner.objective.model)}
    totals = {name: State(value) for name, value in zeros_like_parameters(states).items()}

    def update(grads: dict[str, Any], weight: Any) -> Metrics:
        for name, grad in grads.items():
            totals[name].value = add_to(totals[name].value, grad)
        return {}

    learner.restart(phases.sizes[2])
    learner.learn(phases, update)
    return {name: total.value for name, total in totals.items()}


def compare(learner: Learner, phases: Phases) -> dict[str, dict[str, jax.Array]]:
    """Traced: ``{parameter name or TOTAL: {cosine, norm_ratio, sign_agreement}}`` of a learner against BPTT.

    A parameter without any gradient under one of the two has cosine 0.
    """
    key = brainstate.random.DEFAULT.value
    rule = gradient_of(learner, phases)
    brainstate.random.DEFAULT.value = key  # the same random numbers inside the model
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
    norms = jnp.linalg.norm(a), jnp.linalg.norm(b)
    product = norms[0] * norms[1]
    return {
        "cosine": jnp.where(product > 0, jnp.real(jnp.vdot(b, a)) / jnp.where(product > 0, product, 1), 0.0),
        "norm_ratio": norms[0] / jnp.maximum(norms[1], jnp.finfo(norms[1].dtype).tiny),
        "sign_agreement": (jnp.sign(a) == jnp.sign(b)).mean(),
    }
