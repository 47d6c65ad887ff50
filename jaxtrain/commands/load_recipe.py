"""Recipes as the commands `fidelity` and `compare` use them: loaded from a file, configured by further flags."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from ..cli.argv import read_options
from ..cli.config import Options
from ..cli.parse import overlaid, preset_layers
from ..errors import ConfigError

REPLACED = {"--strategy": "--strategies", "--run-dir": "--out", "--max-steps": "--steps"}
"""Options of recipes that the commands replace by options of their own."""


def load_recipe(path: Path) -> Any:
    """Import a recipe as a module. Raises ConfigError if it does not exist or lacks a valid ``Config`` or ``make``."""
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not a recipe: expected a .py file with Config and make")
    if not path.is_file():
        raise ConfigError(f"there is no recipe {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    sys.path.insert(0, str(path.resolve().parent))  # as `python RECIPE` does, for imports of neighbouring files
    spec.loader.exec_module(module)
    missing = [name for name in ("Config", "make") if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"{path} is not a recipe: it does not define {' or '.join(missing)}")
    Config = module.Config
    if not (isinstance(Config, type) and issubclass(Config, Options) and dataclasses.is_dataclass(Config)):
        raise ConfigError(f"{path} is not a recipe: its Config is not a dataclass that extends jaxtrain.cli.Options")
    return module


def configured(
    command: str, args: argparse.Namespace, rest: list[str], replaced: Mapping[str, str]
) -> tuple[Any, Any, dict[str, Any]]:
    """Load ``args.recipe`` and parse its options.

    Args:
        command: The command's name, for messages.
        args: The command's own arguments: ``recipe``, ``out`` and, optionally, ``preset``.
        rest: The remaining words, which are options of the recipe.
        replaced: Options of the recipe that are not allowed, and the command's option to use instead.

    Returns:
        The recipe, its configuration, and the fields that the recipe and the preset set, by strategy.

    Raises:
        ConfigError: An argument is invalid.
    """
    for word in rest:
        flag = word.partition("=")[0]
        name = flag.replace("_", "-")
        if other := replaced.get("--strategy" if name.startswith("--strategy.") else name):
            raise ConfigError(f"{command} {args.recipe}: {flag} has no effect here; use {other}")
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"{command} --out {args.out}: expected a directory")
    if (args.out / "config.json").exists():
        raise ConfigError(f"{command} --out {args.out}: this is a run directory; choose another directory")
    recipe = load_recipe(args.recipe)
    layers = preset_layers(getattr(args, "preset", None), getattr(recipe, "PRESETS", {}))
    config, fields = overlaid(recipe.Config(), layers)
    values, unknown = read_options(rest, get_type_hints(recipe.Config))
    if unknown:
        raise ConfigError(f"{command} {args.recipe}: neither {command} nor the recipe has an option {unknown[0]}")
    config = dataclasses.replace(config, **values)
    if getattr(config, "devices", 1) == "auto":  # measurements must not depend on whether a strategy can be split
        config = dataclasses.replace(config, devices=1)
    return recipe, config, fields
