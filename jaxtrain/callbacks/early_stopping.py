"""EarlyStopping, and Monitor: which of two validation scores is better."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.metrics import SEEDS
from ..utils.coerce import did_you_mean
from .base import Callback

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("jaxtrain")
Mode = Literal["min", "max"]
MAX = ("accuracy", "acc", "r2", "score")
"""Ends of names for which more is better where no mode is given."""


@dataclass(frozen=True)
class Monitor:
    """A tag of the validation metrics and whether less or more of it is better; NaN is worse than any number."""

    tag: str
    mode: Mode

    @staticmethod
    def of(tag: str, mode: Mode | None, owner: str) -> Monitor:
        if not isinstance(tag, str) or not tag:
            raise ValueError(f"{owner}: monitor is {tag!r}; expected the tag of a validation metric, as 'val/loss'")
        if tag.startswith(SEEDS):
            raise ValueError(
                f"{owner}: monitor is {tag!r}, which holds a number of each seed; expected one number, as their mean "
                f"{tag.removeprefix(SEEDS)!r}"
            )
        if mode not in (None, "min", "max"):
            raise ValueError(f"{owner}: mode is {mode!r}; expected 'min', 'max' or None (by the monitor's name)")
        return Monitor(tag, mode or ("max" if tag.endswith(MAX) else "min"))

    def require(self, run: Run, owner: str, alternative: str) -> None:
        """Raise ValueError if the run has no validation data."""
        if not run.has_validation:
            raise ValueError(
                f"{owner} monitors {self.tag!r}, but the data has no validation data: give DataModule(val=...) or "
                f"define val_data(), or {alternative}"
            )

    def read(self, metrics: dict[str, float], owner: str) -> float:
        if self.tag not in metrics:
            known = sorted(tag for tag in metrics if not tag.startswith(SEEDS))
            raise KeyError(
                f"{owner} monitors {self.tag!r}, which validation does not give; {did_you_mean(self.tag, known)}"
            )
        return float(metrics[self.tag])

    def reaches(self, score: float, target: float) -> bool:
        """Whether a score is at the target or better."""
        return score <= target if self.mode == "min" else score >= target

    def key(self, score: float) -> tuple[bool, float]:
        """Sorts scores from best to worst."""
        if math.isnan(score):
            return True, 0.0
        return False, score if self.mode == "min" else -score


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class EarlyStopping(Callback):
    """Stops a run when a validation metric has not got better for ``patience`` validations.

    Better means by more than ``min_delta``; NaN never is. ``threshold``: stops as soon as the metric is there.
    ``mode``: "min" or "max"; None takes "max" for names that end in accuracy, acc, r2 or score.
    Raises ValueError for bad arguments and without validation data, and before the first step KeyError where validation
    gives no such metric.

    >>> callbacks = [EarlyStopping("val/accuracy", patience=5, threshold=0.99)]
    """

    rank = "decide"

    def __init__(self, monitor: str = "val/loss", patience: int = 3, min_delta: float = 0.0, mode: Mode | None = None,
                 threshold: float | None = None):  # fmt: skip
        self.monitor = Monitor.of(monitor, mode, "EarlyStopping")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"EarlyStopping: patience is {patience!r}; expected a number of validations, 1 or more")
        if not (_is_number(min_delta) and min_delta >= 0 and math.isfinite(min_delta)):
            raise ValueError(f"EarlyStopping: min_delta is {min_delta!r}; expected 0 or more")
        if threshold is not None and (not _is_number(threshold) or math.isnan(threshold)):
            raise ValueError(f"EarlyStopping: threshold is {threshold!r}; expected a number or None")
        self.patience, self.min_delta, self.threshold = patience, min_delta, threshold
        self.reset()

    def reset(self) -> None:
        self.best: float | None = None
        self.best_step: int | None = None
        self.waited = 0

    def on_fit_start(self, run: Run) -> None:
        self.monitor.require(run, "EarlyStopping", "leave EarlyStopping out")
        if run.config["fit"]["validate_every"] is None:
            log.warning(
                "EarlyStopping looks at validations, and there is one at the end alone: set Fit(validate_every=...)"
            )

    def on_validation_end(self, run: Run, metrics: dict[str, float]) -> None:
        score = self.monitor.read(metrics, "EarlyStopping")
        tag, sign = self.monitor.tag, 1 if self.monitor.mode == "min" else -1
        if self._improves(score, sign):
            self.best, self.best_step, self.waited = score, run.step, 0
        else:
            self.waited += 1
        if self.threshold is not None and self.monitor.reaches(score, self.threshold):
            run.stop(f"{tag} is {score:.6g} and has reached {self.threshold:.6g}")
        elif self.waited >= self.patience:
            best = "it never was a number" if self.best is None else f"best {self.best:.6g} at step {self.best_step}"
            run.stop(f"{tag} is {score:.6g} and has not improved for {self.waited} validations ({best})")

    def _improves(self, score: float, sign: int) -> bool:
        if math.isnan(score) or self.best is None:
            return not math.isnan(score)
        return sign * score < sign * self.best - self.min_delta

    def state(self) -> dict[str, Any]:
        best = None if self.best is None else pack(self.best)
        return {"monitor": self.monitor.tag, "mode": self.monitor.mode, "best": best, "best_step": self.best_step,
                "waited": self.waited}  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        if not same_monitor(self.monitor, state, "EarlyStopping"):
            self.reset()
            return
        self.best = None if state["best"] is None else float(state["best"])
        self.best_step, self.waited = state["best_step"], state["waited"]


def pack(score: float) -> float | str:
    """A score as strict JSON; ``float`` reads it back exactly."""
    return score if math.isfinite(score) else repr(score)


def same_monitor(monitor: Monitor, state: dict[str, Any], owner: str) -> bool:
    """Whether saved scores are of this monitor; says so where they are not."""
    saved = Monitor(state["monitor"], state["mode"])
    if saved != monitor:
        log.warning("%s monitored %s (%s) and now %s (%s): it starts anew, without the scores so far",
                    owner, saved.tag, saved.mode, monitor.tag, monitor.mode)  # fmt: skip
    return saved == monitor
