"""Chunks: several steps in one dispatch. Stacks their batches and loops over them within one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CAP, FLOPS = 50, 4e10
"""Limits of ``chunk="auto"``: 50 steps and about 4e10 FLOPs (seconds of work), so that signals are handled soon."""


def chosen(flops: float) -> int:
    """Number of steps per chunk for a step of ``flops`` floating-point operations."""
    return int(max(1, min(CAP, FLOPS // max(flops, 1.0))))


def looped(step: Callable, length: int) -> Callable:
    """Turn ``step(values, root, index, batch) -> (values, metrics)`` into ``chunk(values, root, first, n, batches)``.

    One compiled program serves every number of steps ``n`` from 1 to ``length``, because the loop count is traced.
    Each metric is returned as ``(length, ...)``; entries from ``n`` on are zero.
    """
    step = jax.jit(step)  # one trace serves both eval_shape and the loop

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
    """Stack batches along a new leading axis, ``(length, ...)``.

    The arrays are newly allocated each time, because a device may still be reading the previous ones.
    """

    def one(*leaves: Any) -> np.ndarray:
        stack = np.zeros((length, *np.shape(leaves[0])), leaves[0].dtype)
        np.stack(leaves, out=stack[: len(leaves)])
        return stack

    return jax.tree.map(one, *batches)
