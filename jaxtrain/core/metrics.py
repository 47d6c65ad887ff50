"""Metrics of a compiled program: sums that merge, and what the host computes of them at the end.

The simplest one is a ``Mean``: a weighted sum and a weight, which merge by addition. ``Parts`` hold any other sums.
``Pending.fetch`` is the only place that fetches them to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mean(NamedTuple):
    """A weighted mean ``num / weight``, kept as two sums so that two of them merge by addition."""

    num: Any
    weight: Any

    def merge(self, other: Mean) -> Mean:
        """The weighted mean over both."""
        return Mean(self.num + other.num, self.weight + other.weight)

    def on_host(self) -> Mean:
        """The sums in float64, to merge the batches of an evaluation."""
        return Mean(np.asarray(self.num, np.float64), np.asarray(self.weight, np.float64))

    def finish(self) -> Any:
        """The mean; NaN if the weight is 0."""
        with np.errstate(invalid="ignore"):
            return self.num / self.weight

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.num).all())


type Sums = tuple[Any, ...]
"""Arrays ``(parts, ...)``: one part for each batch and device whose sums are not merged yet."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parts:
    """The sums of a metric that is no mean, and the two functions with which the host merges and finishes them.

    Args:
        sums: Arrays ``(parts, ...)``.
        merge: Merges all parts to one, in float64; None if every part must be kept, as the scores for an AUROC.
        finish: The metric, a number or an array, of sums that are merged (if ``merge`` is given) or joined.
    """

    sums: Sums
    merge: Callable[[Sums], Sums] | None = field(metadata={"static": True})
    finish: Callable[[Sums], Any] = field(metadata={"static": True})

    def on_host(self) -> Collected:
        """The sums of one batch of an evaluation, to which those of other batches are merged."""
        return Collected(self)

    @property
    def finite(self) -> bool:
        return all(np.isfinite(leaf).all() for leaf in self.sums)


class Collected:
    """Parts of several batches, on the host."""

    LIMIT = 32
    """Batches whose parts are kept before they are merged."""

    def __init__(self, first: Parts):
        self._first, self._waiting = first, [first.sums]

    def merge(self, other: Collected) -> Collected:
        """Add the parts of another batch."""
        self._waiting += other._waiting
        if self._first.merge is not None and len(self._waiting) >= self.LIMIT:
            self._waiting = [self._joined()]
        return self

    def finish(self) -> Any:
        """The metric over all batches: a number or an array."""
        return self._first.finish(self._joined())

    def _joined(self) -> Sums:
        sums = tuple(np.concatenate(leaves) for leaves in zip(*self._waiting, strict=True))
        if self._first.merge is None:
            return sums
        return self._first.merge(tuple(leaf.astype(np.float64) for leaf in sums))


class OfSeeds(list):
    """One ``Parts`` (or ``Collected``) for each seed. The mean over seeds is taken of the finished metrics."""

    def on_host(self) -> OfSeeds:
        return OfSeeds(each.on_host() for each in self)

    def merge(self, other: OfSeeds) -> OfSeeds:
        return OfSeeds(ours.merge(theirs) for ours, theirs in zip(self, other, strict=True))

    def finish(self) -> Any:
        return np.stack([np.asarray(each.finish(), np.float64) for each in self])

    @property
    def finite(self) -> bool:
        return all(each.finite for each in self)


Metrics = dict[str, Mean]
SEEDS = "seeds/"
"""Prefix of metrics that have one number per seed instead of one number."""


def tag(prefix: str, name: str) -> str:
    """Add a prefix to the name of a metric: ``loss`` -> ``train/loss``, ``seeds/loss`` -> ``seeds/train/loss``."""
    return f"{SEEDS}{prefix}/{name.removeprefix(SEEDS)}" if name.startswith(SEEDS) else f"{prefix}/{name}"


def is_rate(name: str) -> bool:
    """Return True for learning rates, which are not averaged over steps; LearningRateMonitor logs them."""
    return name == "lr" or name.startswith("lr/")


def plain(value: Any) -> Any:
    """Convert a number to a float, and an array to a list of floats."""
    return np.asarray(value, np.float64).tolist()


def empty(found: Mean | Parts) -> Any:
    """The value of a metric over no data: NaN in the shape of the metric.

    Args:
        found: The metric with arrays, or with their shapes.
    """
    zeros: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape), found)
    return plain(zeros.on_host().finish())


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics for the log: a metric with one number per class becomes one tag per class; larger arrays are left out.

    >>> numbers({"val/loss": 0.5, "val/recall": [1.0, 0.0], "val/confusion": [[3.0, 1.0], [0.0, 2.0]]})
    {'val/loss': 0.5, 'val/recall/0': 1.0, 'val/recall/1': 0.0}
    """
    found = {}
    for name, value in metrics.items():
        array, seeds = np.asarray(value), name.startswith(SEEDS)
        if array.ndim == seeds:
            found[name] = value
        elif array.ndim == seeds + 1:
            found |= {f"{name}/{i}": plain(array[..., i]) for i in range(array.shape[-1])}
    return found


def sum_over_time(metrics: Metrics) -> Metrics:
    """Sum metrics stacked over time steps ``(T,)`` to ``()``."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), metrics)


def add(a: Metrics, b: Metrics) -> Metrics:
    """Merge metrics with the same names."""
    return jax.tree.map(jnp.add, a, b)


class Pending:
    """Arrays that a dispatched program will produce; ``fetch`` waits for them.

    ``fetch`` is the only place where training copies device arrays to the host; ``Pending.fetches`` counts the calls.
    """

    fetches = 0

    def __init__(self, arrays: Any, unpack: Callable[[Any], Any] = lambda arrays: arrays):
        self._arrays, self._unpack = arrays, unpack

    def names(self) -> list[str]:
        """The names of metrics, without waiting for them."""
        return sorted(self._arrays)

    def fetch(self) -> Any:
        """The arrays as numpy, in their tree or as ``unpack`` returns them."""
        Pending.fetches += 1
        leaves, tree = jax.tree.flatten(self._arrays)
        for leaf in leaves:
            leaf.copy_to_host_async()
        return self._unpack(tree.unflatten([np.asarray(leaf) for leaf in leaves]))
