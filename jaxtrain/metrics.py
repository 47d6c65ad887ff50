"""Metrics that are no means over time steps: decisions per sequence, per-class accuracy, F1, AUROC, R2, correlation.

``learning_step`` or ``evaluation_step`` returns them as values of its dict of metrics. They are exact over all batches
and devices of a validation or test. With several seeds, the finished metrics are averaged. In training, only an
``Accuracy`` of every time step is computed.

Example::

    def learning_step(self, forward, x, y):
        logits = forward(x)
        metrics = {
            "accuracy": jaxtrain.metrics.Accuracy(logits, y, decide="sum"),
            "f1": jaxtrain.metrics.F1(logits, y, decide="sum"),
        }
        return cross_entropy(logits, y), metrics

Every class takes ``decide`` and ``weight``:

- ``decide=None`` counts every time step. "sum", "mean", "last", "max" or a function
  ``(outputs (T, B, ...), weights (T, B)) -> (B, ...)`` makes one decision per sequence of a batch, over its time steps
  with weight. It has the target and the weight of the last of them.
- ``weight``, ``()`` or ``(B,)``, is multiplied with ``Phases.weights``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .core.decisions import Decided, SequenceLoss
from .core.metrics import Mean, Parts, Sums

__all__ = ["AUROC", "F1", "R2", "Accuracy", "ConfusionMatrix", "Correlation", "SequenceLoss"]
STATIC = {"static": True}


# ------------------------------------------------------------------------------------------------------ classes


class _OfClasses(Decided):
    """Scores ``(B, C)``, the largest of which is the predicted class, and true classes ``(B,)``."""

    names: ClassVar[tuple[str, str]] = ("scores", "targets")

    def check(self, outputs: jax.Array, targets: jax.Array, what: str) -> None:
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise ValueError(f"{what}: scores have shape {outputs.shape}; expected (B, C), a score for each class")
        if targets.ndim != 1 or jnp.issubdtype(targets.dtype, jnp.inexact):
            raise ValueError(
                f"{what}: targets have shape {targets.shape} and dtype {targets.dtype}; expected integers (B,), the "
                "true classes"
            )

    def _counts(self, scores: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        """Weights by true class, by predicted class, and of both if they are equal; each ``(1, C)``."""
        classes, predicted = scores.shape[-1], scores.argmax(-1)
        count = lambda at, w: jnp.zeros(classes).at[_index(at, classes)].add(w, mode="drop")[None]  # noqa: E731
        hits = jnp.where(predicted == targets, weights, 0)
        return count(targets, weights), count(predicted, weights), count(targets, hits)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Accuracy(_OfClasses):
    """The fraction of decisions whose largest score is that of the true class.

    Args:
        outputs: Scores of one time step, ``(B, C)``.
        targets: True classes, integers ``(B,)``.
        per_class: Return one accuracy for each class (its recall), NaN for a class without targets.

    >>> metrics = {"accuracy": Accuracy(logits, y, decide="sum")}
    """

    per_class: bool = field(default=False, kw_only=True, metadata=STATIC)

    def per_step(self) -> Any:
        return None if self.decide is not None or self.per_class else self.outputs.argmax(-1) == self.targets

    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Mean | Parts:
        if self.per_class:
            return Parts(self._counts(outputs, targets, weights), _added, _recalls)
        return Mean(jnp.sum(jnp.where(outputs.argmax(-1) == targets, weights, 0)), jnp.sum(weights))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class F1(_OfClasses):
    """The F1 score: the harmonic mean of precision and recall of a class.

    Args:
        outputs: Scores of one time step, ``(B, C)``.
        targets: True classes, integers ``(B,)``.
        average: "macro" is the mean over the classes that occur as target or prediction; None returns one value for
            each class, NaN for a class that does not occur.

    >>> metrics = {"f1": F1(logits, y, decide="last", average=None)}
    """

    average: Literal["macro"] | None = field(default="macro", kw_only=True, metadata=STATIC)

    def check(self, outputs: jax.Array, targets: jax.Array, what: str) -> None:
        super().check(outputs, targets, what)
        if self.average not in ("macro", None):
            raise ValueError(f"{what}: average={self.average!r}; expected 'macro', or None for one value per class")

    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Parts:
        counts = self._counts(outputs, targets, weights)
        return Parts(counts, _added, _f1_of_classes if self.average is None else _macro_f1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConfusionMatrix(_OfClasses):
    """How often a class is predicted as which: a matrix ``(C, C)``, rows true classes, columns predicted classes.

    Args:
        outputs: Scores of one time step, ``(B, C)``.
        targets: True classes, integers ``(B,)``.

    >>> metrics = {"confusion": ConfusionMatrix(logits, y, decide="mean")}
    """

    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Parts:
        classes = outputs.shape[-1]
        matrix = jnp.zeros((classes, classes))
        matrix = matrix.at[_index(targets, classes), outputs.argmax(-1)].add(weights, mode="drop")
        return Parts((matrix[None],), _added, _only)


def _index(targets: jax.Array, classes: int) -> jax.Array:
    """Targets as indices; those that are no class become one that is dropped."""
    return jnp.where((targets >= 0) & (targets < classes), targets, classes)


def _added(sums: Sums) -> Sums:
    return tuple(leaf.sum(0, keepdims=True) for leaf in sums)


def _only(sums: Sums) -> Any:
    return sums[0][0]


def _recalls(sums: Sums) -> Any:
    true, _, hits = (leaf[0] for leaf in sums)
    with np.errstate(invalid="ignore"):
        return hits / true


def _f1_of_classes(sums: Sums) -> Any:
    true, predicted, hits = (leaf[0] for leaf in sums)
    with np.errstate(invalid="ignore"):
        return 2 * hits / (true + predicted)


def _macro_f1(sums: Sums) -> Any:
    each = _f1_of_classes(sums)
    return each[~np.isnan(each)].mean() if (~np.isnan(each)).any() else np.nan


# ---------------------------------------------------------------------------------------------------- a score


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AUROC(Decided):
    """The area under the receiver operating characteristic: the probability that a positive has the larger score.

    The host keeps the scores of the whole validation, 8 bytes for each sequence (``decide=None``: for each time step).
    Equal scores count one half. NaN without positives, without negatives, or if a score with weight is NaN.

    Args:
        outputs: Scores of one time step, ``(B,)``.
        targets: ``(B,)``, True or nonzero for a positive.

    >>> metrics = {"auroc": AUROC(logits[:, 1], y, decide="max")}
    """

    names: ClassVar[tuple[str, str]] = ("scores", "targets")

    def check(self, outputs: jax.Array, targets: jax.Array, what: str) -> None:
        if outputs.ndim != 1 or targets.ndim != 1:
            raise ValueError(
                f"{what}: scores have shape {outputs.shape}, targets {targets.shape}; expected (B,) each: of two "
                "classes, give the score of the positive one"
            )

    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Parts:
        signed = jnp.where(targets != 0, weights, -weights)  # negatives have negative weights
        return Parts((jnp.where(weights != 0, outputs, 0).astype(jnp.float32), signed), None, _area)


def _area(sums: Sums) -> Any:
    scores, signed = sums
    if np.isnan(scores).any():  # unique() would sort NaN as the largest score
        return np.nan
    values, place = np.unique(scores[signed != 0], return_inverse=True)
    signed = signed[signed != 0].astype(np.float64)
    positive = np.bincount(place, np.maximum(signed, 0), len(values))
    negative = np.bincount(place, np.maximum(-signed, 0), len(values))
    below = np.cumsum(negative) - negative
    with np.errstate(invalid="ignore"):
        return np.sum(positive * (below + negative / 2)) / np.float64(positive.sum() * negative.sum())


# ------------------------------------------------------------------------------------------------- regression


class _OfValues(Decided):
    """Predictions ``(B, ...)`` and targets of the same shape."""

    names: ClassVar[tuple[str, str]] = ("predictions", "targets")

    def check(self, outputs: jax.Array, targets: jax.Array, what: str) -> None:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"{what}: predictions have shape {outputs.shape}, targets {targets.shape}; expected equal shapes"
            )

    def _moments(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        """Sums ``(1, F)`` of targets y and predictions p: of w, a shift of y and of p, then of w * a for the shifted
        y, p, y * y, p * p, y * p, and of w * (p - y) ** 2.

        A batch is shifted by its own mean, so that nothing cancels in float32; the host adds batches in float64.
        """
        w = weights[:, None]
        y, p = (jnp.where(w != 0, a.reshape(len(a), -1).astype(jnp.float32), 0) for a in (targets, outputs))
        total = jnp.broadcast_to(w.sum(0), y.shape[1:])
        shifts = [(w * a).sum(0) / jnp.where(total != 0, total, 1) for a in (y, p)]
        dy, dp = (jnp.where(w != 0, a - shift, 0) for a, shift in zip((y, p), shifts, strict=True))
        sums = [(w * a).sum(0) for a in (dy, dp, dy * dy, dp * dp, dy * dp, jnp.square(p - y))]
        return tuple(leaf[None] for leaf in (total, *shifts, *sums))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class R2(_OfValues):
    """The coefficient of determination: 1 is perfect, 0 is the accuracy of the targets' mean.

    Several features are averaged. NaN if a feature's targets are constant.

    Args:
        outputs: Predictions of one time step, ``(B, ...)``.
        targets: Their targets, of the same shape.

    >>> metrics = {"r2": R2(outputs, targets)}
    """

    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Parts:
        return Parts(self._moments(outputs, targets, weights), _shifted, _r2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Correlation(_OfValues):
    """Pearson's correlation coefficient of predictions and targets.

    Several features are averaged. NaN if a feature's predictions or targets are constant.

    Args:
        outputs: Predictions of one time step, ``(B, ...)``.
        targets: Their targets, of the same shape.

    >>> metrics = {"r": Correlation(outputs, targets)}
    """

    def sums(self, outputs: jax.Array, targets: jax.Array, weights: jax.Array) -> Parts:
        return Parts(self._moments(outputs, targets, weights), _shifted, _correlation)


def _shifted(sums: Sums) -> Sums:
    """The sums over all parts, shifted by the means over all parts."""
    total, y, p, dy, dp, yy, pp, yp, errors = sums
    whole = total.sum(0)
    mean_y, mean_p = (
        (total * shift + first).sum(0) / np.where(whole != 0, whole, 1) for shift, first in ((y, dy), (p, dp))
    )
    y, p = y - mean_y, p - mean_p  # from the old shifts to the new ones
    yy, pp = yy + 2 * y * dy + total * y * y, pp + 2 * p * dp + total * p * p
    yp = yp + y * dp + p * dy + total * y * p
    zero = np.zeros_like(mean_y)
    merged = (whole, mean_y, mean_p, zero, zero, *(leaf.sum(0) for leaf in (yy, pp, yp, errors)))
    return tuple(leaf[None] for leaf in merged)


def _r2(sums: Sums) -> Any:
    yy, errors = sums[5][0], sums[8][0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(yy > 0, 1 - errors / yy, np.nan).mean()


def _correlation(sums: Sums) -> Any:
    yy, pp, yp = (leaf[0] for leaf in sums[5:8])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(yy * pp > 0, yp / np.sqrt(yy * pp), np.nan).mean()
