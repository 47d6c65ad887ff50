"""Numbers that leave a compiled program: monoids that merge there, and the one place where they reach the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mean(NamedTuple):
    """A weighted mean in the making: ``num / weight``; two of them merge by adding."""

    num: Any
    weight: Any

    def merge(self, other: Mean) -> Mean:
        return Mean(self.num + other.num, self.weight + other.weight)


Metrics = dict[str, Mean]
LANES = "lanes/"
"""What names of metrics begin with that are not one number but one of each seed trained side by side."""


def tag(prefix: str, name: str) -> str:
    """``train/loss`` of ``loss``, ``lanes/train/loss`` of ``lanes/loss``."""
    return f"{LANES}{prefix}/{name.removeprefix(LANES)}" if name.startswith(LANES) else f"{prefix}/{name}"


def is_rate(name: str) -> bool:
    """Learning rates are no mean over steps; a callback (LearningRateMonitor) puts them into rows."""
    return name == "lr" or name.startswith("lr/")


def plain(value: Any) -> Any:
    """A float, or of an array a list of floats."""
    return np.asarray(value, np.float64).tolist()


def sum_over_time(metrics: Metrics) -> Metrics:
    """Metrics stacked over time steps ``(T,)`` -> their sum ``()``."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), metrics)


def add(a: Metrics, b: Metrics) -> Metrics:
    return jax.tree.map(jnp.add, a, b)


class Pending:
    """Arrays that a dispatched program will fill in; ``fetch`` waits for them.

    ``fetch`` is the only place where a device array becomes a host value while training; ``Pending.fetches`` counts.
    """

    fetches = 0

    def __init__(self, arrays: Any, unpack: Callable[[Any], Any] = lambda arrays: arrays):
        self._arrays, self._unpack = arrays, unpack

    def names(self) -> list[str]:
        """The names of metrics, without waiting for them."""
        return sorted(self._arrays)

    def fetch(self) -> Any:
        """The arrays as numpy, in their tree or as ``unpack`` makes of it."""
        Pending.fetches += 1
        leaves, tree = jax.tree.flatten(self._arrays)
        for leaf in leaves:
            leaf.copy_to_host_async()
        return self._unpack(tree.unflatten([np.asarray(leaf) for leaf in leaves]))
