"""The `jaxtrain` command: look at runs, and at how faithful learning rules are."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

from .cli import guarded
from .config import ConfigError
from .folders import describe_run
from .words import readable

RULES = ("bptt", "tbptt", "drtrl", "pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward", "snap", "uoro", "dni",
         "readout_only")  # fmt: skip
"""What is compared unless told: every rule but those that need a reward (three_factor) or coordinates (etrace)."""

INSTEAD = {"--strategy": "--rules", "--run-dir": "--out", "--max-steps": "--steps"}
"""Options of recipes that are something else in `fidelity`."""


def tool(argv: Sequence[str] | None = None) -> int:
    """The `jaxtrain` command; returns the exit code."""
    return guarded(lambda: _tool(list(sys.argv[1:] if argv is None else argv)))


def _tool(argv: list[str]) -> int:
    from . import __version__

    parser = argparse.ArgumentParser(prog="jaxtrain", description="Look at runs, and at how faithful rules are.")
    parser.add_argument("--version", action="version", version=f"jaxtrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what a run directory holds")
    info.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    fidelity = commands.add_parser(
        "fidelity", help="how far each rule's gradient is from BPTT's: cells by rules, as a table and a figure",
        epilog="further options are the recipe's own, e.g. --hidden 32 --time-lag 10", allow_abbrev=False,
    )  # fmt: skip
    fidelity.add_argument("recipe", type=Path, metavar="RECIPE")
    fidelity.add_argument(
        "--rules", default=",".join(RULES), help="strategies by commas, with fields: drtrl:window=5,vjp=multi-step,uoro"
    )
    fidelity.add_argument("--cells", default="", help="values of the recipe's --cell, by commas")
    fidelity.add_argument("--steps", type=int, default=200, help="steps to train before the second look")
    fidelity.add_argument(
        "--out", type=Path, default=Path("fidelity"), help="directory for fidelity.md, .json, .png: overwritten"
    )
    resume = commands.add_parser(
        "verify-resume", help="whether a run killed at random moments and gone on with is bit for bit the same",
        epilog="further options are the recipe's own, e.g. --max-steps 500; what hangs on the clock (a max_time, a "
        "period in minutes) cannot be verified", allow_abbrev=False,
    )  # fmt: skip
    resume.add_argument("recipe", type=Path, metavar="RECIPE")
    resume.add_argument("--kills", type=int, default=10, help="how many times it is killed")
    resume.add_argument("--kill-seed", type=int, default=0, help="of the moments; --seed is the recipe's own")
    resume.add_argument("--keep", type=Path, help="an empty directory for the runs, which stay there")
    args, rest = parser.parse_known_args(argv)
    if args.command == "info":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        print(describe_run(args.run_dir.expanduser()))
        return 0
    if args.command == "verify-resume":
        return _verify_resume(args, rest)
    return _fidelity(args, rest, argv)


def _verify_resume(args: argparse.Namespace, rest: list[str]) -> int:
    from . import verify

    verify.check(args.recipe, rest, args.kills)
    if args.keep is None:
        folder = Path(tempfile.mkdtemp(prefix="verify-resume-"))
    else:
        folder = args.keep.expanduser().resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"verify-resume --keep {args.keep}: expected an empty directory, or none yet")
    verdict = verify.verify(args.recipe, rest, args.kills, args.kill_seed, folder, print)
    print(verify.table(verdict))
    if args.keep is None and verdict.equal:
        shutil.rmtree(folder)
    else:
        print(f"the runs are in {folder}")
    return 0 if verdict.equal else 1


def _fidelity(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    import tyro

    if args.steps < 1:
        raise ConfigError(f"fidelity --steps {args.steps}: expected a positive number")
    for word in rest:
        name = word.partition("=")[0].replace("_", "-")
        instead = INSTEAD.get("--strategy" if name.startswith("--strategy.") else name)
        if instead is not None:
            raise ConfigError(f"fidelity {args.recipe}: {word.partition('=')[0]} has no effect here; say {instead}")
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"fidelity --out {args.out}: expected a directory")
    from . import fidelity

    rules = fidelity.parse_rules(args.rules)
    cells = [name.strip() for name in args.cells.split(",") if name.strip()]
    recipe = fidelity.load_recipe(args.recipe)
    words = readable(rest, get_type_hints(recipe.Config))
    config, unknown = tyro.cli(
        recipe.Config, args=words, prog=f"jaxtrain fidelity {args.recipe}", return_unknown_args=True
    )
    if unknown:
        raise ConfigError(f"fidelity {args.recipe}: neither fidelity nor the recipe has an option {unknown[0]}")
    fidelity.check_cells(config, cells)
    table = fidelity.measure(recipe, config, rules, cells, args.steps)
    fidelity.write(table, args.out, shlex.join(["jaxtrain", *argv]))
    print(fidelity.markdown(table))
    print(f"written to {args.out}/fidelity.md, fidelity.json and fidelity.png")
    return 1 if all(entry.failed for entry in table) else 0
