"""The update schedule: when gradients become weight updates, and whether states continue across sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import jax

from ..core.metrics import Metrics, add, sum_over_time
from ..core.module import Phases
from ..core.objective import sum_of_weights, total_weight
from ..core.state import add_to
from .base import Update, scored
from .specs.base import UpdateEvery

Gradients = Callable[[Any], tuple[dict[str, Any], Metrics]]
"""A function of consecutive scored time steps (see ``base.scored``) that returns the gradients of ``sum(w * loss)`` by
parameter name, and the metrics."""


@dataclass(frozen=True)
class UpdateSchedule:
    """When to update the weights.

    Attributes:
        update_every: Scored time steps per update, or "sequence" for one update per sequence.
        stateful: Whether hidden states and traces continue from one sequence to the next.
    """

    update_every: UpdateEvery = "sequence"
    stateful: bool = False

    def drive(self, phases: Phases, gradients: Gradients, update: Update) -> Metrics:
        """Traced: compute the gradients of the learning phase, one update interval at a time, and apply ``update``."""
        if self.update_every == "sequence":
            grads, metrics = gradients(scored(phases))
            return update(grads, total_weight(phases), metrics)
        batch = phases.sizes[2]

        def interval(sequences) -> tuple[None, Metrics]:
            grads, metrics = gradients(sequences)
            weights = sequences[2]
            given = None if phases.weights is None else weights
            return None, update(grads, sum_of_weights(given, len(weights), batch), metrics)

        return over_tiles(scored(phases), self.update_every, interval, None)[1]


SEQUENCE = UpdateSchedule()


def over_tiles(sequences: Any, size: int, body: Callable[[Any], tuple[Any, Metrics]], zero: Any) -> tuple[Any, Metrics]:
    """Apply ``body`` to consecutive tiles of ``size`` time steps and sum the results; the last tile may be shorter."""
    length = jax.tree.leaves(sequences)[0].shape[0]
    whole = length - length % size
    total, metrics = zero, None
    if whole:
        tiled = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), sequences)

        def step(total, tile):
            more, metrics = body(tile)
            return add_to(total, more), metrics

        total, stacked = brainstate.transform.scan(step, total, tiled)
        metrics = sum_over_time(stacked)
    if whole < length:
        more, rest = body(jax.tree.map(lambda leaf: leaf[whole:], sequences))
        total = add_to(total, more)
        metrics = rest if metrics is None else add(metrics, rest)
    assert metrics is not None
    return total, metrics
