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
    """What a step returns for a metric that is computed of the outputs of several time steps.

    Args:
        outputs: Outputs of one time step, ``(B, ...)``.
        targets: Their targets, ``(B, ...)``.
        weight: Weight of its own, ``()`` or ``(B,)``, which is multiplied with ``Phases.weights``.
    """

    outputs: Any
    targets: Any
    weight: Any = field(default=1.0, kw_only=True)

    names: ClassVar[tuple[str, str]] = ("outputs", "targets")
    """What the two arguments are called, for messages."""

    def checked(self, batch: int, what: str) -> Metric:
        """This metric with arrays, of shapes that fit.

        Raises:
            TypeError: A value is no array, or an option has a wrong type.
            ValueError: A shape does not fit.
        """
        arrays = jnp.asarray(self.outputs), jnp.asarray(self.targets)
        for name, array in zip(self.names, arrays, strict=True):
            if array.shape[:1] != (batch,):
                raise ValueError(f"{what}: {name} have shape {array.shape}; expected ({batch}, ...), as the sequences")
        return replace(self, outputs=arrays[0], targets=arrays[1])

    def per_step(self) -> Any:
        """Return the metric as values ``(B,)`` of one time step if it is their mean; else None."""
        return None

    @abstractmethod
    def over_time(self) -> Mean | Parts:
        """Return the sums of a metric whose arrays are stacked over time, ``(T, B, ...)``, with weights ``(T, B)``.

        Raises:
            ValueError: A function of the user's returned a wrong shape.
        """


@dataclass(frozen=True)
class Decided(Metric):
    """A metric of every time step, or of one decision per sequence.

    Args:
        decide: None counts every time step. Otherwise a sequence counts once, with the target and the weight of the
            last of its time steps that have weight. "sum", "mean" and "max" are those of the outputs over its time
            steps with weight, "last" is the last of these outputs. A function
            ``(outputs (T, B, ...), weights (T, B)) -> (B, ...)`` decides by all outputs.
    """

    decide: Decide = field(default=None, kw_only=True, metadata={"static": True})

    def checked(self, batch: int, what: str) -> Metric:
        if self.decide is not None and self.decide not in NAMED and not callable(self.decide):
            raise TypeError(
                f"{what}: decide={self.decide!r}; expected None, one of {list(NAMED)}, or a function of outputs "
                "(T, B, ...) and weights (T, B)"
            )
        metric = super().checked(batch, what)
        self.check(metric.outputs, metric.targets, what)
        return metric

    @abstractmethod
    def check(self, outputs: jax.Array, targets: jax.Array, what: str) -> None:
        """Check that the arrays of one time step fit each other.

        Args:
            outputs: Outputs, ``(B, ...)``.
            targets: Their targets, ``(B, ...)``.
            what: The metric, for messages.

        Raises:
            ValueError: They do not.
        """

    @abstractmethod
    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Mean | Parts:
        """Sum over the outputs that count.

        Args:
            outputs: Outputs, ``(n, ...)``. Those with weight 0 may be NaN.
            targets: Their targets, ``(n, ...)``.
            weights: Their weights, ``(n,)``.

        Returns:
            The sums, of which the metric is computed once all batches are added.
        """

    def over_time(self) -> Mean | Parts:
        if self.decide is not None:
            return self.sums(*decision(self.decide, self.outputs, self.targets, self.weight))
        flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
        return self.sums(flat(self.outputs), flat(self.targets), flat(self.weight))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SequenceLoss(Metric):
    """A loss of a whole sequence, which ``learning_step`` returns in place of the loss of a time step.

    Only ``strategy="bptt"`` can differentiate it. A sequence has the weight of its last time step with weight.

    Args:
        outputs: Outputs of one time step, ``(B, ...)``.
        targets: Their targets, ``(B, ...)``.
        function: ``(outputs (T, B, ...), targets (T, B, ...), weights (T, B)) -> (B,)``, the loss of each sequence.
            Outputs with weight 0 are zeros.

    Example::

        def learning_step(self, forward, x, y):  # the cross entropy of the mean of all scores
            mean = lambda scores, y, w: optax.softmax_cross_entropy_with_integer_labels(scores.mean(0), y[-1])
            return jaxtrain.metrics.SequenceLoss(forward(x), y, mean)
    """

    function: Callable[[Any, Any, Any], Any] = field(metadata={"static": True})

    def over_time(self) -> Mean:
        counts = self.weight != 0
        # A sequence without any weight is passed as one with weight: of nothing, the function may have no derivative.
        seen = jnp.where(counts.any(0), self.weight, 1)
        held = jnp.where(_beside(seen != 0, self.outputs), self.outputs, 0)
        losses = jnp.asarray(self.function(held, self.targets, seen))
        if losses.shape != counts.shape[1:] or not jnp.issubdtype(losses.dtype, jnp.floating):
            raise ValueError(
                f"the function of a SequenceLoss returned {losses.dtype} of shape {losses.shape} for outputs "
                f"{self.outputs.shape}; expected one loss per sequence, {counts.shape[1:]}"
            )
        own = _last(self.weight)(self.weight)
        return Mean(jnp.sum(jnp.where(own != 0, own * losses, 0)), jnp.sum(own))


def _last(weights: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function that returns the values ``(B, ...)`` at the last time step with weight."""
    time, batch = weights.shape
    last = time - 1 - jnp.argmax((weights != 0)[::-1], 0)
    return lambda leaf: leaf[last, jnp.arange(batch)]


def _beside(counts: jax.Array, outputs: jax.Array) -> jax.Array:
    """``(T, B)`` with further axes, to broadcast to outputs ``(T, B, ...)``."""
    return counts.reshape(*counts.shape, *(1,) * (outputs.ndim - 2))


def decision(decide: Decide, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Any, Any, Any]:
    """One output ``(B, ...)`` for each sequence, its target, and its weight ``(B,)``: 0 if no time step has weight.

    Args:
        decide: How to decide.
        outputs: ``(T, B, ...)``; values with weight 0 may be NaN.
        targets: ``(T, B, ...)``.
        weights: ``(T, B)``.
    """
    at_last, batch = _last(weights), weights.shape[1]
    if outputs.dtype in (jnp.float16, jnp.bfloat16):
        outputs = outputs.astype(jnp.float32)
    there = _beside(weights != 0, outputs)
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
