"""``jaxtrain inspect RECIPE``: what the rule does to each parameter. Nothing is trained or written."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cli.recipe import main
from .load_recipe import load_recipe


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments of ``jaxtrain inspect`` and print the report that precedes step 0 of a run."""
    parser.epilog = (
        "All other options are those of the recipe, e.g. --strategy pp_prop --hidden 32. This is `python RECIPE "
        "--dry-run` with these options."
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="e.g. recipes/copy_gru.py")
    args, rest = parser.parse_known_args(argv)
    recipe = load_recipe(args.recipe)
    return main(recipe.Config, recipe.make, presets=getattr(recipe, "PRESETS", {}), argv=[*rest, "--dry-run"])
