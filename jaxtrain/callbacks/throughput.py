"""Throughput: steps and sequences a second, and peak memory, in every row."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from .base import Callback

if TYPE_CHECKING:
    from .run import Run


class Throughput(Callback):
    """Puts speed and memory into every row, measured since the row before; validation does not count.

    ``throughput/steps_per_s``, ``throughput/sequences_per_s``, ``time/step_ms`` (milliseconds a step) and
    ``memory/peak_rss_mb`` (MiB of the process, its peak so far). Rows within one chunk share their values. What the
    clock says differs from run to run, so these tags are not part of exact resume.

    >>> callbacks = [Throughput(), JSONL()]
    """

    rank = "produce"

    def on_fit_start(self, run: Run) -> None:
        self._away = 0.0  # seconds spent in validation
        self._since = self._mark = (run.step, self._clock())
        self._values: dict[str, float] = {}

    def on_restore(self, run: Run) -> None:
        self._since = self._mark = (run.step, self._clock())

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._mark = (run.step, self._clock())

    def on_validation_start(self, run: Run) -> None:
        self._left = time.perf_counter()

    def on_validation_end(self, run: Run, metrics: dict[str, float]) -> None:
        self._away += time.perf_counter() - self._left

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        steps, seconds = (now - then for now, then in zip(self._mark, self._since, strict=True))
        if steps > 0 and seconds > 0:
            self._since = self._mark
            self._values = {
                "throughput/steps_per_s": steps / seconds,
                "throughput/sequences_per_s": steps * run.batch_size / seconds,
                "time/step_ms": 1000 * seconds / steps,
            }
        row.update(self._values)
        row["memory/peak_rss_mb"] = peak_rss_mb()

    def _clock(self) -> float:
        return time.perf_counter() - self._away


def peak_rss_mb() -> float:
    """The largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
