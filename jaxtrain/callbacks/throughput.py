"""Throughput: steps and sequences per second, and peak memory, in every log entry."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from .base import Callback

if TYPE_CHECKING:
    from .run import Run


class Throughput(Callback):
    """Adds speed and memory to every log entry, measured since the previous entry without validations.

    ``throughput/steps_per_s``: train steps per second. ``throughput/sequences_per_s``: sequences per second.
    ``time/step_ms``: milliseconds per step. ``memory/peak_rss_mb``: peak memory of the process so far, in MiB. Entries
    within one chunk share their values. The values differ between runs, so exact resume does not cover these tags. A
    run that writes logs has this callback by default.

    >>> callbacks = [Throughput(), JSONL()]
    """

    rank = "produce"

    def on_fit_start(self, run: Run) -> None:
        self._excluded = 0.0  # seconds spent in validation
        self._since = self._last = (run.step, self._clock())
        self._values: dict[str, float] = {}

    def on_restore(self, run: Run) -> None:
        self._since = self._last = (run.step, self._clock())

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._last = (run.step, self._clock())

    def on_validation_start(self, run: Run) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._excluded += time.perf_counter() - self._validation_start

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        steps, seconds = (now - then for now, then in zip(self._last, self._since, strict=True))
        if steps > 0 and seconds > 0:
            self._since = self._last
            self._values = {
                "throughput/steps_per_s": steps / seconds,
                "throughput/sequences_per_s": steps * run.batch_size / seconds,
                "time/step_ms": 1000 * seconds / steps,
            }
        row.update(self._values)
        row["memory/peak_rss_mb"] = peak_rss_mb()

    def _clock(self) -> float:
        return time.perf_counter() - self._excluded


def peak_rss_mb() -> float:
    """Peak resident set size of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
