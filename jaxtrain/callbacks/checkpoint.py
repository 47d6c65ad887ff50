"""Checkpoint: when a run is saved, and which checkpoints are kept."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..period import Period
from .base import Callback
from .early_stopping import EarlyStopping, Mode, Monitor, pack, same_monitor
from .periods import optional_period

if TYPE_CHECKING:
    from pathlib import Path

    from .run import Run


# Made here and now, so that no tuple that somebody writes down is this object.
DEFAULT_BEST = tuple[str, int](["val/loss", 1])
"""Of a run without validation data nothing is best, unless a best was asked for."""


class Checkpoint(Callback):
    """Saves every so often, and whenever a validation enters the best ``k``.

    ``every``: steps, epochs or time (``500``, ``"1ep"``, ``"10min"``); a time is looked at when a chunk ends.
    ``best``: ``(tag of a validation metric, k)`` or None; a fork counts its own scores. ``last``: how many of the
    newest are kept besides these.
    ``mode``: "min" or "max"; None takes "max" for names that end in accuracy, acc, r2 or score.
    A score counts only at the step where it was measured; NaN is the worst one.
    Raises ValueError for bad arguments and for a ``best`` without validation data, and before the first step KeyError
    where validation gives no such metric.

    >>> callbacks = [Checkpoint(every=500, best=("val/accuracy", 2), last=2)]
    """

    rank = "persist"

    def __init__(self, every: int | str | Period | None = None, best: tuple[str, int] | None = DEFAULT_BEST,
                 last: int = 1, mode: Mode | None = None):  # fmt: skip
        self.every = optional_period(every, "Checkpoint")
        self._asked = best is not DEFAULT_BEST
        self.last = _count(last, "last")
        self.monitor: Monitor | None = None
        if best is not None:
            if not (isinstance(best, tuple | list) and len(best) == 2):
                raise ValueError(f"Checkpoint: best is {best!r}; expected (tag, how many), as ('val/loss', 1), or None")
            best = (best[0], _count(best[1], "the number in best"))
            self.monitor = Monitor.of(best[0], mode, "Checkpoint")
        elif mode is not None:
            raise ValueError(f"Checkpoint: mode is {mode!r}, but best is None; give best=(tag, how many) or no mode")
        self.best = best
        self.mode: Mode = self.monitor.mode if self.monitor else "min"
        self.scores: list[list[Any]] = []
        """The best so far, best first: ``[score, step]``."""
        self._saved_at = time.monotonic()

    def reset(self) -> None:
        self.scores = []

    def boundaries(self) -> Iterable[Period]:
        return () if self.every is None or self.every.unit == "time" else (self.every,)

    def on_fit_start(self, run: Run) -> None:
        self._saved_at = time.monotonic()
        if self.monitor is not None and self._asked:
            self.monitor.require(run, f"Checkpoint(best={self.best})")

    def on_restore(self, run: Run) -> None:
        if run.forked:  # the parent's best checkpoints are not in this directory
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

    def on_validation_end(self, run: Run, metrics: dict[str, float]) -> None:
        if self.monitor is None or self.best is None:
            return
        score = self.monitor.read(metrics, "Checkpoint")
        run.score = score  # also for a save that is due at this step for another reason
        others = [entry for entry in self.scores if entry[1] != run.step]
        # A stable sort: of two equal scores the earlier stays, so an equal one does not enter.
        ranked = sorted([*others, [score, run.step]], key=lambda entry: self._key(entry[0]))[: self.best[1]]
        if any(step == run.step for _, step in ranked):
            run.save()
        self.scores = ranked

    def on_checkpoint(self, run: Run, path: Path) -> None:
        self._saved_at = time.monotonic()

    def _key(self, score: float) -> tuple[bool, float]:
        assert self.monitor is not None
        return self.monitor.key(score)

    def state(self) -> dict[str, Any]:
        if self.monitor is None:
            return {}
        scores = [[pack(score), step] for score, step in self.scores]
        return {"monitor": self.monitor.tag, "mode": self.monitor.mode, "scores": scores}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scores = []
        if self.monitor is None or self.best is None or not state:
            return
        if same_monitor(self.monitor, state, "Checkpoint"):
            self.scores = [[float(score), step] for score, step in state["scores"]][: self.best[1]]


def kept_by(callback: Checkpoint | None) -> dict[str, Any]:
    """What a run keeps; without this callback its newest state alone."""
    if callback is None:
        return {"last": 1, "best": 0, "mode": "min", "monitor": None}
    monitor, best = callback.best or (None, 0)
    return {"last": callback.last, "best": best, "mode": callback.mode, "monitor": monitor}


def best_of(callback: Checkpoint | None) -> dict[str, Any] | None:
    """Tag, score and step of the best validation so far."""
    if callback is None or callback.best is None or not callback.scores:
        return None
    return {"monitor": callback.best[0], "score": callback.scores[0][0], "step": callback.scores[0][1]}


def require_metrics(callbacks: Iterable[Callback], metrics: Iterable[str]) -> None:
    """Raise KeyError where a callback monitors a metric that is not among these, of a validation."""
    given = {f"val/{name}": 0.0 for name in metrics}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        monitor = Monitor(monitor, "min") if isinstance(monitor, str) else monitor
        of_validation = isinstance(callback, Checkpoint | EarlyStopping)  # others may monitor training as well
        if isinstance(monitor, Monitor) and (of_validation or monitor.tag.startswith("val/")):
            monitor.read(given, type(callback).__name__)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Checkpoint: {name} is {value!r}; expected a whole number, 1 or more")
    return value
