"""Runs the trials of a comparison: strategies, variants of a recipe and seeds. Each trial is a process."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...callbacks.early_stopping import Monitor
from ...engine.sharding import cores
from ...errors import ConfigError
from ...training.run_config import versions
from ...training.signals import ENDING
from ...utils.diff import first_difference
from ...utils.files import RunLock, jsonable, read_json, write_atomic, write_json
from ..output import last_words
from ..strategies_option import StrategySpec
from .trial import reached

NUMBERS = ("steps", "seconds", "value", "peak_mb", "compile_seconds", "total_seconds")
"""Entries of a result that JSON holds as null if they are NaN."""


@dataclass(frozen=True)
class Goal:
    """The metric, its target, and the budget of a trial.

    ``stop``: a trial ends when it reaches the target. ``test``: trials that are not for tuning score the test data.
    """

    monitor: Monitor
    target: float | None
    steps: int | None
    seconds: float | None
    stop: bool
    test: bool = False

    @property
    def test_metric(self) -> str:
        """Name of the metric in the test data, without prefix."""
        return self.monitor.tag.rpartition("/")[2]

    def key(self, result: Mapping[str, Any]) -> tuple:
        """Sort key, best first: results that reached the target, by steps; then by value; failed ones last."""
        reached = result["reached"]
        return (bool(result["failed"]), not reached, reached[0] if reached else 0, *self.monitor.key(result["value"]))


@dataclass(frozen=True)
class Trial:
    """``variant``: the name of ``options``, which differ from the recipe's. ``tuning``: it only selects a rate."""

    variant: str
    strategy: StrategySpec
    lr: float | None
    seed: int | None
    tuning: bool
    options: Mapping[str, Any] = field(hash=False)

    def describe(self) -> dict[str, Any]:
        return {"variant": self.variant, "options": dict(self.options), "strategy": self.strategy.text, "lr": self.lr,
                "seed": self.seed, "tuning": self.tuning}  # fmt: skip

    @property
    def name(self) -> str:
        """The name of its directory, by which a later comparison finds it."""
        parts = [self.variant, self.strategy.text]
        parts += [f"lr{self.lr!r}"] if self.lr is not None else []
        parts += [f"seed{self.seed}"] if self.seed is not None else []
        return re.sub(r"[^\w.=+-]+", "_", "-".join(filter(None, parts)))


class Comparison:
    """The trials of a recipe. Results of earlier comparisons in the same directory are kept.

    Args:
        recipe: Path of the recipe.
        config: Its options.
        fields: Strategy fields that the recipe or a preset sets, by strategy.
        goal: The metric, the target and the budget.
        out: Directory of all results.
        jobs: Number of trials that run at once.
    """

    def __init__(
        self, recipe: Path, config: Any, fields: Mapping[str, Mapping[str, Any]], goal: Goal, out: Path, jobs: int
    ):
        self.recipe, self.config, self.fields = recipe, config, fields
        self.goal, self.out, self.jobs = goal, out, jobs
        self.trials: list[Trial] = []
        self.done: dict[str, dict[str, Any]] = {}
        self._running: list[subprocess.Popen] | None = None  # processes of trials; None once no other may start
        if (out / "trials.jsonl").exists():
            for line in (out / "trials.jsonl").read_text().splitlines():
                result = json.loads(line)
                self.done[result["name"]] = self._completed(result)

    def run(self, variants: Mapping[str, Mapping[str, Any]], strategies: Sequence[StrategySpec], seeds: Sequence[int],
            rates: Sequence[float], tune_seeds: Sequence[int]) -> None:  # fmt: skip
        """Run all trials that are not done. Several rates: select one per variant and strategy on ``tune_seeds``.

        Raises ConfigError if the directory holds a trial of the same name with other options.
        """
        pairs, grid = list(itertools.product(variants.items(), strategies)), rates if len(rates) > 1 else ()
        self._run(
            [
                Trial(variant, strategy, lr, seed, True, options)
                for (variant, options), strategy in pairs
                for lr in grid
                for seed in tune_seeds
            ]
        )
        final = []
        for (variant, options), strategy in pairs:
            lr = rates[0] if rates else None
            if grid:
                lr = self._best_rate(variant, strategy, rates)
                print(f"{variant} {strategy.text}: selected lr {lr:g} on the tuning seeds", flush=True)
            final += [Trial(variant, strategy, lr, seed, False, options) for seed in seeds or [None]]
        self._run(final)

    def _best_rate(self, variant: str, strategy: StrategySpec, rates: Sequence[float]) -> float:
        """The rate with the best median result on the tuning seeds; of equal rates the first."""
        results = [r for r in self.results() if (r["variant"], r["strategy"]) == (variant, strategy.text)]

        def median(rate: float) -> tuple:
            keys = sorted(self.goal.key(result) for result in results if result["lr"] == rate)
            return keys[len(keys) // 2]  # of two the worse one: a rate that fails on half of the seeds is a bad rate

        return min(rates, key=median)

    def results(self) -> list[dict[str, Any]]:
        """Results so far of the trials of this comparison, in their order."""
        # An earlier comparison may have used a trial in another role, for example to select a rate.
        return [{**self.done[trial.name], **trial.describe()} for trial in self.trials if trial.name in self.done]

    def _run(self, trials: Sequence[Trial]) -> None:
        self.trials += trials
        requests = [(trial, self._request(trial)) for trial in trials]
        for trial, request in requests:
            self._require_same(trial, request)
        missing = [pair for pair in requests if self.done.get(pair[0].name, {"failed": True})["failed"]]
        if len(missing) < len(requests):
            print(f"{len(requests) - len(missing)} of {len(requests)} trials were done before", flush=True)
        pool, self._running = ThreadPoolExecutor(self.jobs), []
        try:
            for future in as_completed([pool.submit(self._train, *pair) for pair in missing]):
                if (result := future.result()) is not None:
                    self._keep(result)
        finally:  # after an error or a signal, trials that still train end as well
            running, self._running = self._running, None
            for process in tuple(running):
                process.send_signal(signal.SIGTERM)
            pool.shutdown(cancel_futures=True)

    def _keep(self, result: dict[str, Any]) -> None:
        self.done[result["name"]] = result
        lines = [json.dumps(jsonable(kept)) + "\n" for kept in self.done.values()]
        write_atomic(self.out / "trials.jsonl", "".join(lines).encode())
        print(f"{result['name']}: {outcome(result, self.goal)}", flush=True)

    def _request(self, trial: Trial) -> dict[str, Any]:
        """What the process of a trial receives; see ``run_trial``."""
        strategy, goal = trial.strategy, self.goal
        own = {"lr": trial.lr, "seed": trial.seed, "max_steps": goal.steps}
        own["test"] = (not trial.tuning) if goal.test else None
        options = {**trial.options, **{name: value for name, value in own.items() if value is not None}}
        fields = strategy.all_fields(self.fields)
        config = dataclasses.replace(self.config, **options, strategy=strategy.name, strategy_fields=fields)
        return {
            "recipe": os.path.normpath(self.recipe), "config": jsonable(config.saved()), "metric": goal.monitor.tag,
            "mode": goal.monitor.mode, "target": goal.target, "seconds": goal.seconds, "stop": goal.stop,
        }  # fmt: skip

    def _completed(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result read from JSON, with NaN for null, and with the point at which it reached the target."""
        numbers = {name: math.nan if result.get(name) is None else result[name] for name in NUMBERS}
        curve = [[step, seconds, math.nan if value is None else value] for step, seconds, value in result["curve"]]
        return {**result, **numbers, "curve": curve, "reached": reached(curve, self.goal.monitor, self.goal.target)}

    def _require_same(self, trial: Trial, request: Mapping[str, Any]) -> None:
        """Raise ConfigError if there is a successful trial of this name with other options."""
        done = self.done.get(trial.name)
        if done is None or done["failed"]:
            return
        before = dict(done["request"])
        if not self.goal.stop:  # a trial that does not end at the target does not depend on it
            before.update(mode=request["mode"], target=request["target"])
        defaults = jsonable(type(self.config)().saved())  # the value of an option that is new since then
        before["config"] = {**defaults, **before["config"]}
        if difference := first_difference(before, request, which=("before", "now")):
            raise ConfigError(
                f"{self.out} has a trial {trial.name} with other options ({difference}): choose another --out, or "
                "remove it"
            )

    def _train(self, trial: Trial, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Train in a new process. Returns None if the user interrupted it."""
        run_dir = self.out / "runs" / trial.name
        if run_dir.exists():  # left by an interrupted trial; one that is still training holds the lock
            with RunLock(run_dir):
                shutil.rmtree(run_dir)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        asked, answer, log = (run_dir.with_name(f"{trial.name}.{end}") for end in ("request", "result", "log"))
        answer.unlink(missing_ok=True)
        own = {"run_dir": str(run_dir), "progress": False}
        write_json(asked, {**request, "config": {**request["config"], **own}})
        command = [sys.executable, "-m", "jaxtrain.commands.compare.trial", str(asked), str(answer)]
        if (running := self._running) is None:
            return None
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        if self._running is None:  # the comparison ended meanwhile
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
        running.remove(process)
        log.write_text(out + err)
        code = process.returncode
        if -code in ENDING:
            return None
        if code == 0:
            result = read_json(answer)
            if result["status"] in ("interrupted", "terminated"):
                return None
            asked.unlink()
            answer.unlink()
            if result["status"] == "rejected":  # every other trial would fail, too
                raise ConfigError(result["failed"])
        else:
            reason = f"the process was ended by {signal.Signals(-code).name}" if code < 0 else last_words(err)
            result = {"failed": f"exit code {code}: {reason}" if code > 0 else reason, "status": "failed", "curve": []}
        environment = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "cores": cores(),
                       "trials at once": self.jobs, **versions()}  # fmt: skip
        return {"name": trial.name, **trial.describe(), **self._completed(result), "environment": environment,
                "request": dict(request)}  # fmt: skip


def outcome(result: Mapping[str, Any], goal: Goal) -> str:
    """A result in one line."""
    if result["failed"]:
        return f"failed: {result['failed']}"
    reached = result["reached"]
    when = f", reached {goal.target:g} at step {reached[0]} after {reached[1]:.1f} s" if reached else ""
    return f"{goal.monitor.tag} {result['value']:.4g} after {result['steps']} steps, {result['seconds']:.1f} s{when}"
