"""Metrics of a compiled program: pairs of a weighted sum and a weight, which merge by addition on the device.

``Pending.fetch`` is the only place that fetches them to the host, where they are divided.
"""

from __future__ import annotations

from collections.abc import Callable
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
