"""The arguments of ``jaxtrain compare``. Does not import JAX, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
from pathlib import Path


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments and run the comparison. Returns 1 if every trial failed."""
    args, rest = _add_arguments(parser).parse_known_args(argv)

    from .plan import run

    return run(args, rest, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.epilog = (
        "All other options are passed to the recipe, e.g. --hidden 32. Trials already done in --out are kept."
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="e.g. recipes/copy_lru.py")
    add(
        "--strategies", default="drtrl",
        help="strategies separated by commas, with optional fields, e.g. drtrl:window=5,vjp=multi-step,uoro; "
        "readout_only and bptt are always added (default: %(default)s)",
    )  # fmt: skip
    add(
        "--vary", action="append", default=[], metavar="OPTION=VALUE,...",
        help="values of an option of the recipe, e.g. cell=gru,lru; if repeated, all combinations are trained",
    )  # fmt: skip
    add("--seeds", default="0-4", help="values of the recipe's --seed (default: %(default)s)")
    add("--lrs", default="", metavar="LR,...", help="learning rates; one is selected per strategy by the tuning seeds")
    add("--tune-seeds", default="100,101", metavar="SEEDS", help="seeds that only select a rate (default: %(default)s)")
    add("--steps", type=int, help="budget of a trial in steps; replaces the recipe's --max-steps")
    add("--seconds", type=float, help="budget of a trial in seconds of training")
    add("--metric", default="val/accuracy", metavar="TAG", help="metric to compare (default: %(default)s)")
    add("--mode", choices=("min", "max"), help="whether less or more is better, if the metric's name does not show it")
    add("--target", type=float, help="value of the metric to reach, e.g. 0.99")
    add("--stop", action="store_true", help="end a trial as soon as it reaches the target")
    add("--test", action="store_true", help="score the test data after every trial of --seeds, not of --tune-seeds")
    add("--preset", help="a preset of the recipe")
    add("--jobs", type=int, default=1, help="number of trials that run at once and share the cores (default: 1)")
    add("--out", type=Path, default=Path("compare"), help="directory for all results (default: %(default)s)")
    return parser
