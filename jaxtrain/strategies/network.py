"""A model over a batch of sequences: its hidden states, their initial values and their batch axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import brainstate
import jax
import jax.numpy as jnp

from ..core.state import fresh_hidden, short_term
from .axes import UNCLEAR, batch_axes, where_sequences


def model_over_batch(model, batching: Literal["batched", "vmap"]) -> Callable:
    """A callable for one time step of a batch: the model itself, or the model mapped over sequences."""
    return brainstate.nn.Vmap(model, vmap_states="new") if batching == "vmap" else model


def along(change: Callable[[Any, int], Any], value: Any, axes: list[int | None]) -> Any:
    """Apply ``change(leaf, axis)`` to each leaf of a value that has a batch axis."""
    leaves, tree = jax.tree.flatten(value)
    changed = [leaf if axis is None else change(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True)]
    return tree.unflatten(changed)


class Network:
    """The model over a batch of sequences.

    ``network(x)`` runs one time step, ``(B, ...) -> (B, ...)``. Create it after the model's hidden states exist, which
    ``choose_batching`` ensures.

    Args:
        model: The model.
        batching: "batched" if the model's states have a batch axis; "vmap" if the model processes one sequence and is
            mapped over the batch.

    Attributes:
        hidden: The short-term states of the model, by name.
    """

    def __init__(self, model, batching: Literal["batched", "vmap"]):
        self.model = model
        self.vmapped = batching == "vmap"
        self.hidden = short_term(model)
        self._created = {name: state.value for name, state in self.hidden.items()}
        self._call = model_over_batch(model, batching)
        self._axes = batch_axes(model, self.vmapped)

    def __call__(self, x) -> Any:
        return self._call(x)

    def reset(self, batch_size: int) -> None:
        """Set all hidden states to the initial values that ``init_state`` makes."""
        for name, value in self._fresh(batch_size).items():
            self.hidden[name].value = value

    def reset_sequences(self, mask: jax.Array) -> None:
        """Set the hidden states of some sequences to their initial values; a state that all sequences share is kept.

        Args:
            mask: Boolean, ``(B,)``; True for each sequence to reset.

        Raises:
            ValueError: The batch axis of a state is unclear.
        """
        held = {name: state.value for name, state in self.hidden.items()}  # _fresh overwrites the states
        axes = self.axes(mask.shape[0])
        for name, value in self._fresh(mask.shape[0]).items():
            self.hidden[name].value = where_sequences(mask, value, held[name], axes[name])

    def axes(self, batch_size: int) -> dict[str, list[int | None]]:
        """The batch axis of each leaf of each hidden state; None for a leaf that all sequences share.

        See ``axes.batch_axes``. If the model creates its states for one batch size only, the batch axis is axis 0,
        provided that its size equals the batch size.

        Raises:
            ValueError: The shape of a state depends on the batch size, but not along exactly one axis.
        """
        found = {}
        for name, state in self.hidden.items():
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state.value)]
            if self._axes is None:
                found[name] = [0 if shape[:1] == (batch_size,) else None for shape in shapes]
                continue
            found[name] = self._axes[name]
            for shape, axis in zip(shapes, found[name], strict=True):
                if axis == UNCLEAR or (axis is not None and shape[axis] != batch_size):
                    raise ValueError(
                        f"the hidden state {name!r} of {type(self.model).__name__} has shape {shape} for "
                        f"{batch_size} sequences; let init_state(batch_size) give it one axis of batch_size"
                    )
        return found

    def _fresh(self, batch_size: int) -> dict[str, Any]:
        # A state that init_state does not reset keeps the value that it was created with.
        for name, state in self.hidden.items():
            state.value = self._created[name]
        return fresh_hidden(self.model, batch_size, self.vmapped)
