"""From the arguments of ``jaxtrain compare`` to its trials and its table."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Sequence
from typing import Any, get_type_hints

from ...callbacks.early_stopping import Mode, Monitor, direction
from ...cli.argv import literal
from ...errors import ConfigError
from ...utils.coerce import coerce
from ...utils.files import RunLock
from ..load_recipe import REPLACED, configured
from ..strategies_option import StrategySpec, parse_strategies
from .runner import Comparison, Goal
from .table import write

CONTROLS = ("readout_only", "bptt")
"""Strategies that belong to every comparison: one that does not train the recurrence, and the true gradient."""
NOT_VARIED = ("strategy", "strategy_fields", "run_dir", "progress", "seed")
"""Options that `compare` replaces by its own or sets itself."""
FRACTIONS = ("accuracy", "acc")
"""Endings of the names of metrics that are fractions, from 0 to 1."""


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    """Check the arguments, run the trials, and write the table.

    Args:
        args: The command's own arguments.
        rest: The remaining words, which are options of the recipe.
        argv: All words, for the table.

    Returns:
        The exit code: 1 if every trial failed.

    Raises:
        ConfigError: An argument is invalid.
    """
    for name in ("steps", "seconds", "jobs"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"compare --{name} {value:g}: expected a positive number")
    if args.stop and args.target is None:
        raise ConfigError("compare --stop: set the value to reach with --target")
    if args.target is not None and args.target > 1 and args.metric.endswith(FRACTIONS):
        raise ConfigError(f"compare --target {args.target:g}: {args.metric} is at most 1; use 0.99 for 99 %")
    goal = Goal(parse_metric(args.metric, args.mode), args.target, args.steps, args.seconds, args.stop, args.test)
    rates, seeds = parse_rates(args.lrs), parse_seeds(args.seeds, "--seeds")
    tune_seeds = parse_seeds(args.tune_seeds, "--tune-seeds")
    if len(rates) > 1 and not tune_seeds:
        raise ConfigError("compare --tune-seeds: expected the seeds that select the learning rate")
    if len(rates) > 1 and (both := sorted({*seeds} & {*tune_seeds})):
        raise ConfigError(f"compare --tune-seeds {args.tune_seeds}: seed {both[0]} is also one of --seeds")
    replaced = {**REPLACED, "--seed": "--seeds", **({"--lr": "--lrs"} if rates else {})}
    recipe, config, fields = configured("compare", args, rest, replaced)
    strategies = with_controls(args.strategies)  # the recipe may register some
    needs = {"--seed": ("--seeds ''", seeds or len(rates) > 1), "--lr": ("--lrs", rates)}
    needs |= {"--max-steps": ("--steps", args.steps), "--test": ("--test", args.test)}
    for name, (option, given) in needs.items():
        if given and not hasattr(config, name[2:].replace("-", "_")):
            raise ConfigError(f"{args.recipe} has no option {name}: leave {option} out")
    if hasattr(config, "stop_at") and not any(word.replace("_", "-").startswith("--stop-at") for word in rest):
        config = dataclasses.replace(config, stop_at=None)  # --stop and the budget end a trial
    variants = parse_variants(config, args.vary)
    for name, option in (("lr", "lrs"), ("max_steps", "steps")):
        if getattr(args, option) and any(name in options for options in variants.values()):
            raise ConfigError(f"compare --{option} has no effect with --vary {name}; leave one of them out")
    out = args.out.expanduser()
    with RunLock(out):
        comparison = Comparison(args.recipe, config, fields, goal, out, args.jobs)
        try:
            comparison.run(variants, strategies, seeds, rates, tune_seeds)
        except KeyboardInterrupt:
            if not all(result["tuning"] for result in comparison.results()):
                _write(comparison, recipe, args, argv)
            raise
        results = _write(comparison, recipe, args, argv)
    return 1 if all(result["failed"] for result in results) else 0


def _write(comparison: Comparison, recipe: Any, args: argparse.Namespace, argv: list[str]) -> list[dict[str, Any]]:
    """Write and print the table of the trials that are done."""
    results, config, notes = comparison.results(), comparison.config, []
    if args.seconds is not None and getattr(config, "decay", "constant") != "constant":
        notes.append("The learning rate decays over --max-steps; a trial that --seconds ends does not complete it.")
    if args.seconds is not None and args.steps is None and hasattr(config, "max_steps"):
        notes.append(f"The recipe's --max-steps ({config.max_steps:,} unless varied) also ends a trial.")
    if missing := len(comparison.trials) - len(results):
        notes.append(f"**Incomplete: {missing} trials are missing.**")
    chance = getattr(recipe, "CHANCE", {}).get(args.metric.rpartition("/")[2])
    command = shlex.join(["jaxtrain", "compare", *argv])
    text = write(comparison.out, results, comparison.goal, chance, command, missing, notes)
    print(f"\n{text}\nwritten to {args.out}/compare.md, compare.json, compare.png and trials.jsonl")
    return results


def parse_variants(config: Any, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["cell=gru,lru", "hidden=16,32"]`` -> the options of every combination, by its name in the table.

    Without varied options there is one variant, named after the recipe's cell if it has one. Raises ConfigError for an
    option that the recipe does not have, or a value that it does not accept.
    """
    types, axes = get_type_hints(type(config), include_extras=True), {}
    for text in texts:
        name, _, given = text.partition("=")
        name = name.strip().replace("-", "_")
        values = [word.strip() for word in given.split(",") if word.strip()]
        if not values:
            raise ConfigError(f"--vary {text}: expected OPTION=VALUE,VALUE")
        if name not in types or name in NOT_VARIED:
            raise ConfigError(f"--vary {text}: this recipe has no option --{name.replace('_', '-')} that can be varied")
        if name in axes:
            raise ConfigError(f"--vary {text}: {name} is varied twice; give all its values in one --vary")
        axes[name] = _distinct(
            [coerce(literal(value), types[name], f"--vary {name}") for value in values], f"--vary {text}: a value"
        )
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    variants = {}
    for options in combinations:
        only_cell = list(options) == ["cell"]
        name = ", ".join(str(value) if only_cell else f"{name}={value}" for name, value in options.items())
        variants[name or str(getattr(config, "cell", ""))] = options
    return variants


def parse_metric(tag: str, mode: Mode | None) -> Monitor:
    """Raises ConfigError if neither the name nor ``mode`` says which value is better."""
    if (mode := mode or direction(tag)) is None:
        raise ConfigError(f"--metric {tag}: say whether less or more of it is better with --mode min or --mode max")
    try:
        return Monitor.of(tag, mode, "compare")
    except ValueError as error:
        raise ConfigError(f"--metric {tag}: {error}") from None


def parse_seeds(text: str, option: str) -> list[int]:
    """``"0-4"``, ``"0,3,7"``, or a combination."""
    seeds: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if bounds is None or int(bounds[2] or bounds[1]) < int(bounds[1]):
            raise ConfigError(f"{option} {text}: expected seeds, as 0-4 or 0,1,2")
        seeds += range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
    return _distinct(seeds, f"{option} {text}: a seed")


def parse_rates(text: str) -> list[float]:
    try:
        rates = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        rates = [math.nan]
    if not all(rate > 0 and math.isfinite(rate) for rate in rates):
        raise ConfigError(f"--lrs {text}: expected positive numbers separated by commas, as 1e-3,3e-3")
    return _distinct(rates, f"--lrs {text}: a rate")


def with_controls(text: str) -> list[StrategySpec]:
    """The strategies of the option, and the controls that it does not name."""
    specs = parse_strategies(text)
    _distinct([spec.text for spec in specs], f"--strategies {text}: a strategy")
    names = {spec.name for spec in specs}
    return [*specs, *(parse_strategies(name)[0] for name in CONTROLS if name not in names)]


def _distinct[T](values: list[T], what: str) -> list[T]:
    """Return the values. Raises ConfigError if two are equal."""
    if any(value in values[:i] for i, value in enumerate(values)):
        raise ConfigError(f"{what} is given twice")
    return values
