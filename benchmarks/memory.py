"""Peak memory of a train step for sequences of different lengths.

python benchmarks/memory.py
python benchmarks/memory.py --times 100 1000 --strategies drtrl bptt

The copying task with a GRU of 128 units, batch 16, the last 10 time steps scored. Every cell of the tables is measured
in a new process, in two ways: the largest growth of the resident set in two steps, after compilation and after freed
memory was returned to the system; and the temporary memory of the program that the compiler reports.
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
    "eprop": {"name": "EProp"},
    "eprop, kappa": {"name": "EProp", "kappa": 0.9},
    "ostl_recurrent": {"name": "OSTLRecurrent"},
    "ostl_feedforward": {"name": "OSTLFeedforward"},
    "bptt": {"name": "BPTT"},
    "bptt(remat)": {"name": "BPTT", "remat": True},
}
GOAL = 1.05
"""Largest ratio of a rule's memory at ten times the sequence length, if both lengths have segments of one size."""


def alone(name: str, time: int, hidden: int, batch: int) -> dict[str, Any]:
    """Bytes of one strategy at one sequence length. Run it in a new process."""
    from contenders import FitSteps
    from copy_task import Setting

    from jaxtrain import strategies
    from jaxtrain.engine.report import compiled_memory

    options = dict(STRATEGIES[name])
    strategy = getattr(strategies, options.pop("name"))(**options)
    steps = FitSteps(Setting(hidden=hidden, time=time, batch=batch, scored=SCORED), strategy, chunk=1)
    compiled = compiled_memory(steps.program._train)
    gc.collect()
    _release_free_memory()
    before = _reset_peak()
    steps(1)
    steps(1)  # not steps(2): each of two steps in flight would hold its temporary memory
    return {**compiled, "resident_bytes": _peak() - before, "segment": steps.program.learner.resolved().get("segment")}


def _release_free_memory() -> None:
    """Return the free memory of the allocator to the system, so that its reuse counts as growth."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


def _reset_peak() -> int:
    """Reset the peak of the resident set, and return the current size in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then covers the whole process, and compilation may have set it
    return _status("VmRSS") or _peak()


def _peak() -> int:
    factor = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return 1024 * int(fields.get(field, "0 kB").split()[0])


def make_sections(measured: dict[str, dict[int, dict[str, Any]]]) -> dict[str, list[str]]:
    """Tables of MiB by strategy and time steps, and the goals."""
    sections, times = {}, [*next(iter(measured.values()))]
    for key, title in (
        ("resident_bytes", "Growth of the resident set while training, MiB"),
        ("temporary_bytes", "Temporary memory reported by the compiler, MiB"),
    ):
        rows = [[name, *(f"{by_time[t][key] / 2**20:.1f}" for t in times)] for name, by_time in measured.items()]
        sections[title] = common.table(["time steps", *(f"{t:,}" for t in times)], rows)
    sections["Goals"] = common.goals_table(make_goals(measured))
    return sections


def make_goals(measured: dict[str, dict[int, dict[str, Any]]]) -> list[common.Goal]:
    goals = []
    for name, by_time in measured.items():
        segments = [by_time[time]["segment"] for time in (1_000, 10_000) if time in by_time]
        if len(segments) == 2 and segments[0] == segments[1] not in (None, "sequence"):
            for key, what in (("resident_bytes", "resident set"), ("temporary_bytes", "temporary memory")):
                ratio = by_time[10_000][key] / by_time[1_000][key]
                goals.append(common.Goal(f"{name}, {what}: 10,000 over 1,000 time steps", ratio, GOAL))
    return goals


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--times", nargs="+", type=int, default=list(TIMES), help="numbers of time steps of a sequence")
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
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for name in options.strategies:
        for time in options.times:
            sizes = ["--hidden", str(options.hidden), "--batch", str(options.batch)]
            result = common.fresh("memory.py", "--alone", name, str(time), *sizes)
            measured.setdefault(name, {})[time] = result
            print(f"{name}, {time} time steps: {result['resident_bytes'] / 2**20:.1f} MiB", file=sys.stderr)
    sections = make_sections(measured)
    common.show(sections)
    if options.json:
        common.save("memory", sections, measured, options.json, make_goals(measured))


if __name__ == "__main__":
    main()
