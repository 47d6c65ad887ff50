"""Curriculum: a task that gets harder once a metric says that it has been learned."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..utils.files import as_json
from .base import Callback
from .early_stopping import MAX, Mode, pack

if TYPE_CHECKING:
    import numpy as np

    from .run import Run

log = logging.getLogger("jaxtrain")
SHOWN = "task/"
"""Begins the tags of the task's parameters in the record."""


class Curriculum(Callback):
    """Moves the data's task from stage to stage: on to the next one when ``monitor`` has reached ``threshold``.

    ``stages``: values of the data module's ``task``, easiest first, e.g. ``[{"time_lag": lag} for lag in (1, 5, 20)]``;
    the data must be made with the first. ``monitor``: a validation metric, ``"val/accuracy"``, looked at after every
    validation, or one of training, ``"train/loss"``, looked at after every step. ``mode``: "min" or "max"; None takes
    "max" for names that end in accuracy, acc, r2 or score.

    What is compared is the mean of the last ``over`` values of the present stage, or with ``ema`` a running mean that
    keeps that part of itself a step (a metric of training alone); it begins at ``restart``, and again at every stage
    (Benzing et al. 2019). A step whose metric weighs nothing, NaN, does not count. A stage of training metrics lasts
    until the edge of its chunk, or of the next where no other event is due there: ``Fit(chunk=...)`` says how soon a
    new task begins, and so do the periods of validations and checkpoints.

    ``then``: after the last stage "stop" ends the run, "stay" goes on with it. The task's parameters stand in the rows
    of the record under ``task/``, and how many stages are passed under ``task/passed``. A new task that changes the
    shapes of batches compiles the programs anew, and the log says so: data that pads to a few sizes compiles as often
    as these change.

    Raises ValueError for bad arguments, for data made with another task, and without validation data where ``monitor``
    needs them, KeyError where there is no such metric.

    >>> lags = Curriculum([{"time_lag": lag} for lag in (1, 5, 20)], "val/accuracy", 0.98)
    """

    rank = "decide"

    def __init__(self, stages: Iterable[Mapping[str, Any]], monitor: str, threshold: float, *, mode: Mode | None = None,
                 over: int = 1, ema: float | None = None, restart: float | None = None,
                 then: Literal["stop", "stay"] = "stop"):  # fmt: skip
        # As the task reads back from a checkpoint: tuples are lists there.
        self.stages = [as_json(dict(stage), "Curriculum: a stage") for stage in stages]
        if not self.stages or any(set(stage) != set(self.stages[0]) or not stage for stage in self.stages):
            raise ValueError(f"Curriculum: stages={self.stages!r}; expected dicts that all set the same parameters")
        part, _, self.name = monitor.partition("/") if isinstance(monitor, str) else ("", "", "")
        if part not in ("train", "val") or not self.name:
            raise ValueError(f"Curriculum: monitor is {monitor!r}; expected a tag as 'val/accuracy' or 'train/loss'")
        if mode not in (None, "min", "max"):
            raise ValueError(f"Curriculum: mode is {mode!r}; expected 'min', 'max' or None (by the monitor's name)")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
            raise ValueError(f"Curriculum: threshold is {threshold!r}; expected a number")
        if isinstance(over, bool) or not isinstance(over, int) or over < 1:
            raise ValueError(f"Curriculum: over is {over!r}; expected a number of values, 1 or more")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"Curriculum: ema is {ema!r}; expected a number between 0 and 1, or None")
        if (ema is None) != (restart is None):
            raise ValueError(f"Curriculum: ema={ema!r}, restart={restart!r}; a running mean needs both")
        if ema is not None and (part == "val" or over != 1):
            raise ValueError("Curriculum: ema is for a metric of training, and instead of over; drop one")
        if then not in ("stop", "stay"):
            raise ValueError(f"Curriculum: then is {then!r}; expected 'stop' or 'stay'")
        self.monitor, self.mode, self.threshold = (
            monitor,
            mode or ("max" if self.name.endswith(MAX) else "min"),
            threshold,
        )
        self.over, self.ema, self.restart, self.then = over, ema, restart, then
        self.reset()

    def reset(self) -> None:
        self.stage = 0
        self.advances: list[tuple[int, float]] = []
        """Step and score at which each stage was passed."""
        self._begin()

    def _begin(self) -> None:
        self._last: deque[float] = deque(maxlen=self.over)
        self._mean = self.restart

    @property
    def passed(self) -> bool:
        """Whether the last stage has been passed, too."""
        return len(self.advances) == len(self.stages)

    def on_fit_start(self, run: Run) -> None:
        if self.monitor.startswith("val/") and not run.has_validation:
            raise ValueError(
                f"Curriculum monitors {self.monitor!r}, but the data has no validation data: define val_data(), or "
                "choose a metric of training"
            )
        if run.restored_step is None:
            self._expect(run, self.stages[0], "its first stage")

    def on_restore(self, run: Run) -> None:
        if run.requests.task is None:
            self._expect(run, self.stages[self.stage], f"stage {self.stage + 1}, where it was saved")
        if len(self.advances) > self.stage and not self.passed:  # all stages were passed, and more have been added
            self.stage += 1
            self._begin()
            run.set_task(**self.stages[self.stage])

    def _expect(self, run: Run, stage: dict[str, Any], which: str) -> None:
        found = {key: run.task.get(key) for key in stage}
        if as_json(found, "the task of the data") != stage:
            raise ValueError(f"Curriculum: the task of the data has {found}; expected {stage}, {which}")

    # ------------------------------------------------------------------------------------------------ deciding

    def on_chunk_end(self, run: Run, metrics: dict[str, np.ndarray]) -> None:
        shown = {key: run.task[key] for key in self.stages[0]}  # as these steps had it
        run.log({f"{SHOWN}{key}": value for key, value in shown.items() if _is_number(value)})
        if self.monitor.startswith("train/"):
            if self.name not in metrics:
                known = sorted(name for name in metrics if "/" not in name)
                raise KeyError(f"Curriculum monitors {self.monitor!r}, but training gives {known}; choose one of these")
            n = len(metrics[self.name])
            for i, value in enumerate(metrics[self.name].tolist()):
                self._take(run, value, run.step - n + i + 1)
        self._log_passed(run)

    def on_validation_end(self, run: Run, metrics: dict[str, float]) -> None:
        if self.monitor.startswith("val/"):
            if self.monitor not in metrics:
                raise KeyError(f"Curriculum monitors {self.monitor!r}, but validation gave {sorted(metrics)}")
            self._take(run, metrics[self.monitor], run.step)
            self._log_passed(run)

    def _log_passed(self, run: Run) -> None:
        run.log({f"{SHOWN}passed": len(self.advances)})

    def _take(self, run: Run, value: float, step: int) -> None:
        if math.isnan(value) or self.passed:
            return
        if self._mean is not None and self.ema is not None:
            # Also between the decision and the edge at which the task changes: as where sequences of the old length
            # are still under way.
            self._mean = score = self.ema * self._mean + (1 - self.ema) * value
        else:
            if run.requests.task is not None:
                return  # of the stage that has been passed
            self._last.append(value)
            if len(self._last) < self.over:
                return
            score = math.fsum(self._last) / self.over
        if score <= self.threshold if self.mode == "min" else score >= self.threshold:
            self._advance(run, score, step)

    def _advance(self, run: Run, score: float, step: int) -> None:
        self.advances.append((step, score))
        passed = ", ".join(f"{key}={value}" for key, value in self.stages[self.stage].items())
        if self.passed:
            log.info(
                "step %d: %s is %.4g: the curriculum's last stage, %s, is passed", step, self.monitor, score, passed
            )
            if self.then == "stop":
                run.stop(f"{self.monitor} is {score:.6g} at the curriculum's last stage, {passed}")
            return
        self.stage += 1
        self._begin()
        log.info("step %d: %s is %.4g, stage %d of %d (%s) is passed", step, self.monitor, score, self.stage,
                 len(self.stages), passed)  # fmt: skip
        run.set_task(**self.stages[self.stage])

    # -------------------------------------------------------------------------------------------------- saving

    def _settings(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "mode": self.mode, "threshold": self.threshold, "over": self.over,
                "ema": self.ema, "restart": self.restart, "stages": self.stages}  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {
            "settings": self._settings(), "stage": self.stage, "last": [pack(value) for value in self._last],
            "mean": None if self._mean is None else pack(self._mean),
            "advances": [[step, pack(score)] for step, score in self.advances],
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the position in another curriculum; stages may be added at its end, and come next."""
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
