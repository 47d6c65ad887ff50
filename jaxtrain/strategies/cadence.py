"""When gradients become updates, and what is carried from one sequence to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import brainstate
import jax

from ..core.metrics import Metrics, add, sum_over_time
from ..core.module import Phases, sum_of_weights, total_weight
from ..core.state import add_to
from .base import Update, scored

UpdateEvery = Literal["sequence"] | int
Carry = Literal["reset", "carry"]
Gradients = Callable[[Any], tuple[dict[str, Any], Metrics]]
"""Of the sequences of some scored time steps (``base.scored``): gradients of ``sum(w * loss)``, and metrics."""


def check_cadence(name: str, update_every: UpdateEvery) -> None:
    if update_every != "sequence" and update_every < 1:
        raise ValueError(
            f"{name}(update_every={update_every!r}): expected 'sequence' or a number of time steps, 1 or more"
        )


def check_length(name: str, update_every: UpdateEvery, time: int) -> None:
    """Raises ValueError where a learning phase of ``time`` time steps has no whole update."""
    if update_every != "sequence" and update_every > time:
        raise ValueError(
            f"{name}(update_every={update_every}): the learning phase has only {time} time steps; give {time} or less, "
            "or 'sequence'"
        )


@dataclass(frozen=True)
class Cadence:
    """``update_every``: scored time steps an update, or "sequence". ``carried``: hidden states and traces go on from
    one sequence to the next."""

    update_every: UpdateEvery = "sequence"
    carried: bool = False

    def drive(self, phases: Phases, gradients: Gradients, update: Update) -> Metrics:
        """Traced: hand the gradients of the learning phase to ``update``, piece by piece."""
        if self.update_every == "sequence":
            grads, metrics = gradients(scored(phases))
            return update(grads, total_weight(phases), metrics)
        batch = phases.sizes[2]

        def piece(sequences) -> tuple[None, Metrics]:
            grads, metrics = gradients(sequences)
            weights = sequences[2]
            given = None if phases.weights is None else weights
            return None, update(grads, sum_of_weights(given, len(weights), batch), metrics)

        return over_tiles(scored(phases), self.update_every, piece, None)[1]


SEQUENCE = Cadence()


def over_tiles(sequences: Any, size: int, body: Callable[[Any], tuple[Any, Metrics]], zero: Any) -> tuple[Any, Metrics]:
    """The sums of what ``body`` gives over tiles of ``size`` time steps; the last tile may be shorter."""
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
