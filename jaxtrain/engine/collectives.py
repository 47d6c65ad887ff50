"""Communication between devices within a traced step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core.state import State, fold_in

AXIS = "devices"
"""Name of the mesh axis."""


@dataclass(frozen=True)
class Collectives:
    """Communication of a step that ``count`` devices run on their shares of a batch; with one device there is none.

    All methods are called while tracing.
    """

    count: int = 1

    @property
    def axes(self) -> list[tuple[str, int]] | None:
        """Mesh axes under which the step is traced, or None."""
        return None if self.count == 1 else [(AXIS, self.count)]

    def all_reduce(self, sums: Any, means: Any) -> tuple[Any, Any]:
        """Reduce two trees over devices, in one all-reduce of one vector.

        Args:
            sums: Leaves that are summed.
            means: Leaves that are averaged; integer leaves take the first device's values.
        """
        if self.count == 1:
            return sums, means
        first = jax.lax.axis_index(AXIS) == 0

        def share(leaf: Any) -> Any:
            return leaf / self.count if _inexact(leaf) else jnp.where(first, _bytes(leaf).astype(jnp.float32), 0)

        def mean(total: Any, leaf: Any) -> Any:
            return total if _inexact(leaf) else _from_bytes(total.astype(jnp.uint8), leaf.dtype)

        means = jax.tree.map(jnp.asarray, means)
        vector, unravel = ravel_pytree((sums, jax.tree.map(share, means)))
        sums, totals = unravel(jax.lax.psum(vector, AXIS))
        return sums, jax.tree.map(mean, totals, means)

    def gathered(self, parts: Any) -> Any:
        """This device's arrays ``(n, ...)`` at rows of its own in zeros ``(count * n, ...)``.

        The sum over devices then holds the arrays of all.
        """
        if self.count == 1:
            return parts
        here = jax.lax.axis_index(AXIS)

        def placed(leaf: Any) -> Any:
            everyone = jnp.zeros((self.count, *leaf.shape), leaf.dtype).at[here].set(leaf)
            return everyone.reshape(-1, *leaf.shape[1:])

        return jax.tree.map(placed, parts)

    def total_weight(self, weight: float) -> float:
        """Weight of the whole batch from that of one device's share, for a Python float; ``all_reduce`` sums others."""
        return weight * self.count if self.count > 1 else weight

    def fold(self, key: jax.Array) -> jax.Array:
        """Root key of this device; unchanged unless the batch is split."""
        return fold_in(key, jax.lax.axis_index(AXIS)) if self.count > 1 else key

    @contextmanager
    def own_random(self, states: Iterable[State]) -> Iterator[None]:
        """Give the model's random States a different key on each device, and equal keys afterwards."""
        random = [(s, s.value) for s in states if isinstance(s, brainstate.random.RandomState)]
        keys = random if self.count > 1 else []
        for state, key in keys:
            state.value = self.fold(key)
        yield
        for state, key in keys:
            state.value = fold_in(key, self.count)


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _bytes(leaf: Any) -> Any:
    """An integer leaf as bytes, which float32 holds exactly."""
    return leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, jnp.uint8)


def _from_bytes(held: Any, dtype: Any) -> Any:
    return held.astype(bool) if dtype == jnp.bool_ else jax.lax.bitcast_convert_type(held, dtype)
