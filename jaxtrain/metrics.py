"""Numbers that leave a compiled program: monoids that merge there, and the one place where they reach the host."""

from __future__ import annotations

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

    def __init__(self, arrays: Any):
        self._arrays = arrays

    def fetch(self) -> Any:
        """The arrays as numpy, same tree."""
        Pending.fetches += 1
        return jax.tree.map(np.asarray, jax.device_get(self._arrays))
