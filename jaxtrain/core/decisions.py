"""Metrics that a step returns as objects: their values of all time steps, or one decision per sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from .metrics import Mean, Parts, sum_over_time

type Decide = Literal["sum", "mean", "last", "max"] | Callable[[Any, Any], Any] | None
"""How the outputs of a sequence become one decision; a function maps ``(T, B, ...)`` and weights ``(T, B)`` to
``(B, ...)``."""
NAMED = ("sum", "mean", "last", "max")


@dataclass(frozen=True)
class Metric(ABC):
    """What a step returns for a metric that needs more than one number per sequence and time step.

    Args:
        outputs: Outputs of one time step, ``(B, ...)``.
        targets: Their targets, ``(B, ...)``.
        decide: None counts every time step. Otherwise a sequence counts once, at the last of its time steps that have
            weight, with the target and the weight of that time step. "sum", "mean" and "max" are those of the outputs
            over its time steps with weight, "last" is the last of these outputs. A function
            ``(outputs (T, B, ...), weights (T, B)) -> (B, ...)`` decides by all outputs.
        weight: Weight of its own, ``()`` or ``(B,)``, which is multiplied with ``Phases.weights``.
    """

    outputs: Any
    targets: Any
    decide: Decide = field(default=None, kw_only=True, metadata={"static": True})
    weight: Any = field(default=1.0, kw_only=True)

    names: ClassVar[tuple[str, str]] = ("outputs", "targets")
    """What the two arguments are called, for messages."""

    def checked(self, batch: int, what: str) -> Metric:
        """This metric with arrays, of shapes that fit.

        Raises:
            TypeError: A value is no array, or ``decide`` is no way to decide.
            ValueError: A shape does not fit.
        """
        if self.decide is not None and self.decide not in NAMED and not callable(self.decide):
            raise TypeError(
                f"{what}: decide={self.decide!r}; expected None, one of {list(NAMED)}, or a function of outputs "
                "(T, B, ...) and weights (T, B)"
            )
        arrays = jnp.asarray(self.outputs), jnp.asarray(self.targets)
        for name, array in zip(self.names, arrays, strict=True):
            if array.shape[:1] != (batch,):
                raise ValueError(f"{what}: {name} have shape {array.shape}; expected ({batch}, ...), as the sequences")
        self._check(*arrays, what)
        return replace(self, outputs=arrays[0], targets=arrays[1])

    @abstractmethod
    def _check(self, outputs: jax.Array, targets: jax.Array, what: str) -> None:
        """Raise ValueError or TypeError if the arrays do not fit each other."""

    def per_step(self) -> Any:
        """The metric as values ``(B,)`` of one time step if it is their mean; else None."""
        return None

    def per_output(self, outputs: jax.Array) -> jax.Array:
        """What is kept of each output that counts."""
        return outputs

    @abstractmethod
    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Mean | Parts:
        """The sums over outputs that count, ``(n, ...)``, with their targets and weights ``(n,)``. Those with weight 0
        may be NaN."""

    def over_time(self) -> Mean | Parts:
        """The sums of a metric whose arrays are stacked over time, ``(T, B, ...)``."""
        if self.decide is not None:
            outputs, targets, weights = decision(self.decide, self.outputs, self.targets, self.weight)
            return self.sums(self.per_output(outputs), targets, weights)
        flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
        return self.sums(flat(self.outputs), flat(self.targets), flat(self.weight))


def decision(decide: Decide, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Any, Any, Any]:
    """One output ``(B, ...)`` for each sequence, its target, and its weight ``(B,)``: 0 if no time step has weight.

    Args:
        decide: How to decide.
        outputs: ``(T, B, ...)``; values with weight 0 may be NaN.
        targets: ``(T, B, ...)``.
        weights: ``(T, B)``.
    """
    time, batch = weights.shape
    counts = weights != 0
    last = time - 1 - jnp.argmax(counts[::-1], 0)

    def at_last(leaf: jax.Array) -> jax.Array:
        return leaf[last, jnp.arange(batch)]

    if outputs.dtype in (jnp.float16, jnp.bfloat16):
        outputs = outputs.astype(jnp.float32)
    there = counts.reshape(*counts.shape, *(1,) * (outputs.ndim - 2))
    held = jnp.where(there, outputs, jnp.zeros((), outputs.dtype))
    if callable(decide):
        decided = jnp.asarray(decide(held, weights))
        if decided.shape[:1] != (batch,):
            raise ValueError(
                f"decide={getattr(decide, '__name__', decide)} returned shape {decided.shape} for outputs "
                f"{outputs.shape}, (T, B, ...); expected ({batch}, ...), one decision per sequence"
            )
    elif decide == "last":
        decided = at_last(held)
    elif decide == "max":
        lowest = -jnp.inf if jnp.issubdtype(outputs.dtype, jnp.floating) else jnp.iinfo(outputs.dtype).min
        highest = jnp.where(there, outputs, jnp.asarray(lowest, outputs.dtype)).max(0)
        decided = jnp.where(there.any(0), highest, jnp.zeros((), outputs.dtype))
    else:
        decided = held.sum(0)
        decided = decided / jnp.maximum(there.sum(0), 1) if decide == "mean" else decided
    return decided, at_last(targets), at_last(weights)


def over_time(metrics: dict[str, Any]) -> dict[str, Any]:
    """The sums over time of what ``Objective.evaluate`` returned, stacked over time steps."""
    means = sum_over_time({name: value for name, value in metrics.items() if not isinstance(value, Metric)})
    return {name: value.over_time() if isinstance(value, Metric) else means[name] for name, value in metrics.items()}
