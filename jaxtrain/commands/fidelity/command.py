"""The arguments of ``jaxtrain fidelity``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ...errors import ConfigError
from ...utils.allocator import keep_freed_memory
from ..load_recipe import REPLACED, configured
from ..strategies_option import parse_strategies

STRATEGIES = ("bptt", "tbptt", "drtrl", "pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward", "snap", "uoro", "dni",
              "readout_only")  # fmt: skip
"""All strategies except those that need a reward (three_factor) or coordinates (etrace)."""


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments, measure, and write the table. Returns 1 if no strategy could be measured."""
    args, rest = _add_arguments(parser).parse_known_args(argv)
    if args.steps < 1:
        raise ConfigError(f"fidelity --steps {args.steps}: expected a positive number")
    cells = [name.strip() for name in args.cells.split(",") if name.strip()]
    recipe, config, _ = configured("fidelity", args, rest, REPLACED)
    strategies = parse_strategies(args.strategies)  # the recipe may register some
    if getattr(config, "devices", 1) != 1:
        raise ConfigError("fidelity --devices: gradients are compared on one device; leave it out")

    keep_freed_memory()
    from . import measure, table

    measure.check_cells(config, cells)
    entries = measure.measure(recipe, config, strategies, cells, args.steps)
    table.write(entries, args.out, shlex.join(["jaxtrain", "fidelity", *argv]))
    print(table.notes(entries))  # the rows were printed one by one
    print(f"written to {args.out}/fidelity.md, fidelity.json and fidelity.png")
    return 1 if all(entry.failed for entry in entries) else 0


def _add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.epilog = "All other options are passed to the recipe, e.g. --hidden 32 --time-lag 10."
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="e.g. recipes/copy_gru.py")
    add(
        "--strategies", default=",".join(STRATEGIES),
        help="strategies separated by commas, with optional fields, e.g. drtrl:window=5,vjp=multi-step,uoro "
        "(default: %(default)s)",
    )  # fmt: skip
    add("--cells", default="", help="values of the recipe's --cell, separated by commas (default: the recipe's)")
    add("--steps", type=int, default=200, help="training steps before the second measurement (default: %(default)s)")
    add("--out", type=Path, default=Path("fidelity"), help="directory for the table (default: %(default)s)")
    return parser
