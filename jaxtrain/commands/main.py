"""The `jaxtrain` command: look at runs, at how faithful learning rules are, and at what they learn."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from ..cli.argv import readable
from ..cli.recipe import guarded, overlaid
from ..cli.run_dirs import describe_run
from ..errors import ConfigError
from ..utils.coerce import did_you_mean

RULES = ("bptt", "tbptt", "drtrl", "pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward", "snap", "uoro", "dni",
         "readout_only")  # fmt: skip
"""What is compared unless told: every rule but those that need a reward (three_factor) or coordinates (etrace)."""

INSTEAD = {"--strategy": "--strategies", "--run-dir": "--out", "--max-steps": "--steps"}
"""Options of recipes that are something else in `fidelity` and `compare`."""

PARTS = ("accuracy", "acc")
"""Ends of the names of metrics that are parts of 1."""


def tool(argv: Sequence[str] | None = None) -> int:
    """The `jaxtrain` command; returns the exit code."""
    return guarded(lambda: _tool(list(sys.argv[1:] if argv is None else argv)))


def _tool(argv: list[str]) -> int:
    from .._version import __version__

    parser = argparse.ArgumentParser(
        prog="jaxtrain", description="Look at runs, how faithful learning rules are, and what they learn."
    )
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
        "--strategies",
        default=",".join(RULES),
        help="strategies by commas, with fields: drtrl:window=5,vjp=multi-step,uoro (default: %(default)s)",
    )
    fidelity.add_argument("--cells", default="", help="values of the recipe's --cell, by commas (default: its own)")
    fidelity.add_argument(
        "--steps", type=int, default=200, help="steps to train before the second look (default: %(default)s)"
    )
    fidelity.add_argument(
        "--out",
        type=Path,
        default=Path("fidelity"),
        help="directory for fidelity.md, .json, .png: overwritten (default: %(default)s)",
    )
    compare = commands.add_parser(
        "compare", help="what each rule learns on a recipe: rules by options by seeds, as a table and figures",
        epilog="further options are the recipe's own, e.g. --hidden 32; what was done before under --out is kept",
        allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    compare.add_argument("recipe", type=Path, metavar="RECIPE")
    compare.add_argument(
        "--strategies", default="drtrl",
        help="strategies by commas, with fields: drtrl:window=5,vjp=multi-step,uoro; readout_only and bptt join them",
    )  # fmt: skip
    compare.add_argument(
        "--vary", action="append", default=[], metavar="OPTION=VALUE,...",
        help="values of an option of the recipe, e.g. cell=gru,lru; several are combined",
    )  # fmt: skip
    compare.add_argument("--seeds", default="0-4", help="values of the recipe's --seed")
    compare.add_argument("--lrs", default="", help="rates by commas, of which the tuning seeds choose for every rule")
    compare.add_argument("--tune-seeds", default="100,101", help="seeds that choose a rate and are no part of results")
    compare.add_argument("--steps", type=int, help="budget of a trial, for the recipe's --max-steps")
    compare.add_argument("--seconds", type=float, help="budget of a trial: of training alone")
    compare.add_argument("--metric", default="val/accuracy", help="tag of the record that is compared")
    compare.add_argument(
        "--mode", choices=("min", "max"), help="which is better, where the metric's name does not say it"
    )
    compare.add_argument("--target", type=float, help="what the metric is to come to, e.g. 0.99")
    compare.add_argument("--stop", action="store_true", help="end a trial as soon as it is at the target")
    compare.add_argument("--preset", help="a preset of the recipe")
    compare.add_argument("--jobs", type=int, default=1, help="trials at once: more share the cores")
    compare.add_argument("--out", type=Path, default=Path("compare"), help="directory of all that comes of it")
    resume = commands.add_parser(
        "verify-resume", help="whether a run killed at random moments and gone on with is bit for bit the same",
        epilog="further options are the recipe's own, e.g. --max-steps 500; what hangs on the clock (a max_time, a "
        "period in minutes) cannot be verified", allow_abbrev=False,
    )  # fmt: skip
    resume.add_argument("recipe", type=Path, metavar="RECIPE")
    resume.add_argument("--kills", type=int, default=10, help="how many times it is killed (default: %(default)s)")
    resume.add_argument(
        "--kill-seed", type=int, default=0, help="of the moments; --seed is the recipe's own (default: 0)"
    )
    resume.add_argument("--keep", type=Path, help="an empty directory for the runs, which stay there")
    args, rest = parser.parse_known_args(argv)
    if args.command == "info":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        print(describe_run(args.run_dir.expanduser()))
        return 0
    if args.command == "verify-resume":
        return _verify_resume(args, rest)
    return (_compare if args.command == "compare" else _fidelity)(args, rest, argv)


def _verify_resume(args: argparse.Namespace, rest: list[str]) -> int:
    from . import verify_resume as verify

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


def _recipe(args: argparse.Namespace, rest: list[str], instead: Mapping[str, str]) -> tuple[Any, Any, dict[str, Any]]:
    """The recipe as a module, its options as given, and the fields that a preset sets, by strategy."""
    import tyro

    from .fidelity import load_recipe

    for word in rest:
        name = word.partition("=")[0].replace("_", "-")
        other = instead.get("--strategy" if name.startswith("--strategy.") else name)
        if other is not None:
            raise ConfigError(f"{args.command} {args.recipe}: {word.partition('=')[0]} has no effect here; say {other}")
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"{args.command} --out {args.out}: expected a directory")
    if (args.out / "config.json").exists():
        raise ConfigError(f"{args.command} --out {args.out}: that is the directory of a run; choose another")
    recipe = load_recipe(args.recipe)
    preset, layers = getattr(args, "preset", None), []
    if preset is not None:
        presets = getattr(recipe, "PRESETS", {})
        if preset not in presets:
            known = did_you_mean(preset, presets) if presets else "this recipe has none"
            raise ConfigError(f"unknown preset {preset!r}; {known}")
        layers.append((presets[preset], f"preset {preset!r}"))
    default, fields = overlaid(recipe.Config(), layers)
    words = readable(rest, get_type_hints(recipe.Config))
    # Without the recipe's own checks, whose errors tyro would put into a box.
    hints = get_type_hints(recipe.Config, include_extras=True)
    options = {field.name: getattr(default, field.name) for field in dataclasses.fields(recipe.Config) if field.init}
    bare = dataclasses.make_dataclass("Options", [(name, hints[name]) for name in options])
    parsed, unknown = tyro.cli(
        bare, args=words, default=bare(**options), prog=f"jaxtrain {args.command} {args.recipe}",
        return_unknown_args=True,
    )  # fmt: skip
    if unknown:
        raise ConfigError(
            f"{args.command} {args.recipe}: neither {args.command} nor the recipe has an option {unknown[0]}"
        )
    config = recipe.Config(**{name: getattr(parsed, name) for name in options})
    return recipe, config, fields


def _compare(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    from ..utils.files import RunLock
    from .compare import runner as compare
    from .compare import table as comparison

    for name in ("steps", "seconds", "jobs"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ConfigError(f"compare --{name} {value:g}: expected a positive number")
    if args.stop and args.target is None:
        raise ConfigError("compare --stop: say what is to be reached with --target")
    monitor, rates = compare.parse_metric(args.metric, args.mode), compare.parse_rates(args.lrs)
    seeds, tune = compare.parse_seeds(args.seeds, "--seeds"), compare.parse_seeds(args.tune_seeds, "--tune-seeds")
    if len(rates) > 1 and (both := sorted({*seeds} & {*tune})):
        raise ConfigError(f"compare --tune-seeds {args.tune_seeds}: seed {both[0]} is one of --seeds, too")
    if len(rates) > 1 and not tune:
        raise ConfigError("compare --tune-seeds: say which seeds choose the rate")
    rules = compare.with_controls(args.strategies)
    recipe, config, fields = _recipe(
        args, rest, {**INSTEAD, "--seed": "--seeds", **({"--lr": "--lrs"} if rates else {})}
    )
    needed = {"seed": seeds or (len(rates) > 1), "lr": rates, "max_steps": args.steps}
    for name, value in needed.items():
        if value and not hasattr(config, name):
            option = {"seed": "--seeds ''", "lr": "--lrs", "max_steps": "--steps"}[name]
            raise ConfigError(f"{args.recipe} has no option --{name.replace('_', '-')}: leave {option} out")
    if hasattr(config, "stop_at") and not any(word.replace("_", "-").startswith("--stop-at") for word in rest):
        config = dataclasses.replace(config, stop_at=None)  # what ends a trial is said here
    if args.target is not None and args.target > 1 and monitor.tag.endswith(PARTS):
        raise ConfigError(f"compare --target {args.target:g}: {monitor.tag} is a part of 1; say 0.99 for 99 %")
    varied = compare.parse_variants(config, args.vary)
    for name, option in (("lr", "lrs"), ("max_steps", "steps")):
        if getattr(args, option) and name in varied[0]:
            raise ConfigError(f"compare --{option} has no effect where --vary {name} says it")
    variants = compare.variants_of(config, varied)
    judge = compare.Judge(monitor, args.target, args.steps, args.seconds, args.stop)
    out, say = args.out.expanduser(), lambda text: print(text, flush=True)
    with RunLock(out):
        trials = compare.Comparison(args.recipe, config, fields, judge, out, args.jobs, say)
        falls = args.seconds is not None and getattr(config, "decay", "constant") != "constant"
        notes = ["The rate falls over --max-steps: a trial that its seconds end has not come down it."] if falls else []
        if args.seconds is not None and args.steps is None and hasattr(config, "max_steps"):
            notes.append(f"The recipe's own --max-steps, {config.max_steps:,} unless varied, ends a trial, too.")
        chance = getattr(recipe, "CHANCE", {}).get(args.metric.rpartition("/")[2])

        def write() -> list[dict[str, Any]]:
            results = trials.so_far()
            command, missing = shlex.join(["jaxtrain", *argv]), len(trials.asked) - len(results)
            print("\n" + comparison.write(out, results, judge, chance, command, missing, " ".join(notes)))
            print(f"written to {args.out}/compare.md, compare.json, compare.png and trials.jsonl")
            return results

        try:
            trials.run(variants, rules, seeds, rates, tune)
        except KeyboardInterrupt:
            if not all(result["tuning"] for result in trials.so_far()):
                write()
            raise
        results = write()
    return 1 if all(result["failed"] for result in results) else 0


def _fidelity(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    from . import fidelity, fidelity_table

    if args.steps < 1:
        raise ConfigError(f"fidelity --steps {args.steps}: expected a positive number")

    rules = fidelity.parse_rules(args.strategies)
    cells = [name.strip() for name in args.cells.split(",") if name.strip()]
    recipe, config, _ = _recipe(args, rest, INSTEAD)
    if getattr(config, "devices", 1) != 1:
        raise ConfigError("fidelity --devices: a gradient is looked at on one device; leave it out")
    fidelity.check_cells(config, cells)
    table = fidelity.measure(recipe, config, rules, cells, args.steps)
    fidelity_table.write(table, args.out, shlex.join(["jaxtrain", *argv]))
    print(fidelity_table.notes(table))  # its rows were said one by one
    print(f"written to {args.out}/fidelity.md, fidelity.json and fidelity.png")
    return 1 if all(entry.failed for entry in table) else 0
