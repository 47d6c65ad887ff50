"""Checkpoint: when a run is saved, and which checkpoints are kept."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..core.metrics import numbers
from ..period import Period
from ..utils.foreign_arguments import ForeignArguments
from .arguments import COUNT, expect, is_count, optional_period
from .base import Callback
from .early_stopping import EarlyStopping, Mode, Monitor, pack, same_monitor

if TYPE_CHECKING:
    from pathlib import Path

    from .run import Run

DEFAULT = "val/loss", None, 1
"""Default of monitor, mode and keep_best: the best checkpoint is kept if there is validation data."""


class Checkpoint(ForeignArguments, Callback):
    """Saves a run periodically and after each validation whose score is among the best.

    A score belongs to the step at which it was measured. NaN is worse than any number. A fork starts without the
    scores of its parent. A run with a run directory has a ``Checkpoint()`` by default.

    >>> callbacks = [Checkpoint(every=500, monitor="val/accuracy", keep_best=2, keep_last=2)]

    Args:
        every: Period between saves in steps, epochs or time (``500``, ``"1ep"``, ``"10min"``). A time is checked at
            the end of each chunk. None: save only at a new best score and at the end of the run.
        monitor: Tag of a validation metric that ranks checkpoints; None keeps only the newest ones. Without validation
            data, the default has no effect. With several sets of it, ``"val/loss"`` stands for the loss of the first
            one.
        mode: Whether a lower ("min") or a higher ("max") score is better. None: by the metric's
            name, such as loss, mse, accuracy or recall/1 (docs/metrics.md lists them); other names need a mode.
        keep_best: Number of checkpoints with the best scores to keep.
        keep_last: Number of newest checkpoints to keep, besides those with the best scores.

    Raises:
        ValueError: An argument is invalid, or ``monitor``, ``mode`` or ``keep_best`` is given but the run has no
            validation data, or validation gives no such metric. Raised before the first step.
    """

    rank = "persist"

    def __init__(
        self,
        every: int | str | Period | None = None,
        monitor: str | None = "val/loss",
        mode: Mode | None = None,
        keep_best: int = 1,
        keep_last: int = 1,
    ):
        self.every = optional_period(every, "Checkpoint")
        self._default = (monitor, mode, keep_best) == DEFAULT
        for name, value in (("keep_best", keep_best), ("keep_last", keep_last)):
            expect(is_count(value), "Checkpoint", name, value, COUNT)
        self.keep_best, self.keep_last = keep_best, keep_last
        if monitor is None and (mode, keep_best) != DEFAULT[1:]:
            raise ValueError(
                f"Checkpoint: mode is {mode!r} and keep_best is {keep_best}, but monitor is None; give a monitor, or "
                "neither of them"
            )
        self.monitor = None if monitor is None else Monitor.of(monitor, mode, "Checkpoint")
        self.scores: list[list[Any]] = []
        """The best scores so far, best first: ``[score, step]``."""
        self._saved_at = time.monotonic()

    @property
    def mode(self) -> Mode:
        """Which scores are better."""
        return "min" if self.monitor is None else self.monitor.mode

    def reset(self) -> None:
        self.scores = []

    def boundaries(self) -> Iterable[Period]:
        return () if self.every is None or self.every.unit == "time" else (self.every,)

    def on_fit_start(self, run: Run) -> None:
        self._saved_at = time.monotonic()
        if self.monitor is not None and not self._default:
            self.monitor.require(run, "Checkpoint", "pass monitor=None")

    def on_restore(self, run: Run) -> None:
        if run.forked:  # this directory does not contain the parent's best checkpoints
            self.scores = []

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        if self.every is None:
            return
        if self.every.unit == "time":
            due = time.monotonic() - self._saved_at >= self.every.n
        else:
            due = self.every.due(run.step, run.epoch_length)
        if due:
            run.save()

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        if self.monitor is None:
            return
        score = self.monitor.read(metrics, "Checkpoint")
        run.score = score  # also for a save that is due at this step for another reason
        others = [entry for entry in self.scores if entry[1] != run.step]
        # The sort is stable: of two equal scores the earlier one stays, so an equal score does not enter.
        key = self.monitor.key
        self.scores = sorted([*others, [score, run.step]], key=lambda entry: key(entry[0]))[: self.keep_best]
        if any(step == run.step for _, step in self.scores):
            run.save()

    def on_checkpoint(self, run: Run, path: Path) -> None:
        self._saved_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        if self.monitor is None or not self.scores:
            return {}
        scores = [[pack(score), step] for score, step in self.scores]
        return {"monitor": self.monitor.tag, "mode": self.monitor.mode, "scores": scores}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scores = []
        if self.monitor is not None and state and same_monitor(self.monitor, state, "Checkpoint"):
            self.scores = [[float(score), step] for score, step in state["scores"]][: self.keep_best]


def kept_by(callback: Checkpoint | None) -> dict[str, Any]:
    """Which checkpoints a run keeps; only the newest one without this callback."""
    callback = callback or Checkpoint(monitor=None)
    tag, best = (None, 0) if callback.monitor is None else (callback.monitor.tag, callback.keep_best)
    return {"keep_last": callback.keep_last, "keep_best": best, "mode": callback.mode, "monitor": tag}


def best_of(callback: Checkpoint | None) -> dict[str, Any] | None:
    """Tag, score and step of the best validation so far."""
    if callback is None or callback.monitor is None or not callback.scores:
        return None
    score, step = callback.scores[0]
    return {"monitor": callback.monitor.tag, "score": score, "step": step}


def require_metrics(callbacks: Iterable[Callback], metrics: dict[str, Any]) -> None:
    """Raise ValueError if a callback monitors a validation metric that is not a number in ``metrics``."""
    given = {**metrics, **numbers(metrics)}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        monitor = Monitor(monitor, "min") if isinstance(monitor, str) else monitor
        of_validation = isinstance(callback, Checkpoint | EarlyStopping)  # others may monitor training as well
        if isinstance(monitor, Monitor) and (of_validation or monitor.tag.startswith("val/")):
            monitor.read(given, type(callback).__name__)
