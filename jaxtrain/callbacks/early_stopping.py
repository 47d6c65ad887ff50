"""EarlyStopping, and Monitor, which compares the values of a metric."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.metrics import SEEDS
from ..utils.coerce import did_you_mean
from ..utils.foreign_arguments import ForeignArguments
from .arguments import COUNT, expect, is_count, is_number
from .base import Callback

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("jaxtrain")
Mode = Literal["min", "max"]
MIN = re.compile(
    r"(?<![a-z0-9])(loss|error|error_rate|mae|mse|rmse|nrmse|mape|nll|cross_?entropy|bce|perplexity|ppl|bits|bpc|cost|"
    r"deviance|divergence|kl|distance|brier|brier_score|wer|cer|eer|ece)(/\d+)?$"
)
"""Ends of the names of metrics that are minimised; a number is that of a class."""
MAX = re.compile(
    r"(?<![a-z0-9])(accuracy|acc|auc|auroc|auprc|f1|f1_score|score|r2|correlation|corr|pearson|spearman|recall|precision|"
    r"sensitivity|specificity|kappa|mcc|dice|iou|miou|jaccard|reward|return|snr|psnr|ssim|bleu)(/\d+)?$"
)
"""Ends of the names of metrics that are maximised."""
REVERSED = re.compile(r"(?<![a-z0-9])(neg|negative|negated|inverse|inv|loss|error)[^a-z0-9/]")
"""Words before such an end that may turn its direction around: ``neg_mse``, ``error_correlation``."""
LOSS = "val/loss"
"""The default; of several sets of validation data, it stands for the loss of the first one."""


def direction(tag: str) -> Mode | None:
    """Whether lower or higher values of a metric are better, or None if the last word of its name does not say it."""
    name = tag.lower()
    lower, higher, turned = MIN.search(name), MAX.search(name), REVERSED.search(name)
    if turned and (higher or turned[1] not in ("loss", "error")):
        return None
    return "min" if lower else "max" if higher else None


@dataclass(frozen=True)
class Monitor:
    """The tag of a metric, and whether lower or higher values are better. NaN is worse than any number."""

    tag: str
    mode: Mode

    @staticmethod
    def of(tag: str, mode: Mode | None, owner: str) -> Monitor:
        """A checked monitor. ``owner``: name of the callback, for messages.

        Raises:
            ValueError: The tag or the mode is invalid, or neither says which values are better.
        """
        known = isinstance(tag, str) and tag != ""
        expect(known, owner, "monitor", tag, "the tag of a validation metric, such as 'val/loss'")
        if tag.startswith(SEEDS):
            raise ValueError(
                f"{owner}: monitor is {tag!r}, which has one number per seed; expected one number, such as their mean "
                f"{tag.removeprefix(SEEDS)!r}"
            )
        expect(mode in (None, "min", "max"), owner, "mode", mode, "'min', 'max' or None (by the monitor's name)")
        if (chosen := mode or direction(tag)) is None:
            raise ValueError(f'{owner}(monitor={tag!r}): state mode="min" or mode="max"')
        return Monitor(tag, chosen)

    def require(self, run: Run, owner: str, alternative: str) -> None:
        """Raise ValueError if the run has no validation data."""
        if not run.has_validation:
            raise ValueError(
                f"{owner} monitors {self.tag!r}, but the data has no validation data: give DataModule(val=...) or "
                f"define val_data(), or {alternative}"
            )

    def read(self, metrics: dict[str, Any], owner: str) -> float:
        """The value of the metric. Raises ValueError if it is missing or no number."""
        tag = self.tag
        if tag == LOSS and tag not in metrics:
            tag = next((name for name in metrics if re.fullmatch("val/[^/]+/loss", name)), tag)
        if tag not in metrics:
            known = sorted(tag for tag in metrics if not tag.startswith(SEEDS))
            raise ValueError(
                f"{owner} monitors {self.tag!r}, which validation does not give; {did_you_mean(self.tag, known)}"
            )
        if isinstance(metrics[tag], list):
            entries = [name for name in metrics if re.fullmatch(rf"{re.escape(tag)}/\d+", name)]
            advice = f"monitor one of its entries, such as {entries[0]!r}" if entries else "monitor another metric"
            raise ValueError(f"{owner} monitors {tag!r}, which is an array; expected one number: {advice}")
        return float(metrics[tag])

    def reaches(self, score: float, target: float) -> bool:
        """Whether a score equals the target or is better."""
        return score <= target if self.mode == "min" else score >= target

    def key(self, score: float) -> tuple[bool, float]:
        """Sort key: best scores first."""
        if math.isnan(score):
            return True, 0.0
        return False, score if self.mode == "min" else -score


class EarlyStopping(ForeignArguments, Callback):
    """Stops a run when a validation metric has not improved for ``patience`` validations.

    >>> callbacks = [EarlyStopping("val/accuracy", patience=5, threshold=0.99)]

    Args:
        monitor: Tag of a validation metric. With several sets of validation data, ``"val/loss"`` stands for the loss of
            the first one.
        patience: Number of validations in a row without improvement after which the run stops.
        min_delta: Smallest change that counts as an improvement. NaN is never an improvement.
        mode: Whether a lower ("min") or a higher ("max") value is better. None: by the metric's
            name, such as loss, mse, accuracy or recall/1 (docs/metrics.md lists them); other names need a mode.
        threshold: Stop as soon as the metric equals this value or is better.

    Raises:
        ValueError: An argument is invalid, there is no validation data, or validation has no such metric. Raised before
            the first step.
    """

    rank = "decide"

    def __init__(
        self,
        monitor: str = "val/loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode | None = None,
        threshold: float | None = None,
    ):
        self.monitor = Monitor.of(monitor, mode, "EarlyStopping")
        expect(is_count(patience), "EarlyStopping", "patience", patience, COUNT)
        finite = is_number(min_delta) and 0 <= min_delta < math.inf
        expect(finite, "EarlyStopping", "min_delta", min_delta, "a finite number, 0 or more")
        known = threshold is None or is_number(threshold)
        expect(known, "EarlyStopping", "threshold", threshold, "a number or None")
        self.patience, self.min_delta, self.threshold = patience, min_delta, threshold
        self.reset()

    def reset(self) -> None:
        self.best: float | None = None
        self.best_step: int | None = None
        self.waited = 0

    def on_fit_start(self, run: Run) -> None:
        self.monitor.require(run, "EarlyStopping", "leave EarlyStopping out")
        if run.config["fit"]["validate_every"] is None:
            log.warning("EarlyStopping reads validations, but the only one is at the end: set Fit(validate_every=...)")

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        score = self.monitor.read(metrics, "EarlyStopping")
        tag, sign = self.monitor.tag, 1 if self.monitor.mode == "min" else -1
        if self._improves(score, sign):
            self.best, self.best_step, self.waited = score, run.step, 0
        else:
            self.waited += 1
        if self.threshold is not None and self.monitor.reaches(score, self.threshold):
            run.stop(f"{tag} is {score:.6g} and has reached {self.threshold:.6g}")
        elif self.waited >= self.patience:
            never = self.best is None
            best = "it was NaN at every validation" if never else f"best {self.best:.6g} at step {self.best_step}"
            why = f"has not improved for {self.waited} validations (mode {self.monitor.mode}; {best})"
            run.stop(f"{tag} is {score:.6g} and {why}")

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
    """A score as strict JSON, which ``float`` reads back exactly."""
    return score if math.isfinite(score) else repr(score)


def same_monitor(monitor: Monitor, state: dict[str, Any], owner: str) -> bool:
    """Whether saved scores belong to this monitor; logs a warning if they do not."""
    saved = Monitor(state["monitor"], state["mode"])
    if saved != monitor:
        log.warning("%s monitored %s (%s) and now %s (%s): earlier scores are discarded",
                    owner, saved.tag, saved.mode, monitor.tag, monitor.mode)  # fmt: skip
    return saved == monitor
