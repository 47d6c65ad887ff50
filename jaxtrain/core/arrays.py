"""A batch as the host sends it: the arrays of a data set, from which the compiled step makes sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .module import Phases
from .state import fold_in

WHOLE = 2**31 - 1
"""A length that means every time step."""
STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ArrayBatch:
    """One batch of a data set. ``Module.phases`` receives ``sequences()`` of it, and ``weighted`` completes the result.

    Both are traced, so the host sends only what this batch holds. Every array has its sequences on axis 1, or on axis 0
    if it has one axis, so that a batch can be split over devices.

    Args:
        inputs: ``(T, B, ...)``; with an encoder ``(1, B, ...)``, the values that it encodes.
        targets: ``(T_l, B, ...)``, or ``(B,)`` for one target per sequence; or None.
        row: ``(B,)``, the number of each sequence in its data set.
        epoch: ``()``, the number of the pass over the data set.
        length: ``(B,)``, the time steps of each sequence without its padding; 0 for a sequence that only fills the
            batch. None if there is neither.
        start: ``(B,)``, the first scored time step of each sequence, or None: all are scored.
        encoder: ``encoder(values, key)`` returns the inputs ``(T, ...)`` of one sequence; or None.
        seed: Seed of the encoder.
        steps: Time steps over which a target per sequence is repeated: the last ones; None: all.
    """

    inputs: Any
    targets: Any
    row: Any
    epoch: Any
    length: Any = None
    start: Any = None
    encoder: Callable[[Any, Any], Any] | None = field(default=None, metadata=STATIC)
    seed: int = field(default=0, metadata=STATIC)
    steps: int | None = field(default=None, metadata=STATIC)

    def sequences(self) -> Any:
        """``(inputs, targets)``, or the inputs alone, time-major."""
        inputs = self.inputs if self.encoder is None else self._encoded()
        if self.targets is None:
            return inputs
        time = jax.tree.leaves(inputs)[0].shape[0]
        if self.steps is not None and self.steps > time:
            raise ValueError(f"scored={self.steps}, but a sequence has {time} time steps; choose at most {time}")

        def over_time(leaf: Any) -> Any:
            return leaf if leaf.ndim > 1 else jnp.broadcast_to(leaf, (self.steps or time, *leaf.shape))

        return inputs, jax.tree.map(over_time, self.targets)

    def _encoded(self) -> Any:
        assert self.encoder is not None
        # A key for each row and epoch: it depends neither on the batch size nor on the place in the batch.
        root = fold_in(jax.random.key(self.seed), self.epoch)
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(self.row)
        values = jax.tree.map(lambda leaf: leaf[0], self.inputs)
        encoded = jax.vmap(self.encoder, out_axes=1)(values, keys)
        before, after = (jax.tree.leaves(tree)[0].shape[axis] for axis, tree in ((1, values), (0, encoded)))
        if self.ragged and before != after:
            raise ValueError(
                f"{self.encoder} makes {after} time steps of {before}; sequences of several lengths need an encoder "
                "that keeps the number of time steps"
            )
        return encoded

    def weighted(self, phases: Phases) -> Phases:
        """``phases`` with weight 0 where a sequence is padded or not scored."""
        if self.length is None:
            return phases
        warm, time, batch = phases.sizes
        at = warm + jnp.arange(time)[:, None]
        inside = at < self.length
        if self.start is not None:
            inside &= at >= self.start
        own = jnp.ones((), jnp.float32) if phases.weights is None else jnp.asarray(phases.weights)
        own = jnp.broadcast_to(own[:, None] if own.ndim == 1 else own, (time, batch))
        return replace(phases, weights=jnp.where(inside, own, 0))

    @property
    def ragged(self) -> bool:
        """Whether the sequences differ in length. Known on the host only."""
        return self.start is not None

    def kept(self) -> np.ndarray:
        """On the host: which sequences are not mere filling, ``(B,)``."""
        return np.ones(np.shape(self.row), bool) if self.length is None else np.asarray(self.length) > 0
