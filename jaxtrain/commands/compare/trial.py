"""One trial of a comparison: a recipe trained once, in a process of its own, and what came of it as JSON.

python -m jaxtrain.commands.compare.trial REQUEST.json RESULT.json    as `jaxtrain compare` does
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
from ...cli.made import RecipeError, make_run
from ...engine.sharding import start as start_devices
from ...loggers import TensorBoard
from ...strategies import registry
from ...utils.coerce import overlay
from ...utils.compilation_cache import use_compilation_cache
from ...utils.files import read_json, write_json
from ...utils.logging import one_line
from ..fidelity import load_recipe

OVERRUN = 2.0
"""Budgets after which a dispatch that does not end is given up."""


class Watch(Callback):
    """Notes a metric at every validation, or of training in every row, and ends a run whose budget in seconds is spent.

    ``curve``: ``[step, seconds, value]`` each time. Seconds are those in which steps are under way: what happens at an
    event edge (validations, saves, figures, what a curriculum compiles) does not count, for it is not the rule's and
    hangs on how often there is one. With ``stop`` it ends a run at ``target``, too. A budget is looked at between
    dispatches; ``overrun`` is called, in a thread of its own, in the midst of one that has taken it to ``OVERRUN``
    times as much.
    """

    rank = "decide"

    def __init__(self, monitor: Monitor, target: float | None, seconds: float | None, stop: bool,
                 overrun: Callable[[], Any] | None = None):  # fmt: skip
        self.monitor, self.target, self.budget, self.stop = monitor, target, seconds, stop
        self.curve: list[list[float]] = []
        self.mark: tuple[int, float] = (0, 0.0)
        self._overrun = overrun
        self._over = threading.Event()
        self._under_way = 0
        self._clock: tuple[float, float | None] = (0.0, None)
        """Seconds until it was last started or stopped, and since when it goes on; the guard reads both at once."""

    def on_fit_start(self, run: Run) -> None:
        if self.budget is not None and self._overrun is not None:
            threading.Thread(target=self._guard, daemon=True).start()

    def on_fit_end(self, run: Run, status: str) -> None:
        self._over.set()

    def _guard(self) -> None:
        assert self.budget is not None and self._overrun is not None
        while (left := OVERRUN * self.budget - self._spent()) > 0:
            if self._over.wait(left):
                return
        self._overrun()

    def _spent(self) -> float:
        before, since = self._clock
        return before if since is None else before + time.perf_counter() - since

    def on_chunk_start(self, run: Run) -> None:
        if not self._under_way:
            self._clock = (self._clock[0], time.perf_counter())
        self._under_way += 1

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._under_way -= 1
        spent = self._spent()
        if not self._under_way:  # an edge
            self._clock = (spent, None)
        self.mark = (run.step, spent)
        if self.budget is not None and spent >= self.budget:
            self._over.set()
            run.stop(f"the budget of {self.budget:g} s is spent")

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        if self.monitor.tag.startswith("val/"):  # now, and not with the row: a run is to end here
            self._note(run, run.step, {self.monitor.tag: self.monitor.read(metrics, "compare")})

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        if not self.monitor.tag.startswith("val/"):
            self._note(run, row["step"], row)

    def _note(self, run: Run, step: int, metrics: dict[str, Any]) -> None:
        value = metrics.get(self.monitor.tag)
        if value is None:
            return
        self.curve.append([step, self.mark[1], value])
        if self.stop and reached(self.curve[-1:], self.monitor, self.target):
            run.stop(f"{self.monitor.tag} is {value:.6g} and has reached {self.target:g}")


def reached(curve: Sequence[Sequence[float]], monitor: Monitor, target: float | None) -> Sequence[float] | None:
    """The first ``[step, seconds, value]`` of a curve that is at the target or better."""
    if target is None:
        return None
    return next((point for point in curve if monitor.reaches(point[2], target)), None)


def run_trial(request: dict[str, Any], give_up: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """``request``: ``recipe``, ``config`` (its options), ``metric``, ``mode``, ``target``, ``seconds``, ``stop``. The
    result of a trial that failed has ``failed``, a line that says why, and what there was until then.

    ``give_up``: called in a thread of its own with the result so far, where a dispatch takes far more than all of the
    budget; it is to end the process, for nothing else ends a dispatch.
    """
    began = time.perf_counter()
    monitor = Monitor.of(request["metric"], request["mode"], "compare")
    told: dict[str, Any] = {"failed": "", "status": "failed", "compile_seconds": math.nan}

    def so_far() -> dict[str, Any]:
        steps, seconds = watch.mark
        return {
            **told,
            "steps": steps,
            "seconds": seconds,
            "value": watch.curve[-1][2] if watch.curve else math.nan,
            "peak_mb": peak_rss_mb(),
            "total_seconds": time.perf_counter() - began,
            "curve": list(watch.curve),
        }

    def overrun() -> None:
        told["status"] = "overrun"
        if not watch.curve:
            told["failed"] = (
                f"did not fit: after {OVERRUN * request['seconds']:g} s there was no {monitor.tag} yet, and "
                f"{watch.mark[0]} steps were done; a dispatch takes longer than the budget (--chunk is its steps)"
            )
        if give_up is not None:
            give_up(so_far())

    watch = Watch(monitor, request["target"], request["seconds"], request["stop"], give_up and overrun)
    try:
        recipe = load_recipe(Path(request["recipe"]))
        config = as_config(recipe.Config, request["config"])
        start_devices(getattr(config, "devices", 1))  # as a recipe does, before anything in make starts JAX
        fit, module, data = make_run(recipe.make, config)
        # Of what a trial leaves, metrics.jsonl and its last state are enough: what is written in the background while
        # steps are under way takes time from them, and from some rules more than from others.
        kept = [callback for callback in fit.callbacks if not isinstance(callback, Checkpoint | TensorBoard)]
        fit.callbacks = Callbacks([*kept, watch])
        result = fit.run(module, data, config=config.saved())
        told.update(status=result.status, compile_seconds=result.summary["seconds"]["compile"])
        if result.status in ("interrupted", "terminated"):
            told["failed"] = f"the trial was {result.status} at step {result.step}"
        elif not watch.curve:
            rows = sorted({tag for row in result.history for tag in row})
            told["failed"] = f"no row has {monitor.tag!r}; rows have {', '.join(rows)}"
    except RecipeError as error:
        told.update(failed=str(error), status="refused")
    except Exception as error:  # a rule that cannot run, or diverges, is a result
        told["failed"] = one_line(error)
        traceback.print_exc()
    return so_far()


def as_config(Config: Any, values: dict[str, Any]) -> Any:
    """A recipe's options from what JSON has kept of them."""
    fields = registry.check(registry.lookup(values["strategy"]), values["strategy_fields"])
    return overlay(Config(), {**values, "strategy_fields": fields}, "the request")


def main(asked: Path, answer: Path) -> None:
    def give_up(result: dict[str, Any]) -> None:
        write_json(answer, result)
        sys.stdout.flush()
        os._exit(0)

    use_compilation_cache()
    write_json(answer, run_trial(read_json(asked), give_up))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
