"""The batch axis of short-term states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from brainstate.transform import StatefulFunction

from ..core.state import fresh_hidden

UNCLEAR = -1
"""In place of a batch axis: the shape follows the batch size, but no one axis has it."""


def batch_axes(model, vmapped: bool) -> dict[str, list[int | None]] | None:
    """The batch axis of each leaf of each short-term state: the one whose size follows the batch size that
    ``init_state`` is given. None marks a leaf that all sequences share, ``UNCLEAR`` one that follows in another way.

    Returns None where no leaf follows: the model makes its states for one batch size. Call it outside of any trace.
    """
    try:
        small, large = (_fresh_shapes(model, size, vmapped) for size in (2, 3))
    except Exception:  # init_state may refuse any batch size but its own
        return None
    axes = {name: _following(small[name], large[name]) for name in small}
    return axes if any(axis is not None for found in axes.values() for axis in found) else None


def _fresh_shapes(model, batch_size: int, vmapped: bool) -> dict[str, Any]:
    call = StatefulFunction(lambda: fresh_hidden(model, batch_size, vmapped))
    return cast(Any, call.make_jaxpr().get_out_shapes())[0]


def _following(small: Any, large: Any) -> list[int | None]:
    """Of one state's leaves, whose shapes are for two batch sizes."""
    pairs = [[leaf.shape for leaf in jax.tree.leaves(value)] for value in (small, large)]
    if len(pairs[0]) != len(pairs[1]):
        return [UNCLEAR] * len(pairs[0])

    def axis(a: tuple[int, ...], b: tuple[int, ...]) -> int | None:
        if len(a) != len(b):
            return UNCLEAR
        differ = [axis for axis, sizes in enumerate(zip(a, b, strict=True)) if sizes[0] != sizes[1]]
        if not differ:
            return None
        return differ[0] if len(differ) == 1 and (a[differ[0]], b[differ[0]]) == (2, 3) else UNCLEAR

    return [axis(a, b) for a, b in zip(*pairs, strict=True)]


def where_sequences(mask: jax.Array, new: Any, old: Any, axes: Sequence[int | None] | None = None) -> Any:
    """``new`` in the sequences where ``mask`` (B,) is set, else ``old``.

    ``axes``: the batch axis of each leaf, by itself 0; a leaf without one (None) stays as it is.
    """
    leaves, tree = jax.tree.flatten(old)

    def one(n: Any, o: Any, axis: int | None) -> Any:
        if axis is None:
            return o
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(o) - 1 - axis)), n, o)

    given = [0] * len(leaves) if axes is None else axes
    return tree.unflatten([one(n, o, axis) for n, o, axis in zip(jax.tree.leaves(new), leaves, given, strict=True)])
