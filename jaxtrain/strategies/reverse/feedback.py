"""Fixed random feedback of learning signals."""

from __future__ import annotations

from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp

from ..network import Network
from .blocks import leaf
from .detached_step import DetachedStep


class Feedback:
    """Replaces the gradient of the loss by a random projection of it, as braintrace does.

    Args:
        step: The detached time step.
        network: The model over a batch.
        seed: Seed of the matrices; None leaves the gradient as it is.
    """

    def __init__(self, step: DetachedStep, network: Network, seed: int | None):
        self._step, self._matrices = step, {} if seed is None else _matrices(step, network, seed)

    def project(self, signals: dict[str, Any]) -> dict[str, Any]:
        """The learning signals as the rule feeds them back, ``(T, B, units)``."""

        def one(name: str, signal: Any) -> Any:
            matrix = self._matrices.get(self._step.hidden_of[name])
            if matrix is None:  # no feedback, or of a state that no weight reaches
                return signal
            norm = jnp.sqrt((signal * signal).sum(-1, keepdims=True))
            return signal / (norm + 1e-8) @ matrix

        return {name: one(name, leaf(signal)) for name, signal in signals.items()}


def _matrices(step: DetachedStep, network: Network, seed: int) -> dict[int, Any]:
    """braintrace's matrix of each group, drawn from the same key in the same order."""
    groups = dict.fromkeys(group for relation in step.relations for group in sorted(relation.groups))
    width = {group: leaf(network.hidden[step.groups[group][0]].value).shape[-1] for group in groups}
    with brainstate.random.seed_context(jax.random.key(seed)):
        return {
            group: braintrace.FixedRandomFeedback(n, n, brainstate.random.split_key()).B for group, n in width.items()
        }
