"""Several steps in one dispatch: batches one after another, and the loop over them within one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CAP, FLOPS = 50, 4e10
"""``chunk="auto"``: at most 50 steps a dispatch, and about this much work: seconds, so that signals are heard."""


def chosen(flops: float) -> int:
    """How many steps of so much work."""
    return int(max(1, min(CAP, FLOPS // max(flops, 1.0))))


def looped(step: Callable, length: int) -> Callable:
    """Of ``step(values, root, index, batch) -> (values, metrics)``: one program for every number of steps ``n`` up to
    ``length``, by a loop with a traced count; metrics are ``(length, ...)``."""
    step = jax.jit(step)  # traced once, for its shapes and for the loop

    def chunk(values, root, first, n, batches):
        shapes = jax.eval_shape(lambda: step(values, root, first, jax.tree.map(lambda leaf: leaf[0], batches))[1])
        empty = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), shapes)

        def body(i, carry):
            values, filled = carry
            values, metrics = step(values, root, first + i, jax.tree.map(lambda leaf: leaf[i], batches))
            write = lambda buffer, leaf: jax.lax.dynamic_update_index_in_dim(buffer, leaf, i, 0)  # noqa: E731
            return values, jax.tree.map(write, filled, metrics)

        return jax.lax.fori_loop(0, n, body, (values, empty))

    return chunk


def stacked(batches: list[Any], length: int) -> Any:
    """Batches one after another, ``(length, ...)``; fresh arrays, since a device may still read those before."""

    def one(*leaves: Any) -> np.ndarray:
        made = np.zeros((length, *np.shape(leaves[0])), leaves[0].dtype)
        for i, leaf in enumerate(leaves):
            made[i] = leaf
        return made

    return jax.tree.map(one, *batches)
