"""``jaxtrain info RUN_DIR``: what a run directory holds."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.options import NetworkOptions, TrainingOptions
from ..cli.summary import flat, short
from ..strategies import registry
from ..utils.fields import options
from ..utils.files import jsonable
from .output import age, sparkline
from .run_facts import as_table, facts

CURVES = 6
"""Largest number of curves that are drawn."""
CALLBACKS = [f"{name}.0" for name in
             ("LearningRateMonitor", "Throughput", "JSONL", "TensorBoard", "ProgressBar", "Checkpoint")]  # fmt: skip
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("max_steps", "max_epochs", "max_time", "clip", "seeds", "validate_every")),
    "accumulate": 1, "seed": 0, "devices": 1, "chunk": "auto", "log_every": 50, "nonfinite": "raise", "periods": [],
    "checkpoint": {"keep_last": 1, "keep_best": 1, "mode": "min", "monitor": "val/loss"}, "callbacks": [],
}  # fmt: skip
"""The fields of ``fit`` in config.json if everything has its default, without ``CALLBACKS``."""


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments of ``jaxtrain info`` and print the description of a run."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="e.g. checkpoints/copy_gru/0001-drtrl-seed0")
    parser.add_argument("--all", action="store_true", help="every option, the data, and the last log entry")
    parser.add_argument("--json", action="store_true", help="print JSON; docs/command_line.md lists the keys")
    args = parser.parse_args(argv)
    run = facts(args.run_dir.expanduser())
    print(json.dumps(jsonable(run), indent=2, allow_nan=False) if args.json else describe_run(run, everything=args.all))
    return 0


def describe_run(run: Mapping[str, Any], *, everything: bool = False) -> str:
    """Describe the facts of a run in sections, one fact per line."""
    sections = {"run": _of_run(run), "result": _of_result(run), "curves": _curves(run["curves"])}
    if everything:
        sections |= {name: _table(run[name], empty=False) for name in ("strategy", "config", "fit")}
    else:
        sections["options that differ from jaxtrain's defaults (--all: every option)"] = _changed(run)
    kept = {"steps": ", ".join(map(str, run["checkpoints"]))} if run["checkpoints"] else {"steps": "none"}
    sections |= {"checkpoints": kept, "parent": _table(run["parent"])}
    if everything:
        sections |= {"data": _table(run["data"]), "last log entry": _table(run["last_entry"])}
    texts = []
    for title, values in sections.items():
        if values := {name: text for name, text in values.items() if text}:
            width = max(map(len, values)) + 2
            texts.append("\n".join([title, *(f"  {name:<{width}}{text}" for name, text in values.items())]))
    return "\n\n".join(texts)


def _of_run(run: Mapping[str, Any]) -> dict[str, str]:
    reason, step = f" ({run['reason']})" if run["reason"] else "", run["step"]
    of = f" of {run['max_steps']}" if run["max_steps"] not in (None, step) else ""
    again, continues = 'fit.run(..., resume="last")', ("killed", "failed", "interrupted", "terminated")
    if run["command"] and "strategy" in as_table(run["config"]):  # of a recipe
        again = shlex.join(["python", str(run["command"][0]), "--run-dir", run["run"], "--resume", "last"])
    status = {
        "running": f"running, process {run['process']}, at step {step}{of}",
        "killed": f"stopped unexpectedly after step {step}{of}",
    }
    seconds = time.time() - run["changed"]
    return {
        "directory": run["run"],
        "status": status.get(run["status"], f"{run['status']} at step {step}{of}{reason}"),
        "rule": str(run["rule"] or ""),
        "seeds": ", ".join(map(str, run["seeds"] or [])),
        "command": shlex.join(map(str, run["command"] or [])),
        "resume": again if run["status"] in continues else "",
        "written": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(run['changed']))}, {age(seconds)} ago",
    }


def _of_result(run: Mapping[str, Any]) -> dict[str, str]:
    best, seconds = as_table(run["best"]), as_table(run["seconds"])
    texts = {"best": ", ".join(f"{name} {text}" for name, text in _table(run["best"]).items())}
    if {"monitor", "score", "step"} <= best.keys():
        texts["best"] = f"{best['monitor']} {short(best['score'])} at step {best['step']}"
    texts |= {part: ", ".join(map(" ".join, _table(run[part]).items())) for part in ("train", "val", "test")}
    if isinstance(run["steps_per_second"], float) and {"total", "compile"} <= seconds.keys():
        times = f"{seconds['total']:.0f} s since the last start, including {seconds['compile']:.0f} s of compilation"
        texts["speed"] = f"{run['steps_per_second']:.4g} steps/s; {times}"
    return {**texts, "digest": str(run["digest"] or "")}


def _curves(curves: Mapping[str, list[list[Any]]]) -> dict[str, str]:
    """The loss of training and validation, and further metrics, each with its first and last value."""
    tags = sorted((tag for tag in curves if len(curves[tag]) > 1), key=lambda tag: (not tag.endswith("/loss"), tag))
    texts = {}
    for tag in tags[:CURVES]:
        values = [value for _, value in curves[tag]]
        first, last = (short(value) if value is None else f"{value:.4g}" for value in (values[0], values[-1]))
        texts[tag] = f"{sparkline(values)}  {first} to {last}"
    return texts


def _changed(run: Mapping[str, Any]) -> dict[str, str]:
    """Options that jaxtrain does not know or that differ from its defaults, and fields of the strategy."""
    values, strategy = as_table(run["config"]), as_table(run["strategy"])
    known = {name: o.default for kind in (NetworkOptions, TrainingOptions) for name, o in options(kind).items()}
    own = {name: value for name, value in values.items() if name not in known or value != known[name]}
    rule = [registry.lookup(str(run["rule"]))] if run["rule"] in registry.REGISTRY else []
    fields = {name: option.default for kind in rule for name, option in options(kind).items()}
    changed = {f"strategy.{n}": v for n, v in strategy.items() if n != "name" and v != fields.get(n)}
    if "strategy" not in values:  # a program with a Fit of its own
        fit, defaults = dict(as_table(run["fit"])), dict(flat(DEFAULTS))
        fit["callbacks"] = [name for name in fit.get("callbacks", []) if name not in CALLBACKS]
        own |= {f"fit.{name}": text for name, text in flat(fit) if text != defaults.get(name)}
    return dict(flat({"strategy": run["rule"], **changed, **{n: v for n, v in own.items() if "strategy" not in n}}))


def _table(values: Any, *, empty: bool = True) -> dict[str, str]:
    """Names and texts of a section. A damaged file may hold something other than a table."""
    values = values if isinstance(values, dict) else {"damaged": values} if values else {}
    return dict(flat(values if empty else {name: value for name, value in values.items() if value is not None}))
