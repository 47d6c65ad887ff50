"""Communication between devices within a traced step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

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
        (added, sums_tree), (averaged, means_tree) = (
            jax.tree.flatten(jax.tree.map(jnp.asarray, t)) for t in (sums, means)
        )
        first = jax.lax.axis_index(AXIS) == 0
        parts = [part for leaf in added for part in _reals(leaf)]
        parts += [
            part / self.count if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.where(first, part, 0)
            for leaf in averaged
            for part in _reals(leaf)
        ]
        wide = jnp.result_type(jnp.float32, *parts)
        vector = jax.lax.psum(jnp.concatenate([jnp.ravel(part).astype(wide) for part in parts]), AXIS)
        ends = np.cumsum([part.size for part in parts])[:-1]
        reduced = iter(jnp.split(vector, ends))
        added, averaged = ([_from_reals(leaf, reduced) for leaf in leaves] for leaves in (added, averaged))
        return sums_tree.unflatten(added), means_tree.unflatten(averaged)

    def total_weight(self, weight: float) -> float:
        """Total weight over all devices, if it is static."""
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


def _reals(leaf: Any) -> list[Any]:
    """Split a leaf into real arrays: a complex one into two parts, an integer one into 16-bit parts.

    Floats hold 16-bit parts exactly.
    """
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return [jnp.real(leaf), jnp.imag(leaf)]
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return [leaf]
    if leaf.dtype.itemsize > 4:
        return [(leaf >> shift & 0xFFFF).astype(jnp.float32) for shift in (0, 16, 32, 48)]
    wide = leaf.astype(jnp.uint32)
    return [(wide & 0xFFFF).astype(jnp.float32), (wide >> 16).astype(jnp.float32)]


def _from_reals(leaf: Any, reduced: Iterator[Any]) -> Any:
    """Inverse of ``_reals``; takes its parts from the iterator."""
    count = len(jax.eval_shape(_reals, leaf))
    parts = [next(reduced).reshape(leaf.shape) for _ in range(count)]
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jax.lax.complex(*parts).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return parts[0].astype(leaf.dtype)
    kind = leaf.dtype if leaf.dtype.itemsize > 4 else jnp.uint32
    halves = [part.astype(kind) << 16 * i for i, part in enumerate(parts)]
    return jnp.stack(halves).sum(0, dtype=kind).astype(leaf.dtype)
