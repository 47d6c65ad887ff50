"""Calls a recipe's `make` and checks that the result uses the options of the command line."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..strategies import registry

if TYPE_CHECKING:
    from ..strategies import Strategy
    from .config import Options


class RecipeError(ConfigError):
    """The recipe ignores part of its configuration. Other options do not help; the file must be changed."""


def make_run(make: Callable[[Any], Any], config: Options) -> tuple[Any, Any, Any]:
    """Call `make(config)` and return the Fit, the module and the data of a run.

    Raises TypeError if `make` returns something else, RecipeError if its Fit ignores the configured strategy or run
    directory.
    """
    run, script = make(config), Path(inspect.getfile(make)).name
    if not (isinstance(run, tuple) and len(run) == 3):
        raise TypeError(f"{script}: make(config) returned {type(run).__name__}; expected (fit, module, data)")
    fit = run[0]
    if difference := _difference(fit.strategy, config.make_strategy()):
        raise RecipeError(
            f"{script}: make(config) returned a Fit with {difference}: pass config.make_strategy() to Fit as its "
            "strategy"
        )
    if config.run_dir is not None and (fit.run_dir is None or fit.run_dir.resolve() != Path(config.run_dir).resolve()):
        got = None if fit.run_dir is None else str(fit.run_dir)
        raise RecipeError(
            f"{script}: make(config) returned a Fit with run_dir={got!r}, but the directory of this run is "
            f"{config.run_dir}: pass run_dir=config.run_dir to Fit"
        )
    return run


def _difference(strategy: Strategy, asked: Strategy) -> str:
    """Describe how a strategy differs from the one asked for. A recipe may change fields that have their defaults."""
    if type(strategy) is not type(asked):
        return f"strategy {strategy.name!r}, but {asked.name!r} was asked for"
    default = registry.make_strategy(asked.name)
    for field in dataclasses.fields(asked):
        want, got = getattr(asked, field.name), getattr(strategy, field.name)
        if field.init and want != getattr(default, field.name) and got != want:
            return f"{field.name}={got!r}, but {field.name}={want!r} was asked for"
    return ""
