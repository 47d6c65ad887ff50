"""ProgressBar: a bar on a terminal, periodic log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core.metrics import SEEDS, numbers
from .arguments import expect, is_number
from .base import Callback

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("jaxtrain")


class ProgressBar(Callback):
    """Shows the progress of a run: a tqdm bar if stderr is a terminal, else a log line every ``every_seconds``.

    Both show the step, the steps per second since the start of training (without compilation), the mean loss of the
    last chunk, and the last validation. The bar never waits for the device; it shows metrics that have arrived.
    ``Fit`` adds this callback by default, see its argument ``progress``.

    >>> callbacks = [ProgressBar(every_seconds=60)]

    Args:
        every_seconds: Seconds between log lines if stderr is no terminal; None: no lines.

    Raises:
        ValueError: ``every_seconds`` is not a positive number.
    """

    rank = "record"

    def __init__(self, every_seconds: float | None = 30):
        known = every_seconds is None or (is_number(every_seconds) and every_seconds > 0)
        expect(known, "ProgressBar", "every_seconds", every_seconds, "a number above 0, or None")
        self.every_seconds = every_seconds
        self._bar: Any = None

    def on_fit_start(self, run: Run) -> None:
        self._close()
        self._loss: float | None = None
        self._val: dict[str, float] = {}
        self._start = self._logged = time.perf_counter()
        self._first = run.restored_step or 0
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=run.max_steps, initial=self._first, unit="step", dynamic_ncols=True, file=sys.stderr)

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        loss = metrics.get("loss")
        if loss is not None and len(loss):
            self._loss = float(loss.mean())
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=False)
            self._bar.update(run.step - self._bar.n)
        elif self.every_seconds is not None and time.perf_counter() - self._logged >= self.every_seconds:
            self._logged = time.perf_counter()
            log.info(self._line(run, eta=True))

    def on_validation_end(self, run: Run, metrics: dict[str, float]) -> None:
        self._val = numbers(metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=False)

    def on_exception(self, run: Run, error: BaseException) -> None:
        self._close()

    def on_fit_end(self, run: Run, status: str) -> None:
        if self.every_seconds is not None and self._bar is None and not sys.stderr.isatty():
            log.info("%s, %s", self._line(run, eta=False), status)
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _numbers(self) -> str:
        loss = {} if self._loss is None else {"loss": self._loss}
        shown = {**loss, **self._val}
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if not name.startswith(SEEDS))

    def _line(self, run: Run, *, eta: bool) -> str:
        seconds = time.perf_counter() - self._start
        rate = (run.step - self._first) / seconds if seconds > 0 else 0.0
        parts = [f"step {run.step}" if run.max_steps is None else f"step {run.step}/{run.max_steps}"]
        parts += [f"{rate:.4g} steps/s", self._numbers()]
        if eta and run.max_steps is not None and rate > 0:
            parts.append(f"ETA {timedelta(seconds=round((run.max_steps - run.step) / rate))}")
        elif not eta:
            parts.append(f"after {timedelta(seconds=round(seconds))}")
        return ", ".join(part for part in parts if part)
