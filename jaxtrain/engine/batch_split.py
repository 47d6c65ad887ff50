"""How the sequences of a batch are split over devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ..core.module import Module, Phases
from ..core.objective import phases_of
from ..core.state import State, kind_of
from .collectives import AXIS


class NotDivisible(ValueError):
    """The batches of a run cannot be split over its devices."""


@dataclass(frozen=True)
class BatchSplit:
    """Splits the sequences of a module's batches over ``count`` devices; with one, a batch stays whole.

    ``option`` names the option that requested the devices, for messages.
    """

    module: Module
    count: int
    option: str
    _sizes: dict[Any, int] = field(default_factory=dict)
    _specs: dict[Any, Any] = field(default_factory=dict)
    """Memos of the number of sequences and of ``specs``, by the batch's tree, shapes and dtypes."""

    def divides(self, batch: Any) -> bool:
        """Return True if a batch of these shapes can be split."""
        return self.count == 1 or self.sequences(batch) % self.count == 0

    def share(self, batch: Any, number: int = 0) -> Any:
        """The share of a batch that device ``number`` receives."""
        return batch if self.count == 1 else take_share(batch, self.specs(batch), number, self.count)

    def specs(self, batch: Any) -> Any:
        """How each array of a batch is split.

        Arrays whose axis 1 has the batch size are split along that axis, vectors ``(B,)`` along axis 0.
        ``Module.phases`` of a share must equal the share of ``Module.phases`` of the whole batch; otherwise the result
        could be wrong.

        Raises:
            NotDivisible: The sequences do not divide evenly, or ``Module.phases`` of a share is not that share of the
                whole.
        """
        if self.count == 1:
            return jax.tree.map(lambda _: P(), batch)
        key = kind_of(batch)
        if key not in self._specs:
            self._specs[key] = self._new_specs(batch)
        return self._specs[key]

    def sequences(self, batch: Any) -> int:
        """Number of sequences of a batch."""
        key = kind_of(batch)
        if key not in self._sizes:
            self._sizes[key] = _phases(self.module, batch)[0].sizes[2]
        return self._sizes[key]

    def _new_specs(self, batch: Any) -> Any:
        sequences = self.sequences(batch)
        if sequences % self.count:
            raise NotDivisible(
                f"{self.option}: a batch of {sequences} sequences does not divide over {self.count} devices; "
                f"choose a batch size that is a multiple of {self.count}"
            )

        def spec(leaf: Any, vectors: bool) -> P:
            shape = np.shape(leaf)
            if len(shape) >= 2 and shape[1] == sequences:
                return P(None, AXIS)
            return P(AXIS) if vectors and shape == (sequences,) else P()

        differences = []
        for vectors in (True, False):  # a vector may hold one entry per sequence, or per time step
            specs = jax.tree.map(lambda leaf, vectors=vectors: spec(leaf, vectors), batch)
            differences.append(self._difference(batch, specs))
            if not differences[-1]:
                return specs
        raise NotDivisible(
            f"{self.option}: {type(self.module).__name__}.phases of a share of the batch is not the share of "
            f"Module.phases of the whole batch ({differences[0]}); return arrays (T, B, ...) in which each sequence "
            "depends on its own data only"
        )

    def _difference(self, batch: Any, specs: Any) -> str:
        """How ``Module.phases`` of a share differs from the share of ``Module.phases`` of the batch; "" if equal."""
        whole, _ = _phases(self.module, batch)
        split: Any = P(None, AXIS)
        per_step = whole.weights is not None and np.ndim(whole.weights) == 1
        expected = Phases(split, split, split, P() if per_step else split, split, split)
        of_phases = jax.tree.map(lambda s, tree: jax.tree.map(lambda _: s, tree), expected, whole, is_leaf=is_spec)
        for number in (0, self.count - 1):
            try:
                part, random = _phases(self.module, take_share(batch, specs, number, self.count))
            except (ValueError, TypeError, IndexError) as error:
                return str(error).split(";")[0]
            wanted = take_share(whole, of_phases, number, self.count)
            if jax.tree.structure(part) != jax.tree.structure(wanted):
                return "another structure"
            paths, ours = zip(*jax.tree_util.tree_leaves_with_path(part), strict=True)
            for path, mine, theirs in zip(paths, ours, jax.tree.leaves(wanted), strict=True):
                name = jax.tree_util.keystr(path).lstrip(".")
                if np.shape(mine) != np.shape(theirs):
                    return f"{name} has shape {np.shape(mine)} instead of {np.shape(theirs)}"
                if not random and not np.allclose(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True):
                    return f"{name} has other values"
        return ""

    def state_specs(self, own: dict[str, State], whole: dict[str, State], strategy: str) -> dict[str, Any]:
        """How each of a learner's long-term States is split: along the axis in which a share and the whole differ.

        Args:
            own: The States as bound to a share of the batch.
            whole: The same States as bound to the whole batch.
            strategy: Name of the strategy, for messages.

        Raises:
            NotDivisible: A State is shared by all sequences of a device, so the devices would diverge.
        """
        specs = {}
        for name, state in own.items():
            axes = []
            for ours, theirs in zip(jax.tree.leaves(state.value), jax.tree.leaves(whole[name].value), strict=True):
                pairs = list(zip(np.shape(ours), np.shape(theirs), strict=True))
                differ = [axis for axis, (a, b) in enumerate(pairs) if a != b]
                constant = isinstance(state, brainstate.ParamState) or not jnp.issubdtype(ours.dtype, jnp.inexact)
                if not differ and not constant:
                    raise NotDivisible(
                        f"{self.option}: strategy {strategy!r} keeps one {name} for all sequences, so the devices "
                        "would diverge; use devices=1, batching='vmap' or another strategy"
                    )
                axes.append(P(*(None,) * differ[0], AXIS) if differ else P())
            specs[name] = jax.tree.unflatten(jax.tree.structure(state.value), axes)
        return specs


def is_spec(node: Any) -> bool:
    return isinstance(node, P)


def take_share(batch: Any, specs: Any, number: int, count: int) -> Any:
    """Share ``number`` of ``count`` of a batch's arrays, each split as its spec says."""

    def one(spec: P, leaf: Any) -> Any:
        if AXIS not in spec:
            return leaf
        axis = spec.index(AXIS)
        size = np.shape(leaf)[axis] // count
        return leaf[(slice(None),) * axis + (slice(number * size, (number + 1) * size),)]

    return jax.tree.map(one, specs, batch, is_leaf=is_spec)


def _phases(module: Module, batch: Any) -> tuple[Phases, bool]:
    """Phases of a batch under a fixed key, and whether ``Module.phases`` drew random numbers."""
    random, before = brainstate.random.DEFAULT, brainstate.random.DEFAULT.value
    try:
        random.value = key = jax.random.key(0)
        return phases_of(module, batch), random.value is not key
    finally:
        random.value = before
