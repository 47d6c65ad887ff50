"""ProgressBar: a bar on a terminal and in a notebook, periodic log lines elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core.metrics import SEEDS, is_rate, numbers
from .arguments import expect, is_number
from .base import Callback
from .recorder import tag

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("jaxtrain")


class ProgressBar(Callback):
    """Shows the progress of a run: a tqdm bar on a terminal or in a notebook, else a log line every ``every_seconds``.

    Both show the step, the steps per second since the start of training (without compilation), the mean loss and
    metrics of the last chunk, and the last validation. In a notebook the bar is a widget, or text without the package
    ipywidgets. The bar never waits for the device; it shows metrics that have arrived.
    ``Fit`` adds this callback by default, see its argument ``progress``.

    >>> callbacks = [ProgressBar(every_seconds=60)]

    Args:
        every_seconds: Seconds between log lines if there is no bar; None: no lines.

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
        self._train: dict[str, float] = {}
        self._val: dict[str, float] = {}
        self._start = self._logged = time.perf_counter()
        self._first = run.restored_step or 0
        if shows_bars():
            options: dict[str, Any] = {"file": sys.stderr} if sys.stderr.isatty() else {}
            self._bar = _tqdm()(total=run.max_steps, initial=self._first, unit="step", dynamic_ncols=True, **options)

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        own = [name for name in metrics if tag(name).startswith("train/") and not is_rate(name) and len(metrics[name])]
        self._train = {name: float(metrics[name].mean()) for name in sorted(own, key=lambda name: name != "loss")}
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
        if self.every_seconds is not None and self._bar is None and not shows_bars():
            log.info("%s, %s", self._line(run, eta=False), status)
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _numbers(self) -> str:
        shown = {**self._train, **self._val}
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


def shows_bars() -> bool:
    """Whether a bar can be shown: stderr is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    """Whether a kernel of IPython runs this process. Its output is shown in a browser, and stderr is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _tqdm() -> Any:
    """tqdm's bar for a notebook if that has widgets, else its bar of text."""
    if _in_notebook() and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm
