"""What a recipe's `make` returns, checked before anything runs: it must use what the command line asked for."""

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
    from .recipe import Options


class RecipeError(ConfigError):
    """A recipe that does not use its configuration: no choice of options helps, the file must be changed."""


def make_run(make: Callable[[Any], Any], config: Options) -> tuple[Any, Any, Any]:
    """`make(config)`: the Fit, the module and the data of a run.

    Raises TypeError where it returns something else, RecipeError where its Fit ignores the strategy or the run
    directory of the configuration.
    """
    made, script = make(config), Path(inspect.getfile(make)).name
    if not (isinstance(made, tuple) and len(made) == 3):
        raise TypeError(f"{script}: make(config) returned {type(made).__name__}; expected (fit, module, data)")
    fit = made[0]
    if ignored := _ignored(config, fit.strategy):
        raise RecipeError(
            f"{script}: make(config) returned a Fit with {ignored}: pass config.make_strategy() to Fit as its strategy"
        )
    if config.run_dir is not None and (fit.run_dir is None or fit.run_dir.resolve() != Path(config.run_dir).resolve()):
        got = None if fit.run_dir is None else str(fit.run_dir)
        raise RecipeError(
            f"{script}: make(config) returned a Fit with run_dir={got!r}, but the directory of this run is "
            f"{config.run_dir}: pass run_dir=config.run_dir to Fit"
        )
    return made


def _ignored(config: Options, strategy: Strategy) -> str:
    """How a strategy differs from what was asked for. A recipe may set fields that nobody has asked for."""
    asked = config.make_strategy()
    if type(strategy) is not type(asked):
        return f"strategy {strategy.name!r}, but {asked.name!r} was asked for"
    plain = registry.make_strategy(asked.name)
    for field in dataclasses.fields(asked):
        want, got = getattr(asked, field.name), getattr(strategy, field.name)
        if field.init and want != getattr(plain, field.name) and got != want:
            return f"{field.name}={got!r}, but {field.name}={want!r} was asked for"
    return ""
