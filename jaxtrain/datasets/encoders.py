"""Encoders: functions that turn the values of one sequence into its inputs, ``(T, ...)``, inside the compiled step.

An encoder is called as ``encoder(values, key)``, with the values of one sequence and a random key that belongs to the
sequence and the epoch. Any function of this form is one. uint8 values, as of images, are divided by 255 here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .copy import as_integer

type Encoder = Callable[[Any, Any], Any]
"""``encoder(values, key)``: the values of one sequence, and a key, to its inputs ``(T, ...)``."""


def as_float(values: Any) -> jax.Array:
    """Values as floats; uint8 values are divided by 255."""
    values = jnp.asarray(values)
    if values.dtype == jnp.uint8:
        return values.astype(jnp.float32) / 255
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _steps(encoder: Any, steps: Any) -> None:
    as_integer("steps", steps, 1, type(encoder).__name__)


@dataclass(frozen=True)
class Bernoulli:
    """Rate code: at every time step, a spike with probability ``scale * value``.

    Args:
        steps: Time steps T, for values ``(...)``. None if the values are rates over time, ``(T, ...)``.
        scale: Probability of a spike for the value 1. Products outside [0, 1] are clipped.

    Returns:
        Spikes 0.0 or 1.0, ``(T, ...)``.

    >>> Bernoulli(steps=10)(np.full(784, 0.5), key).shape
    (10, 784)
    """

    steps: int | None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.steps is not None:
            _steps(self, self.steps)

    def __call__(self, values: Any, key: Any) -> jax.Array:
        probability = self.scale * as_float(values)
        shape = probability.shape if self.steps is None else (self.steps, *probability.shape)
        return (jax.random.uniform(key, shape, probability.dtype) < probability).astype(probability.dtype)


@dataclass(frozen=True)
class Latency:
    """Time to first spike: one spike for each value, the earlier the larger the value is.

    A value of 1 spikes at the first time step, and the time falls linearly to the last time step for 0.

    Args:
        steps: Time steps T.
        threshold: Values at or below it never spike.

    Returns:
        Spikes 0.0 or 1.0, ``(T, ...)``.

    >>> Latency(steps=3)(np.array([1.0, 0.5, 0.0]), key).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """

    steps: int
    threshold: float = 0.0

    def __post_init__(self) -> None:
        _steps(self, self.steps)

    def __call__(self, values: Any, key: Any) -> jax.Array:
        values = as_float(values)
        at = jnp.round((1 - jnp.clip(values, 0, 1)) * (self.steps - 1))
        times = jnp.arange(self.steps).reshape(-1, *(1,) * values.ndim)
        return ((times == at) & (values > self.threshold)).astype(values.dtype)


@dataclass(frozen=True)
class Repeat:
    """Direct current: the values at every time step.

    Args:
        steps: Time steps T.

    Returns:
        The values, ``(T, ...)``.

    >>> Repeat(steps=3)(np.array([0.5]), key).tolist()
    [[0.5], [0.5], [0.5]]
    """

    steps: int

    def __post_init__(self) -> None:
        _steps(self, self.steps)

    def __call__(self, values: Any, key: Any) -> jax.Array:
        values = as_float(values)
        return jnp.broadcast_to(values, (self.steps, *values.shape))


@dataclass(frozen=True)
class Rows:
    """An image row by row: ``(H, W)`` or ``(H, W, C)`` to ``(H, W * C)``.

    >>> Rows()(np.ones((28, 28, 3)), key).shape
    (28, 84)
    """

    def __call__(self, values: Any, key: Any) -> jax.Array:
        values = as_float(values)
        return values.reshape(values.shape[0], -1)


@dataclass(frozen=True)
class Pixels:
    """An image pixel by pixel: ``(H, W)`` to ``(H * W, 1)``, or ``(H, W, C)`` to ``(H * W, C)``.

    Args:
        channels: Number of channels C; an image ``(H, W)`` has one.

    >>> Pixels()(np.ones((28, 28)), key).shape
    (784, 1)
    """

    channels: int = 1

    def __post_init__(self) -> None:
        as_integer("channels", self.channels, 1, "Pixels")

    def __call__(self, values: Any, key: Any) -> jax.Array:
        return as_float(values).reshape(-1, self.channels)


@dataclass(frozen=True)
class Delta:
    """Send on delta: spikes where a sequence has moved by ``threshold`` since the last spike.

    The level of a value starts at its first time step. An "on" spike raises the level by ``threshold``, an "off" spike
    lowers it, at most one of them at each time step.

    Args:
        threshold: The change that causes a spike, above 0.

    Returns:
        For values ``(T, F)``, spikes 0.0 or 1.0, ``(T, 2 * F)``: all "on", then all "off".

    Raises:
        ValueError: ``threshold`` is not above 0.

    >>> Delta(threshold=0.5)(np.array([[0.0], [0.6], [0.2]]), key).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"Delta: threshold={self.threshold!r}; expected a number above 0")

    def __call__(self, values: Any, key: Any) -> jax.Array:
        values = as_float(values)

        def step(level: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
            on, off = value - level >= self.threshold, level - value >= self.threshold
            spikes = jnp.concatenate([on, off], -1).astype(values.dtype)
            return level + self.threshold * (on.astype(values.dtype) - off.astype(values.dtype)), spikes

        return jax.lax.scan(step, values[0], values)[1]


@dataclass(frozen=True)
class Population:
    """Population code: each value as the activity of units with Gaussian tuning curves.

    The preferred values of the units are evenly spaced from ``low`` to ``high``. The result has a time axis only if the
    values have one; ``(Population(8), Bernoulli(20))`` gives static values one.

    Args:
        units: Units per value, at least 2.
        low: Preferred value of the first unit.
        high: Preferred value of the last unit.
        width: Standard deviation of the tuning curves; None: the distance between two preferred values.

    Returns:
        For values ``(..., F)``, activities in (0, 1], ``(..., F * units)``.

    Raises:
        ValueError: There are fewer than two units, ``low`` is not below ``high``, or ``width`` is not above 0.

    >>> Population(3)(np.array([0.5]), key).round(2).tolist()
    [0.61..., 1.0, 0.61...]
    """

    units: int
    low: float = 0.0
    high: float = 1.0
    width: float | None = None

    def __post_init__(self) -> None:
        as_integer("units", self.units, 2, "Population")
        if not self.low < self.high or (self.width is not None and not self.width > 0):
            raise ValueError(f"{self!r}: expected low < high, and a width above 0")

    def __call__(self, values: Any, key: Any) -> jax.Array:
        values = as_float(values)
        preferred = jnp.linspace(self.low, self.high, self.units, dtype=values.dtype)
        width = (self.high - self.low) / (self.units - 1) if self.width is None else self.width
        activity = jnp.exp(-jnp.square((values[..., None] - preferred) / width) / 2)
        return activity.reshape(*values.shape[:-1], -1)


@dataclass(frozen=True)
class Chain:
    """Encoders one after the other, each with a key of its own."""

    encoders: tuple[Encoder, ...]

    def __call__(self, values: Any, key: Any) -> Any:
        for number, encoder in enumerate(self.encoders):
            values = encoder(values, jax.random.fold_in(key, number))
        return values
