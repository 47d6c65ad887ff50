"""Curriculum: makes the task harder when a metric has reached a threshold."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..utils.files import as_json
from .arguments import COUNT, expect, is_count, is_number
from .base import Callback
from .early_stopping import Mode, Monitor, pack

if TYPE_CHECKING:
    import numpy as np

    from .run import Run

log = logging.getLogger("jaxtrain")
TASK = "task/"
"""Prefix of the tags under which the task's parameters are logged."""


class Curriculum(Callback):
    """Moves the data's task to the next stage when ``monitor`` has reached ``threshold``.

    The mean of the last ``over`` values of the current stage is compared, or with ``ema`` an exponential moving
    average, which starts at ``restart`` in every stage (Benzing et al. 2019). A step whose metric has weight 0 (NaN) is
    ignored.

    A stage that is decided by a training metric lasts until the boundary at the end of its chunk, or of the next chunk.
    ``Fit(chunk=...)`` therefore determines how soon a new task starts, and so do the periods of validations and
    checkpoints. A task that changes the shapes of batches compiles the programs again, which is logged. Data that is
    padded to a few sizes compiles only when these sizes change.

    The parameters of the task are logged under ``task/``, and the number of completed stages as ``task/passed``. Stages
    may be appended when a run is resumed; the run then continues with them.

    >>> lags = Curriculum([{"time_lag": lag} for lag in (1, 5, 20)], "val/accuracy", 0.98)

    Args:
        stages: Values of the data module's ``task``, easiest first. All set the same parameters. The data must be
            created with the first.
        monitor: A validation metric such as ``"val/accuracy"``, read after every validation, or a training metric such
            as ``"train/loss"``, read after every step.
        threshold: The value at which a stage is completed.
        mode: Whether a lower ("min") or a higher ("max") value is better. None: by the metric's
            name, such as loss, mse, accuracy or recall/1 (docs/metrics.md lists them); other names need a mode.
        over: Number of values to average.
        ema: Instead of ``over``, for training metrics: the part of the moving average that is kept in each step.
        restart: Start value of the moving average. Required with ``ema``.
        then: After the last stage, "stop" ends the run and "stay" continues with it.

    Raises:
        ValueError: An argument is invalid, the data has another task, or ``monitor`` needs validation data that is
            missing.
    """

    rank = "decide"

    def __init__(
        self,
        stages: Iterable[Mapping[str, Any]],
        monitor: str,
        threshold: float,
        *,
        mode: Mode | None = None,
        over: int = 1,
        ema: float | None = None,
        restart: float | None = None,
        then: Literal["stop", "stay"] = "stop",
    ):
        # As the task reads back from a checkpoint: tuples become lists.
        self.stages = [as_json(dict(stage), "Curriculum: a stage") for stage in stages]
        if not self.stages or any(set(stage) != set(self.stages[0]) or not stage for stage in self.stages):
            raise ValueError(f"Curriculum: stages={self.stages!r}; expected dicts that all set the same parameters")
        part, _, name = monitor.partition("/") if isinstance(monitor, str) else ("", "", "")
        known = part in ("train", "val") and name != ""
        expect(known, "Curriculum", "monitor", monitor, "a tag such as 'val/accuracy' or 'train/loss'")
        self.monitor = Monitor.of(monitor, mode, "Curriculum")
        finite = is_number(threshold) and math.isfinite(threshold)
        expect(finite, "Curriculum", "threshold", threshold, "a finite number")
        expect(is_count(over), "Curriculum", "over", over, COUNT)
        expect(ema is None or 0 < ema < 1, "Curriculum", "ema", ema, "a number between 0 and 1, or None")
        expect(then in ("stop", "stay"), "Curriculum", "then", then, "'stop' or 'stay'")
        if (ema is None) != (restart is None):
            raise ValueError(f"Curriculum: ema={ema!r}, restart={restart!r}; a moving average needs both")
        if ema is not None and (part == "val" or over != 1):
            raise ValueError("Curriculum: ema is for a metric of training, and instead of over; drop one")
        self.threshold, self.over, self.ema, self.restart, self.then = threshold, over, ema, restart, then
        self.reset()

    def reset(self) -> None:
        self.stage = 0
        self.advances: list[tuple[int, float]] = []
        """Step and score at which each stage was completed."""
        self._start_stage()

    def _start_stage(self) -> None:
        self._last: deque[float] = deque(maxlen=self.over)
        self._mean = self.restart

    @property
    def _validates(self) -> bool:
        return self.monitor.tag.startswith("val/")

    @property
    def passed(self) -> bool:
        """Whether all stages are completed."""
        return len(self.advances) == len(self.stages)

    def on_fit_start(self, run: Run) -> None:
        if self._validates:
            self.monitor.require(run, "Curriculum", "choose a metric of training")
        if run.restored_step is None:
            self._expect(run, self.stages[0], "its first stage")

    def on_restore(self, run: Run) -> None:
        if run.requests.task is None:
            self._expect(run, self.stages[self.stage], f"stage {self.stage + 1}, where it was saved")
        if len(self.advances) > self.stage and not self.passed:  # all stages were completed, and some were appended
            self.stage += 1
            self._start_stage()
            run.set_task(**self.stages[self.stage])

    def _expect(self, run: Run, stage: dict[str, Any], which: str) -> None:
        found = {key: run.task.get(key) for key in stage}
        if as_json(found, "the task of the data") != stage:
            raise ValueError(f"Curriculum: the task of the data has {found}; expected {stage}, {which}")

    # ------------------------------------------------------------------------------------------------ deciding

    def on_chunk_end(self, run: Run, metrics: dict[str, np.ndarray]) -> None:
        task = {key: run.task[key] for key in self.stages[0]}  # of the steps of this chunk
        run.log({f"{TASK}{key}": value for key, value in task.items() if is_number(value)})
        if not self._validates:
            name = self.monitor.tag.removeprefix("train/")
            if name not in metrics:
                known = sorted(name for name in metrics if "/" not in name)
                raise ValueError(
                    f"Curriculum monitors {self.monitor.tag!r}, but training gives {known}; choose one of these"
                )
            values = metrics[name].tolist()
            for step, value in enumerate(values, run.step - len(values) + 1):
                self._take(run, value, step)
        self._log_passed(run)

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        if self._validates:
            self._take(run, self.monitor.read(metrics, "Curriculum"), run.step)
            self._log_passed(run)

    def _log_passed(self, run: Run) -> None:
        run.log({f"{TASK}passed": len(self.advances)})

    def _take(self, run: Run, value: float, step: int) -> None:
        if math.isnan(value) or self.passed:
            return
        if self._mean is not None and self.ema is not None:
            # Also between the decision and the boundary at which the task changes.
            self._mean = score = self.ema * self._mean + (1 - self.ema) * value
        else:
            if run.requests.task is not None:
                return  # the value belongs to the completed stage
            self._last.append(value)
            if len(self._last) < self.over:
                return
            score = math.fsum(self._last) / self.over
        if self.monitor.reaches(score, self.threshold):
            self._advance(run, score, step)

    def _advance(self, run: Run, score: float, step: int) -> None:
        self.advances.append((step, score))
        stage = ", ".join(f"{key}={value}" for key, value in self.stages[self.stage].items())
        count, tag = f"{len(self.advances)} of {len(self.stages)}", self.monitor.tag
        log.info("step %d: %s is %.4g, stage %s (%s) is passed", step, tag, score, count, stage)
        if self.passed:
            if self.then == "stop":
                run.stop(f"{tag} is {score:.6g} at the curriculum's last stage, {stage}")
            return
        self.stage += 1
        self._start_stage()
        run.set_task(**self.stages[self.stage])

    # -------------------------------------------------------------------------------------------------- saving

    def _settings(self) -> dict[str, Any]:
        return {"monitor": self.monitor.tag, "mode": self.monitor.mode, "threshold": self.threshold, "over": self.over,
                "ema": self.ema, "restart": self.restart, "stages": self.stages}  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {
            "settings": self._settings(), "stage": self.stage, "last": [pack(value) for value in self._last],
            "mean": None if self._mean is None else pack(self._mean),
            "advances": [[step, pack(score)] for step, score in self.advances],
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the position. Raises ValueError if the stages in ``state`` are not the first of these."""
        saved, own = dict(state["settings"]), self._settings()
        stages, known = saved.pop("stages"), own.pop("stages")
        if saved != own or stages != known[: len(stages)]:
            raise ValueError(
                f"Curriculum: the run was saved in another curriculum, {state['settings']}, and this is "
                f"{self._settings()}; only stages at its end may be added"
            )
        self.stage = state["stage"]
        self.advances = [(step, float(score)) for step, score in state["advances"]]
        self._last = deque(map(float, state["last"]), maxlen=self.over)
        self._mean = None if state["mean"] is None else float(state["mean"])
