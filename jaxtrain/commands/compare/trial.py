"""One trial of a comparison: trains a recipe once, in a process of its own, and writes the result as JSON.

``jaxtrain compare`` runs: python -m jaxtrain.commands.compare.trial REQUEST.json RESULT.json
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...callbacks import Checkpoint
from ...callbacks.base import Callback
from ...callbacks.dispatch import Callbacks
from ...callbacks.early_stopping import Monitor
from ...callbacks.run import Run
from ...callbacks.throughput import peak_rss_mb
from ...cli.make import RecipeError, make_run
from ...engine.sharding import start as start_devices
from ...loggers import TensorBoard
from ...utils.allocator import keep_freed_memory
from ...utils.coerce import overlay
from ...utils.compilation_cache import use_compilation_cache
from ...utils.files import read_json, write_json
from ...utils.logging import one_line
from ..load_recipe import load_recipe

OVERRUN = 2.0
"""A dispatch that is still running at this multiple of the budget is aborted."""


class Watch(Callback):
    """Records a metric, and ends the run when its budget of seconds is spent.

    ``curve``: ``[step, seconds, value]`` at every validation or, for a training metric, at every log entry. The clock
    runs only while steps are running: what happens at a boundary (validation, saves, figures, compilation by a
    curriculum) does not count, because it does not depend on the strategy but on how often it is done. The budget is
    checked between dispatches.

    Args:
        monitor: The metric.
        target: The value to reach, or None.
        seconds: The budget, or None.
        stop: End the run at the target.
        overrun: Called from another thread if a dispatch is still running at ``OVERRUN`` times the budget.
    """

    rank = "decide"

    def __init__(self, monitor: Monitor, target: float | None, seconds: float | None, stop: bool,
                 overrun: Callable[[], Any] | None = None):  # fmt: skip
        self.monitor, self.target, self.budget, self.stop = monitor, target, seconds, stop
        self.curve: list[list[float]] = []
        self.mark: tuple[int, float] = (0, 0.0)
        """Step and seconds at the end of the last dispatch."""
        self._overrun = overrun
        self._over = threading.Event()
        self._running = 0
        self._clock: tuple[float, float | None] = (0.0, None)
        """Seconds until the clock last started or stopped, and its start time if it runs. One tuple, so that the other
        thread reads both at once."""

    def on_fit_start(self, run: Run) -> None:
        if self.budget is not None and self._overrun is not None:
            threading.Thread(target=self._guard, args=(OVERRUN * self.budget, self._overrun), daemon=True).start()

    def on_fit_end(self, run: Run, status: str) -> None:
        self._over.set()

    def _guard(self, limit: float, overrun: Callable[[], Any]) -> None:
        while (left := limit - self._seconds()) > 0:
            if self._over.wait(left):
                return
        overrun()

    def _seconds(self) -> float:
        before, since = self._clock
        return before if since is None else before + time.perf_counter() - since

    def on_chunk_start(self, run: Run) -> None:
        if not self._running:
            self._clock = (self._clock[0], time.perf_counter())
        self._running += 1

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._running -= 1
        seconds = self._seconds()
        if not self._running:  # a boundary
            self._clock = (seconds, None)
        self.mark = (run.step, seconds)
        if self.budget is not None and seconds >= self.budget:
            self._over.set()
            run.stop(f"the budget of {self.budget:g} s is spent")

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        if self.monitor.tag.startswith("val/"):  # not in on_log, which comes too late to stop the run here
            self._record(run, run.step, {self.monitor.tag: self.monitor.read(metrics, "compare")})

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        if not self.monitor.tag.startswith("val/"):
            self._record(run, row["step"], row)

    def _record(self, run: Run, step: int, metrics: dict[str, Any]) -> None:
        value = metrics.get(self.monitor.tag)
        if value is None:
            return
        self.curve.append([step, self.mark[1], value])
        if self.stop and reached(self.curve[-1:], self.monitor, self.target):
            run.stop(f"{self.monitor.tag} is {value:.6g} and has reached {self.target:g}")


def reached(curve: Sequence[Sequence[float]], monitor: Monitor, target: float | None) -> Sequence[float] | None:
    """The first ``[step, seconds, value]`` of a curve that is at the target or better, or None."""
    if target is None:
        return None
    return next((point for point in curve if monitor.reaches(point[2], target)), None)


def run_trial(request: dict[str, Any], abort: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """Train a recipe and return the result.

    Args:
        request: ``recipe`` (a path), ``config`` (its options), ``metric``, ``mode``, ``target``, ``seconds``, ``stop``.
        abort: Called with the result so far, from another thread, if a dispatch far exceeds the budget. It must end
            the process, since nothing else ends a dispatch.

    Returns:
        The result. ``failed`` is empty, or the reason of a failure in one line.
    """
    started = time.perf_counter()
    monitor = Monitor.of(request["metric"], request["mode"], "compare")
    ending: dict[str, Any] = {"failed": "", "status": "failed", "compile_seconds": math.nan, "test": {}}

    def so_far() -> dict[str, Any]:
        steps, seconds = watch.mark
        return {
            **ending,
            "steps": steps,
            "seconds": seconds,
            "value": watch.curve[-1][2] if watch.curve else math.nan,
            "peak_mb": peak_rss_mb(),
            "total_seconds": time.perf_counter() - started,
            "curve": list(watch.curve),
        }

    def overrun() -> None:
        ending["status"] = "overrun"
        if not watch.curve:
            ending["failed"] = (
                f"did not fit: no {monitor.tag} after {OVERRUN * request['seconds']:g} s and {watch.mark[0]} steps; "
                "a dispatch takes longer than the budget (--chunk sets its number of steps)"
            )
        if abort is not None:
            abort(so_far())

    watch = Watch(monitor, request["target"], request["seconds"], request["stop"], abort and overrun)
    try:
        recipe = load_recipe(Path(request["recipe"]))
        config = overlay(recipe.Config(), request["config"], "the request")
        start_devices(getattr(config, "devices", 1))  # must come before `make` initialises JAX
        fit, module, data = make_run(recipe.make, config)
        # metrics.jsonl and the last state are enough. Writing in the background would slow the steps down, for some
        # strategies more than for others.
        kept = [callback for callback in fit.callbacks if not isinstance(callback, Checkpoint | TensorBoard)]
        fit.callbacks = Callbacks([*kept, watch])
        result = fit.run(module, data, config=config.saved(), test=getattr(config, "test", False))
        ending.update(status=result.status, compile_seconds=result.summary["seconds"]["compile"])
        ending["test"] = result.summary["test"]
        if result.status in ("interrupted", "terminated"):
            ending["failed"] = f"the trial was {result.status} at step {result.step}"
        elif not watch.curve:
            tags = sorted({tag for entry in result.history for tag in entry})
            ending["failed"] = f"no log entry has {monitor.tag!r}; their tags are {', '.join(tags)}"
    except RecipeError as error:
        ending.update(failed=str(error), status="rejected")
    except Exception as error:  # that a strategy cannot run, or diverges, is a result
        ending["failed"] = one_line(error)
        traceback.print_exc()
    return so_far()


def main(request: Path, answer: Path) -> None:
    def abort(result: dict[str, Any]) -> None:
        write_json(answer, result)
        sys.stdout.flush()
        os._exit(0)

    keep_freed_memory()
    use_compilation_cache()
    write_json(answer, run_trial(read_json(request), abort))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
