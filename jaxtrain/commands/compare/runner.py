"""``jaxtrain compare RECIPE``: rules by variants of a recipe by seeds, each trial a process of its own."""

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from ...callbacks.early_stopping import MAX, Mode, Monitor
from ...engine.sharding import cores
from ...errors import ConfigError
from ...training.run_config import versions
from ...training.signals import ENDING
from ...utils.coerce import coerce
from ...utils.files import RunLock, jsonable, read_json, write_atomic, write_json
from ..fidelity import Rule, parse_rules
from .trial import reached

ALWAYS = ("readout_only", "bptt")
"""Rules without which a comparison says little: what a network does that does not learn, and the true gradient."""


@dataclass(frozen=True)
class Judge:
    """What is measured: a metric, what is hoped for, and the budget. ``stop``: a trial ends where the target is."""

    monitor: Monitor
    target: float | None
    steps: int | None
    seconds: float | None
    stop: bool

    def key(self, trial: Mapping[str, Any]) -> tuple:
        """Sorts results from best to worst: those that came to the target first, by steps; then by value; what failed
        is last, however far it had come."""
        there = trial["reached"]
        first = (there is None, there[0] if there else 0)
        return (bool(trial["failed"]), *first, *self.monitor.key(trial["value"]))


@dataclass(frozen=True)
class Trial:
    """``variant``: how its options differ from other trials', in words; ``tuning``: it only helps to choose a rate."""

    variant: str
    rule: Rule
    lr: float | None
    seed: int | None
    tuning: bool
    options: Mapping[str, Any] = field(hash=False)

    def role(self) -> dict[str, Any]:
        """What a result says of how it was asked for."""
        return {"variant": self.variant, "options": dict(self.options), "rule": self.rule.spelled, "lr": self.lr,
                "seed": self.seed, "tuning": self.tuning}  # fmt: skip

    @property
    def name(self) -> str:
        """Of its directory, and what a later start knows it by."""
        parts = [self.variant, self.rule.spelled]
        parts += [f"lr{self.lr!r}"] if self.lr is not None else []
        parts += [f"seed{self.seed}"] if self.seed is not None else []
        return re.sub(r"[^\w.=+-]+", "_", "-".join(filter(None, parts)))


# --------------------------------------------------------------------------------------------------- what is asked for


FIXED = ("strategy", "strategy_fields", "run_dir", "progress", "seed")
"""Options that have one of their own in `compare`, or none."""


def parse_variants(config: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """``["cell=gru,lru", "hidden=16,32"]`` -> the options of every combination. Raises ConfigError for an option that
    the recipe does not have, or a value that it does not take."""
    types, axes = get_type_hints(type(config), include_extras=True), []
    for text in texts:
        name, equals, given = text.partition("=")
        name = name.strip().replace("-", "_")
        values = [word.strip() for word in given.split(",") if word.strip()]
        if not (equals and values):
            raise ConfigError(f"--vary {text}: expected OPTION=VALUE,VALUE")
        if name not in types or name in FIXED:
            raise ConfigError(f"--vary {text}: this recipe has no option --{name.replace('_', '-')} that can be varied")
        if any(name == axis[0][0] for axis in axes):
            raise ConfigError(f"--vary {text}: {name} comes twice; give all its values in one --vary")
        if len(set(values)) < len(values):
            raise ConfigError(f"--vary {text}: a value comes twice")
        axes.append([(name, coerce(_value(value), types[name], f"--vary {name}")) for value in values])
    return [dict(chosen) for chosen in itertools.product(*axes)]


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


LESS = ("loss", "mse", "mae", "error", "bits", "ppl")


def parse_metric(tag: str, mode: Mode | None) -> Monitor:
    """Raises ConfigError where neither the name nor ``mode`` says which is better."""
    if mode is None and not tag.endswith((*LESS, *MAX)):
        raise ConfigError(f"--metric {tag}: say whether less or more of it is better, --mode min or --mode max")
    try:
        return Monitor.of(tag, mode or ("min" if tag.endswith(LESS) else "max"), "compare")
    except ValueError as error:
        raise ConfigError(f"--metric {tag}: {error}") from None


def parse_seeds(text: str, option: str) -> list[int]:
    """``"0-4"`` or ``"0,3,7"``, or both."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if bounds is None or int(bounds[2] or bounds[1]) < int(bounds[1]):
            raise ConfigError(f"{option} {text}: expected seeds, as 0-4 or 0,1,2")
        found += range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"{option} {text}: a seed comes twice")
    return found


def parse_rates(text: str) -> list[float]:
    try:
        rates = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        rates = [math.nan]
    if not all(rate > 0 and math.isfinite(rate) for rate in rates) or len(set(rates)) < len(rates):
        raise ConfigError(f"--lrs {text}: expected positive numbers by commas, each once, as 1e-3,3e-3")
    return rates


def with_controls(rules: str) -> list[Rule]:
    """The rules asked for, and those that always belong to a comparison."""
    asked = parse_rules(rules)
    if len({rule.spelled for rule in asked}) < len(asked):
        raise ConfigError(f"--strategies {rules}: a rule comes twice")
    named = {rule.name for rule in asked}
    return [*asked, *(parse_rules(name)[0] for name in ALWAYS if name not in named)]


def variants_of(config: Any, options: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """In words -> options. A recipe that has cells says its own where none is chosen."""
    found = {}
    for chosen in options:
        plain = list(chosen) == ["cell"]
        words = ", ".join(str(value) if plain else f"{name}={value}" for name, value in chosen.items())
        found[words or str(getattr(config, "cell", ""))] = chosen
    return found


# -------------------------------------------------------------------------------------------------------------- trials


class Comparison:
    """Trials of one recipe below ``out``: those done before are kept, unless they were of something else.

    ``config``: the recipe's options; ``fields``: for each strategy those that the recipe or a preset sets. ``jobs``:
    trials at once.
    """

    def __init__(self, recipe: Path, config: Any, fields: Mapping[str, Mapping[str, Any]], judge: Judge, out: Path,
                 jobs: int, say: Callable[[str], Any]):  # fmt: skip
        self.recipe, self.config, self.fields = recipe, config, fields
        self.judge, self.out, self.jobs, self.say = judge, out, jobs, say
        self.trials = out / "trials.jsonl"
        self.done: dict[str, dict[str, Any]] = {}
        self.asked: list[Trial] = []
        if self.trials.exists():
            each = [json.loads(line) for line in self.trials.read_text().splitlines()]
            self.done = {trial["name"]: self._read({"made": None, **trial}) for trial in each}

    def run(self, variants: Mapping[str, Mapping[str, Any]], rules: Sequence[Rule], seeds: Sequence[int],
            rates: Sequence[float], tune: Sequence[int]) -> None:  # fmt: skip
        """Make all trials; ``so_far`` has the results. Of several rates that of every rule and variant is chosen by
        trials of the seeds ``tune``; no other trial has a say in it."""
        chosen: dict[tuple[str, str], float | None] = {}
        tuning = len(rates) > 1
        if tuning:
            grid = [
                Trial(variant, rule, lr, seed, True, options)
                for variant, options in variants.items() for rule in rules for lr in rates for seed in tune
            ]  # fmt: skip
            found = self._all(grid)
            for variant in variants:
                for rule in rules:
                    own = [t for t in found if t["variant"] == variant and t["rule"] == rule.spelled]
                    chosen[variant, rule.spelled] = self._best(own, rates)
                    self.say(f"{variant} {rule.spelled}: lr {chosen[variant, rule.spelled]:g} of the tuning seeds")
        fixed = rates[0] if rates else None
        self._all(
            [
                Trial(variant, rule, chosen.get((variant, rule.spelled), fixed), seed, False, options)
                for variant, options in variants.items()
                for rule in rules
                for seed in seeds or [None]
            ]
        )

    def _best(self, trials: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> float:
        """The rate whose median result is the best, the first of those that are alike."""

        def median(rate: float) -> tuple:
            keys = sorted(self.judge.key(trial) for trial in trials if trial["lr"] == rate)
            return keys[len(keys) // 2]  # of two the worse one: a rate that fails on half of the seeds is no good one

        return min(rates, key=median)

    def so_far(self) -> list[dict[str, Any]]:
        """The results that are there of the trials that were asked for, in order."""
        # What a trial is asked for as may have changed since it was made.
        return [{**self.done[trial.name], **trial.role()} for trial in self.asked if trial.name in self.done]

    def _all(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        self.asked += trials
        wanted = [(trial, self._request(trial)) for trial in trials]
        for trial, request in wanted:
            self._require_same(trial, request)
        left = [(t, r) for t, r in wanted if t.name not in self.done or self.done[t.name]["failed"]]
        if len(left) < len(wanted):
            self.say(f"{len(wanted) - len(left)} of {len(wanted)} trials were done before")
        pool = ThreadPoolExecutor(self.jobs)
        try:
            for future in as_completed([pool.submit(self._one, *pair) for pair in left]):
                if (result := future.result()) is not None:
                    self._keep(result)
        finally:
            pool.shutdown(cancel_futures=True)
        names = {trial.name for trial in trials}
        return [result for result in self.so_far() if result["name"] in names]

    def _keep(self, result: dict[str, Any]) -> None:
        self.done[result["name"]] = result
        lines = [json.dumps(jsonable(kept)) + "\n" for kept in self.done.values()]
        write_atomic(self.trials, "".join(lines).encode())
        self.say(f"{result['name']}: {told(result, self.judge)}")

    def _request(self, trial: Trial) -> dict[str, Any]:
        rule, options = trial.rule, dict(trial.options)
        options["strategy"] = rule.name
        options["strategy_fields"] = rule.all_fields(self.fields)
        for name, value in (("lr", trial.lr), ("seed", trial.seed), ("max_steps", self.judge.steps)):
            if value is not None:
                options[name] = value
        config = dataclasses.replace(self.config, **options)
        judge = self.judge
        return {
            "recipe": os.path.normpath(self.recipe),
            "config": jsonable(config.saved()),
            "metric": judge.monitor.tag,
            "mode": judge.monitor.mode,
            "target": judge.target,
            "seconds": judge.seconds,
            "stop": judge.stop,
        }

    def _read(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result with NaN for the numbers that JSON has no word for, and when it was at the target."""
        numbers = {name: math.nan if result.get(name) is None else result[name] for name in NUMBERS}
        curve = [[step, seconds, math.nan if value is None else value] for step, seconds, value in result["curve"]]
        return {**result, **numbers, "curve": curve, "reached": reached(curve, self.judge.monitor, self.judge.target)}

    def _require_same(self, trial: Trial, request: Mapping[str, Any]) -> None:
        """Raises ConfigError where ``out`` holds a trial of this name that was another one."""
        done = self.done.get(trial.name)
        if done is None or done["failed"]:  # it is made, or made anew
            return
        before = done["request"]
        ends = ("mode", "target") if self.judge.stop else ()  # elsewhere they only judge what was done
        for name in ("recipe", "metric", "seconds", "stop", *ends):
            if before[name] != request[name]:
                self._refuse(trial, name, before[name], request[name])
        kept = {**jsonable(type(self.config)().saved()), **before["config"]}  # an option that is new since then
        for name in sorted({*kept, *request["config"]}):
            ours, theirs = request["config"].get(name), kept[name]
            if ours != theirs:
                self._refuse(trial, f"--{name.replace('_', '-')}", theirs, ours)

    def _refuse(self, trial: Trial, what: str, before: Any, now: Any) -> None:
        raise ConfigError(
            f"{self.out} holds {trial.name} with {what} {before}, not {now}: choose another --out, or remove it"
        )

    def _one(self, trial: Trial, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """None for a trial that a person cut short."""
        run_dir = self.out / "runs" / trial.name
        if run_dir.exists():  # a trial that was cut short; one that still trains holds the lock
            with RunLock(run_dir):
                shutil.rmtree(run_dir)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        asked, answer, said = (run_dir.with_name(f"{trial.name}.{end}") for end in ("request", "result", "log"))
        answer.unlink(missing_ok=True)
        own = {"run_dir": str(run_dir), "progress": False}
        write_json(asked, {**request, "config": {**request["config"], **own}})
        command = [sys.executable, "-m", "jaxtrain.commands.compare.trial", str(asked), str(answer)]
        process = subprocess.run(command, capture_output=True, text=True)
        said.write_text(process.stdout + process.stderr)
        if -process.returncode in ENDING:
            return None
        if process.returncode == 0:
            result = read_json(answer)
            if result["status"] in ("interrupted", "terminated"):
                return None
            for path in (asked, answer):
                path.unlink()
            if result["status"] == "refused":  # so would every other trial be
                raise ConfigError(result["failed"])
        else:
            result = {"failed": _last_words(process), "status": "failed", "curve": []}
        result = self._read(result)
        made = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "cores": cores(),
                "jobs": self.jobs, "versions": versions()}  # fmt: skip
        return {"name": trial.name, **trial.role(), **result, "made": made, "request": dict(request)}


NUMBERS = ("steps", "seconds", "value", "peak_mb", "compile_seconds", "total_seconds")


def _last_words(process: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended that says nothing: a signal by its name, or the last line on stderr."""
    if process.returncode < 0:
        return f"the process was ended by {signal.Signals(-process.returncode).name}"
    return (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]


def told(result: Mapping[str, Any], judge: Judge) -> str:
    """A trial in one line."""
    if result["failed"]:
        return f"failed: {result['failed']}"
    reached = result["reached"]
    there = f", {judge.target:g} at step {reached[0]} after {reached[1]:.1f} s" if reached else ""
    return f"{judge.monitor.tag} {result['value']:.4g} after {result['steps']} steps, {result['seconds']:.1f} s{there}"
