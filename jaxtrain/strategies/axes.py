"""The batch axis of short-term states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from brainstate.transform import StatefulFunction

from ..core.state import fresh_hidden

UNCLEAR = -1
"""Used instead of a batch axis if the shape depends on the batch size, but not along exactly one axis."""


def batch_axes(model, vmapped: bool) -> dict[str, list[int | None]] | None:
    """Find the batch axis of each leaf of each short-term state: the axis whose size equals the batch size.

    ``init_state`` is traced with two batch sizes, so this function must be called outside of any trace.

    Returns:
        The axes by name of the state. None marks a leaf that all sequences share; ``UNCLEAR`` a leaf whose shape
        depends on the batch size in another way. None instead of a dict if no shape depends on the batch size, so that
        the model creates its states for one batch size only.
    """
    try:
        small, large = (_fresh_shapes(model, size, vmapped) for size in (2, 3))
    except Exception:  # init_state may accept only one batch size
        return None
    axes = {name: _axes_of_state(small[name], large[name]) for name in small}
    return axes if any(axis is not None for leaves in axes.values() for axis in leaves) else None


def _fresh_shapes(model, batch_size: int, vmapped: bool) -> dict[str, Any]:
    call = StatefulFunction(lambda: fresh_hidden(model, batch_size, vmapped))
    return cast(Any, call.make_jaxpr().get_out_shapes())[0]


def _axes_of_state(small: Any, large: Any) -> list[int | None]:
    """The batch axes of one state's leaves, from its shapes for batch sizes 2 and 3."""
    shapes = [[leaf.shape for leaf in jax.tree.leaves(value)] for value in (small, large)]
    if len(shapes[0]) != len(shapes[1]):
        return [UNCLEAR] * len(shapes[0])

    def axis(a: tuple[int, ...], b: tuple[int, ...]) -> int | None:
        if a == b:
            return None
        differing = [i for i, sizes in enumerate(zip(a, b, strict=False)) if sizes[0] != sizes[1]]
        one = len(a) == len(b) and [(a[i], b[i]) for i in differing] == [(2, 3)]
        return differing[0] if one else UNCLEAR

    return [axis(a, b) for a, b in zip(*shapes, strict=True)]


def where_sequences(mask: jax.Array, new: Any, old: Any, axes: Sequence[int | None] | None = None) -> Any:
    """Select ``new`` for the sequences where ``mask`` (B,) is set, and ``old`` for the others.

    Args:
        mask: Boolean, one value for each sequence.
        new: A pytree of arrays.
        old: A pytree of the same structure and shapes.
        axes: The batch axis of each leaf (default: 0). A leaf with axis None keeps its old value.
    """
    leaves, tree = jax.tree.flatten(old)

    def one(n: Any, o: Any, axis: int | None) -> Any:
        if axis is None:
            return o
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(o) - 1 - axis)), n, o)

    axes = [0] * len(leaves) if axes is None else axes
    return tree.unflatten([one(n, o, axis) for n, o, axis in zip(jax.tree.leaves(new), leaves, axes, strict=True)])
