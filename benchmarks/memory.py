"""Peak memory of a train step against the length of the sequence.

python benchmarks/memory.py
python benchmarks/memory.py --times 100 1000 --strategies drtrl bptt

The copying task with a GRU of 128 units, batch 16, the last 10 time steps scored. Every cell of the table is a process
of its own, told in two ways: what the resident set grows by at most in two steps (the program is compiled, and what
compiling left behind is given back before), and the compiler's own account of the program's temporary memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

import common

HIDDEN, BATCH, SCORED = 128, 16, 10
TIMES = (100, 300, 1_000, 3_000, 10_000)
STRATEGIES: dict[str, dict[str, Any]] = {
    "drtrl": {"name": "DRTRL"},
    "pp_prop": {"name": "PPProp"},
    "bptt": {"name": "BPTT"},
    "bptt(remat)": {"name": "BPTT", "remat": True},
}
GOAL = 1.05
"""Of drtrl: the most that ten times the time steps may cost, both lengths being cut into the same pieces."""


def alone(name: str, time: int, hidden: int, batch: int) -> dict[str, Any]:
    """Bytes of one strategy at one length; meant for a fresh process."""
    from contenders import FitSteps, Setting

    import jaxtrain as jt
    from jaxtrain.engine.report import compiled_memory

    given = dict(STRATEGIES[name])
    strategy = getattr(jt, given.pop("name"))(**given)
    trained = FitSteps(Setting(hidden=hidden, time=time, batch=batch, scored=SCORED), strategy, chunk=1)
    said = compiled_memory(trained.program._train)
    gc.collect()
    _give_back()
    before = _start_peak()
    trained(1)
    trained(1)  # not both at once: two steps in flight would each hold their temporary memory
    return {**said, "resident_bytes": _peak() - before, "segment": trained.program.learner.resolved().get("segment")}


def _give_back() -> None:
    """Free memory that the allocator still holds goes back to the system, where it is asked for anew."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def _start_peak() -> int:
    """Let the high-water mark begin here; gives the resident set."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the mark of the whole life of the process then counts, which compiling may have set: told as it is
    return _status("VmRSS") or _peak()


def _peak() -> int:
    factor = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    found = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return 1024 * int(found.get(field, "0 kB").split()[0])


def tables(found: dict[str, dict[int, dict[str, Any]]]) -> dict[str, list[str]]:
    """By title; MiB by strategy and time steps."""
    told, times = {}, [*next(iter(found.values()))]
    for key, title in (
        ("resident_bytes", "Growth of the resident set while training, MiB"),
        ("temporary_bytes", "Temporary memory by the compiler's account, MiB"),
    ):
        rows = [[name, *(f"{by_time[t][key] / 2**20:.1f}" for t in times)] for name, by_time in found.items()]
        told[title] = common.table(["time steps", *(f"{t:,}" for t in times)], rows)
    told["Judged"] = common.goals_table(goals(found))
    return told


def goals(found: dict[str, dict[int, dict[str, Any]]]) -> list[common.Goal]:
    by_time = found.get("drtrl", {})
    if not {1_000, 10_000} <= set(by_time) or by_time[1_000]["segment"] != by_time[10_000]["segment"]:
        return []
    return [
        common.Goal(f"drtrl, {what}: 10,000 over 1,000 time steps", by_time[10_000][key] / by_time[1_000][key], GOAL)
        for key, what in (("resident_bytes", "resident set"), ("temporary_bytes", "compiler's account"))
    ]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--times", nargs="+", type=int, default=list(TIMES), help="time steps of a sequence")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.times) < 2 * SCORED + 1:
        parser.error(f"--times must be {2 * SCORED + 1} or more")
    if options.alone:
        name, time = options.alone
        return print(json.dumps(alone(name, int(time), options.hidden, options.batch)))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in options.strategies:
        for time in options.times:
            sizes = ["--hidden", str(options.hidden), "--batch", str(options.batch)]
            result = common.fresh("memory.py", "--alone", name, str(time), *sizes)
            found.setdefault(name, {})[time] = result
            print(f"{name}, {time} time steps: {result['resident_bytes'] / 2**20:.1f} MiB", file=sys.stderr)
    told = tables(found)
    common.tell(told)
    if options.json:
        common.keep("memory", told, found, options.json, goals(found))


if __name__ == "__main__":
    main()
