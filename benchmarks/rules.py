"""Every learning rule compared with a hand-written BPTT loop: time and memory of a train step, on five networks.

python benchmarks/rules.py
python benchmarks/rules.py --settings long --networks lif gru --rules drtrl pp_prop --rounds 5
python benchmarks/rules.py --networks lru --json rules.json --add

Settings: "wide" (784 inputs, 256 units, 10 time steps, batch 128) and "long" (64 inputs, 128 units, 100 time steps,
batch 64) classify random sequences at every time step; spiking networks have a leaky readout, except under
"eprop-kappa", whose filter replaces the leak. "copy" is the copying
task of braintrace's tutorial: a GRU of 128 units, 60 warm-up and 10 scored time steps, batch 64.

A new process measures one rule on one network. In it, the train program of Fit with this rule and a BPTT loop in the
style of the tutorial, on the same network and data, take turns (see common.py). "/ BPTT" is the median over rounds of
their ratio. Both run with a C allocator that keeps freed memory (the environment variables in ALLOCATOR, which glibc
reads). Otherwise it returns the memory of a step to the system after every step, and the next step has to map it again;
"default allocator" is the ratio without these variables. "braintrace" is the rule with engine="trace", which uses
braintrace's own implementation, in a process of its own; "same" means that the rule always uses it.

"temporaries" is the memory that the compiler reports for the step. It contains the rule's own states (its traces),
whose size is in brackets.

A rule that cannot run on a network, or needs more memory than there is, has the reason in its row. Memory is compared
before the first step. Exit code 1 means that a process failed or that two gradients differ that must be equal.

All of it takes hours. ``--add`` keeps the networks that the file of ``--json`` has and that are not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import common

ROUNDS, TURN, LIMIT, CHUNK = 11, 0.25, 600, 5
"""Rounds; seconds of a turn; seconds after which a process is stopped; steps per dispatch."""
SETTINGS: dict[str, dict[str, int]] = {
    "wide": {"inputs": 784, "hidden": 256, "time": 10, "scored": 10, "batch": 128},
    "long": {"inputs": 64, "hidden": 128, "time": 100, "scored": 100, "batch": 64},
    "copy": {"hidden": 128, "time": 70, "scored": 10, "batch": 64},
}
SMALL = {
    "wide": {"inputs": 6, "hidden": 5, "time": 4, "scored": 4, "batch": 2},
    "long": {"inputs": 3, "hidden": 4, "time": 12, "scored": 12, "batch": 2},
    "copy": {"hidden": 4, "time": 9, "scored": 3, "batch": 2},
}
"""Sizes of ``--small``."""
NETWORKS = ("lif", "alif", "gru", "lstm", "lru")
OF = {"copy": ("gru",)}
"""Networks of a setting, if not all."""
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "bptt": ("BPTT", {}),
    "drtrl": ("DRTRL", {}),
    "drtrl-window-10": ("DRTRL", {"window": 10}),
    "drtrl-single-step": ("DRTRL", {"vjp": "single-step"}),
    "pp_prop": ("PPProp", {}),
    "eprop": ("EProp", {}),
    "eprop-kappa": ("EProp", {"kappa": 0.9}),
    "eprop-random": ("EProp", {"feedback": "random"}),
    "ostl_feedforward": ("OSTLFeedforward", {}),
    "ostl_recurrent": ("OSTLRecurrent", {}),
    "three_factor": ("ThreeFactor", {}),
    "dni": ("DNI", {}),
    "uoro": ("UORO", {}),
    "snap": ("SnAp", {}),
    "etrace": ("ETrace", {"temporal_recursion": "scalar_leak", "decay": 0.9}),
}
REFERENCE = "BPTT by hand"
TOLERANCE = 1e-3
"""Largest relative difference of gradients that must be equal."""
ALLOCATOR = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30))
ALLOCATOR["MALLOC_TOP_PAD_"] = str(2**26)
"""Environment variables of glibc, in bytes."""
type Result = dict[str, Any]
"""Measurements of a process, or the reason why there are none."""
type Row = dict[str, Result]
"""By process: "kept" (with ``ALLOCATOR``), "default" (without), "trace" (braintrace's own implementation)."""
type Rows = dict[str, Row]
HEAD = ("rule", "engine", "ms per step, median (quartiles)", "/ BPTT", "/ BPTT, default allocator",
        "temporaries (own states), MiB", "braintrace / BPTT", "braintrace, MiB")  # fmt: skip


# ------------------------------------------------------------------------------------------------- one process


def make_strategy(rule: str, engine: str | None) -> Any:
    """The strategy of a rule, with another engine than its default if one is given."""
    import jaxtrain as jt

    name, fields = RULES[rule]
    return getattr(jt.strategies, name)(**fields, **({} if engine is None else {"engine": engine}))


def sizes_of(setting: str, small: bool) -> dict[str, int]:
    return (SMALL if small else SETTINGS)[setting]


def alone(options: argparse.Namespace) -> Result:
    """Time and memory of one rule, in turns with the reference. Run it in a new process."""
    from jaxtrain.engine.sharding import as_devices

    as_devices(options.devices)  # creates devices on CPU, before JAX starts
    import jax
    from classify import Rewarded, Sequences
    from contenders import ByHand, FitSteps, distance
    from copy_task import Copy, Setting

    (name,), (network,), (rule,) = options.settings, options.networks, options.rules
    sizes = sizes_of(name, options.small)
    # The filter of e-prop stands for a leaky readout, and is refused with one.
    setting = (
        Sequences(cell=network, leaky="kappa" not in rule, **sizes)
        if "inputs" in sizes
        else Setting(cell=network, **sizes)
    )
    strategy, module = make_strategy(rule, options.engine), Rewarded if rule == "three_factor" else Copy
    try:
        fit = FitSteps(setting, strategy, chunk=CHUNK, devices=options.devices, module=module)
        report = fit.program.report()
        fit(1)
    except (ValueError, MemoryError) as error:
        return {"reason": re.sub(r"/\S*/site-packages/", "", " ".join(str(error).split()))}  # no paths of this machine
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"reason": "out of memory"}
    hand = ByHand(setting, "bptt")
    hand(1)
    far = distance(fit.first_moment(), hand.first_moment())
    started = time.perf_counter()
    fit(1)
    slow = time.perf_counter() - started > options.turn  # then a turn is single steps, not whole chunks
    timing = common.by_turns({REFERENCE: hand, rule: fit.__call__ if slow else fit}, options.rounds, options.turn)
    return {
        "seconds": timing.seconds,
        "far": far,
        "engine": "-" if rule == "bptt" else fit.engine,
        "temporary_bytes": report["memory"].get("temporary_bytes", math.nan),
        "own_bytes": report["trace_bytes"],
    }


# ------------------------------------------------------------------------------------------------ all processes


def measure(rule: str, argv: list[str], env: dict[str, str], limit: float) -> Row:
    """The processes of one row: with the allocator's settings, without them, and braintrace's own implementation."""

    def one(env: dict[str, str], *engine: str) -> Result:
        try:
            return common.fresh("rules.py", *argv, "--alone", *engine, env=env, limit=limit)
        except subprocess.TimeoutExpired:
            return {"reason": f"took more than {limit:g} s"}
        except RuntimeError as error:
            code = str(error).rpartition(" ")[2]
            killed = code == str(-signal.SIGKILL)
            return {"reason": "killed, probably out of memory" if killed else f"exit code {code}", "failed": not killed}

    row = {"kept": one(env | ALLOCATOR)}
    if "reason" in row["kept"]:
        return row
    row["default"] = one(env)
    if row["kept"]["engine"] != "trace" and "engine" in make_strategy(rule, None).config():
        row["trace"] = one(env | ALLOCATOR, "--engine", "trace")
    return row


def differs(rule: str, row: Row) -> bool:
    """Whether gradients differ that must be equal: BPTT's from the reference's, or a rule's from braintrace's.

    The latter are in different processes, so their distances from the reference are compared.
    """
    far = [result["far"] for result in row.values() if "far" in result]
    wanted = 0.0 if rule == "bptt" else far[-1] if far else 0.0
    return not all(abs(one - wanted) <= TOLERANCE * max(1.0, wanted) for one in far)


def ratio(rule: str, result: Result | None) -> str:
    if result is None or "reason" in result:
        return "same" if result is None else result["reason"]
    return f"{common.Timing(result['seconds']).ratio(rule, REFERENCE):.2f}"


def memory(result: Result | None) -> str:
    if result is None or "reason" in result:
        return "-"
    return f"{result['temporary_bytes'] / 2**20:.1f} ({result['own_bytes'] / 2**20:.1f})"


def cells(rule: str, row: Row) -> list[str]:
    """One row of the table of a network."""
    kept, trace = row["kept"], row.get("trace")
    if "reason" in kept:
        return [rule, "", "cannot run: " + kept["reason"].replace("|", "/"), *[""] * (len(HEAD) - 3)]
    low, median, high = (1e3 * value for value in common.Timing(kept["seconds"]).quartiles(rule))
    return [
        rule,
        kept["engine"] + (" (**gradient differs**)" if differs(rule, row) else ""),
        f"{median:.1f} ({low:.1f} to {high:.1f})",
        ratio(rule, kept),
        ratio(rule, row["default"]),
        memory(kept),
        "-" if rule == "bptt" else ratio(rule, trace),
        memory(trace),
    ]


def section(rows: Rows) -> list[str]:
    """The table of a network, and the time of the reference in all of its processes."""
    lines = common.table(HEAD, [cells(rule, row) for rule, row in rows.items()])
    for name, text in (("kept", ""), ("default", ", with the default allocator")):
        timings = [common.Timing(row[name]["seconds"]) for row in rows.values() if "seconds" in row.get(name, {})]
        if timings:
            median = statistics.median(timing.median(REFERENCE) for timing in timings)
            lines += ["", f"{REFERENCE}{text}: {1e3 * median:.1f} ms per step."]
    return lines


def overview(sections: dict[str, list[str]]) -> list[str]:
    """A table of all ratios to BPTT, from the tables of the networks: a row per rule, a column per network."""
    columns: dict[str, dict[str, str]] = {}
    for title, lines in sections.items():
        rows = [line.strip("| ").split(" | ") for line in lines[2:] if line.startswith("|")]
        columns[place_of(title)] = {row[0]: "-" if row[2].startswith("cannot run") else row[3] for row in rows}
    rules = dict.fromkeys(rule for column in columns.values() for rule in column)
    rows = [[rule, *(column.get(rule, "-") for column in columns.values())] for rule in rules]
    return common.table(["/ BPTT", *columns], rows)


def place_of(title: str) -> str:
    """The setting and the network of a section."""
    return title.partition(":")[0]


def failures(measured: dict[str, Rows]) -> list[str]:
    """Rows with a failed process, or with a gradient that should be another."""
    every = {f"{place}, {rule}": (rule, row) for place, rows in measured.items() for rule, row in rows.items()}
    failed = lambda row: any(result.get("failed") for result in row.values())  # noqa: E731
    return [name for name, (rule, row) in every.items() if failed(row) or differs(rule, row)]


def run(options: argparse.Namespace) -> tuple[dict[str, Rows], dict[str, list[str]]]:
    """Measure every row, and show the table of each network when it is complete."""
    measured: dict[str, Rows] = {}
    sections: dict[str, list[str]] = {}
    fixed = ["--rounds", options.rounds, "--turn", options.turn, "--devices", options.devices]
    fixed = [*map(str, fixed), *(["--small"] if options.small else [])]
    with tempfile.TemporaryDirectory() as cache:
        # Processes share compiled programs, since all compile the same reference.
        env = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for setting, network in itertools.product(options.settings, options.networks):
            if network not in OF.get(setting, NETWORKS):
                continue
            place, rows = f"{setting}, {network}", {}
            for rule in options.rules:
                argv = ["--settings", setting, "--networks", network, "--rules", rule, *fixed]
                rows[rule] = measure(rule, argv, env, options.limit)
                print(f"{place}, {rule}: {ratio(rule, rows[rule]['kept'])}", file=sys.stderr, flush=True)
            measured[place] = rows
            sizes = ", ".join(f"{name} {size}" for name, size in sizes_of(setting, options.small).items())
            sections[f"{place}: {sizes}"] = section(rows)
            common.show({f"{place}: {sizes}": section(rows)})
    sections["Overview"] = overview(sections)
    common.show({"Overview": sections["Overview"]})
    return measured, sections


def joined(sections: dict[str, list[str]], earlier: dict[str, list[str]]) -> dict[str, list[str]]:
    """The sections of this run, and those of the networks that only an earlier run measured, in one order."""
    every = {place_of(title): (title, lines) for title, lines in [*earlier.items(), *sections.items()]}
    places = [f"{setting}, {network}" for setting, network in itertools.product(SETTINGS, NETWORKS)]
    tables = dict(every[place] for place in places if place in every)
    return {**tables, "Overview": overview(tables)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS),
                        help="networks to measure; copy has gru only")  # fmt: skip
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE",
                        help=f"rules to measure: {', '.join(RULES)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--turn", type=float, default=TURN, help="seconds for which a contender runs in a round")
    parser.add_argument("--devices", type=int, default=1, help="devices of Fit; the reference runs on one")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a process is stopped")
    parser.add_argument("--small", action="store_true", help="test run with tiny sizes")
    parser.add_argument("--add", action="store_true", help="keep the other networks in the file of --json")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or options.turn <= 0 or options.devices < 1 or options.limit <= 0:
        parser.error("--rounds and --devices must be 1 or more, --turn and --limit positive")
    if options.alone:
        with suppress(OSError):  # Linux: if memory runs out, end this process rather than another
            Path("/proc/self/oom_score_adj").write_text("1000")
        logging.getLogger("jaxtrain").setLevel(logging.WARNING)
        return print(json.dumps(alone(options)))
    if there := sorted(set(ALLOCATOR) & set(os.environ)):
        parser.error(f"unset {', '.join(there)}: this benchmark compares runs with and without")
    if options.add and not (options.json and options.json.exists()):
        parser.error("--add needs --json with a file that exists")
    measured, sections = run(options)
    wrong, earlier = failures(measured), []
    if options.add:
        before = json.loads(options.json.read_text())
        earlier = [*before.get("earlier", []), {name: before[name] for name in ("command", "machine")}]
        measured, sections = {**before["numbers"], **measured}, joined(sections, before["sections"])
    if options.json:
        common.save("rules", sections, measured, options.json, earlier=earlier)
    if wrong:
        sys.exit(f"failed, or with another gradient than expected: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
