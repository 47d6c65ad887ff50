"""``jaxtrain runs DIR``: the runs below a directory, one per line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cli.summary import short
from ..errors import ConfigError
from ..utils.files import jsonable
from .output import age, aligned
from .run_facts import as_table, facts

HEAD = ("run", "rule", "steps", "best", "status", "age")
OMITTED = ("config", "fit", "data", "strategy", "command", "versions", "last_entry", "curves")
"""Facts that ``jaxtrain info`` prints and a list of runs does not."""


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments of ``jaxtrain runs`` and print the table. Returns 1 if something could not be read."""
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", nargs="?", default=Path("checkpoints"), help="default: checkpoints")
    sort = "best: the best score first; age: the newest first; steps: the most first (default: run, by name)"
    add("--sort", choices=HEAD, default="run", metavar="|".join(HEAD), help=sort)
    add("--json", action="store_true", help="print a list of objects; docs/command_line.md lists the keys")
    args = parser.parse_args(argv)
    root = args.directory.expanduser()
    if not root.is_dir():
        raise ConfigError(f"runs {root}: expected a directory that holds runs")
    failures: list[str] = []
    runs = sorted(_runs(root, failures), key=lambda run: _key(run, args.sort))
    if args.json:
        listed = [{name: value for name, value in run.items() if name not in OMITTED} for run in runs]
        print(json.dumps(jsonable(listed), indent=2, allow_nan=False))
    elif runs:
        print(aligned([HEAD, *(_row(run, root) for run in runs)]))
    else:
        print(f"no runs below {root}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _runs(root: Path, failures: list[str]) -> Iterator[dict[str, Any]]:
    """The facts of the runs below a directory. What cannot be read is added to ``failures``."""

    def failed(error: OSError) -> None:
        failures.append(f"{error.filename}: {error.strerror}")

    for folder, names, files in os.walk(root, onerror=failed):
        if "config.json" not in files:
            continue
        names.clear()  # no runs within runs
        try:
            yield facts(Path(folder))
        except OSError as error:
            failed(error)
        except RuntimeError as error:
            failures.append(str(error))


def _key(run: Mapping[str, Any], sort: str) -> tuple[Any, ...]:
    """Sorts runs; those without the value are last. Runs that are equal are sorted by name."""
    best = as_table(run["best"])
    larger = as_table(as_table(run["fit"]).get("checkpoint")).get("mode") == "max"
    values = {
        "best": None if best.get("score") is None else -best["score"] if larger else best["score"],
        "age": -run["changed"],
        "steps": -run["step"],
        "rule": run["rule"],
        "status": run["status"],
    }
    value = values.get(sort)
    return value is None, value, run["run"]


def _row(run: Mapping[str, Any], root: Path) -> list[str]:
    best, total = as_table(run["best"]), run["max_steps"]
    score = f"{best.get('monitor')} {short(best.get('score'))}" if best else "-"
    status = f"running ({run['process']})" if run["status"] == "running" else str(run["status"])
    steps = str(run["step"]) if total is None else f"{run['step']}/{total}"
    name = str(Path(run["run"]).relative_to(root)) if run["run"] != str(root) else run["run"]
    return [name, str(run["rule"]), steps, score, status, age(time.time() - run["changed"])]
