"""What the benchmarks share: contenders timed by turns, ratios round by round, goals, tables, fresh processes.

A machine slows down and speeds up while it measures. So everything that is compared runs in one process, by turns, and
a ratio is made within a round, between two turns a second or so apart; what is told is the median over the rounds, with
the quartiles beside it. Nothing here imports JAX, so that `--help` does not wait for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
"""The last run of each benchmark, which docs/performance.md shows."""


# ------------------------------------------------------------------------------------------------------ timing


@dataclass
class Timing:
    """Seconds a step of every contender, round by round; NaN where a slow one sat a round out.

    ``cpu``: of all threads of the process. What others do on the machine shows there less.
    """

    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def middle(self, name: str) -> float:
        return statistics.median(_there(self.seconds[name]))

    def cpu_middle(self, name: str) -> float:
        return statistics.median(_there(self.cpu[name]))

    def least(self, name: str) -> float:
        return min(_there(self.seconds[name]))

    def quartiles(self, name: str) -> tuple[float, float, float]:
        return quartiles(_there(self.seconds[name]))

    def ratios(self, name: str, reference: str) -> list[float]:
        """``name`` over ``reference``, of the rounds in which both ran."""
        pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
        return _there([a / b for a, b in pairs])

    def ratio(self, name: str, reference: str) -> float:
        return statistics.median(self.ratios(name, reference))


def _there(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def by_turns(
    contenders: Mapping[str, Callable[[int], None]],
    rounds: int,
    turn: float,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Timing:
    """Time contenders round robin; every second round goes through them backwards.

    A contender is called with a number of steps, a multiple of its ``unit`` where it has one (what it dispatches at
    once), and returns when they are done. It has compiled before. A step of each
    warms up, and says how many fill a ``turn`` (seconds). One whose single step takes more than four turns sits rounds
    out, so that it costs less, but it runs in the first round, in the last, and in one more at least.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected 1 or more")

    def taken(name: str, steps: int) -> tuple[float, float]:
        started, cpu = clock(), cpu_clock()
        contenders[name](steps)
        return (clock() - started) / steps, (cpu_clock() - cpu) / steps

    steps, plays = {}, {}
    for name in contenders:
        once = max(taken(name, 1)[0], 1e-9)
        if once < turn:
            once = max(taken(name, 1)[0], 1e-9)
        unit = getattr(contenders[name], "unit", 1)
        steps[name] = max(1, round(turn / once / unit)) * unit
        wanted = min(rounds, max(3, math.ceil(rounds * 4 * turn / once)))
        plays[name] = {round(i * (rounds - 1) / max(wanted - 1, 1)) for i in range(wanted)}
    timing = Timing({name: [] for name in contenders}, {name: [] for name in contenders})
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(list(contenders)):
            wall, cpu = taken(name, steps[name]) if number in plays[name] else (math.nan, math.nan)
            timing.seconds[name].append(wall)
            timing.cpu[name].append(cpu)
    return timing


def by_turns_of_runs(runs: Mapping[str, Callable[[int], float]], rounds: int, steps: int) -> Timing:
    """As ``by_turns``, of runs that clock themselves: called with steps, they give the seconds that one took."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(steps)
    for number in range(rounds):
        for name in runs if number % 2 == 0 else reversed(list(runs)):
            seconds[name].append(runs[name](steps))
    return Timing(seconds)


def timing_table(timing: Timing, references: Sequence[str]) -> list[str]:
    """Lines of a markdown table: a row a contender, with its time over that of each reference."""
    rows = []
    for name in timing.seconds:
        low, middle, high = (1e3 * value for value in timing.quartiles(name))
        against = [f"{timing.ratio(name, reference):.3f}" for reference in references]
        least, cpu = f"{1e3 * timing.least(name):.2f}", f"{1e3 * timing.cpu_middle(name):.1f}"
        rows.append([name, f"{middle:.2f} ({low:.2f} to {high:.2f})", least, cpu, *against])
    over = [f"/ {reference}" for reference in references]
    return table(["", "ms a step, median (quartiles)", "least", "CPU ms", *over], rows)


# ------------------------------------------------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """A number that is to be at most (or, ``least``, at least) another."""

    what: str
    measured: float
    bound: float
    least: bool = False

    @property
    def met(self) -> bool:
        return bool(self.measured >= self.bound if self.least else self.measured <= self.bound)

    def told(self) -> dict[str, Any]:
        """As it is kept: judged before anything is rounded."""
        goal = f"{'>=' if self.least else '<='} {self.bound:g}"
        return {"what": self.what, "measured": f"{self.measured:.3g}", "goal": goal, "met": self.met}

    def row(self) -> list[str]:
        told = self.told()
        return [told["what"], told["measured"], told["goal"], "met" if told["met"] else "**missed**"]


def goals_table(goals: Sequence[Goal]) -> list[str]:
    return table(["judged", "measured", "goal", ""], [goal.row() for goal in goals])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    if wrong := [line for line in lines if len(line) != len(head)]:
        raise ValueError(f"a row of {len(wrong[0])} cells in a table of {len(head)} columns: {wrong[0]}")
    return ["| " + " | ".join(line) + " |" for line in lines]


# ------------------------------------------------------------------------------------------------------ results


def machine() -> str:
    """What a result depends on, in a line."""
    import jax

    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return f"{versions} on {jax.default_backend()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def tell(sections: Mapping[str, list[str]]) -> None:
    """Print the sections of a result as markdown."""
    for title, lines in sections.items():
        print(f"\n### {title}\n\n" + "\n".join(lines), flush=True)


def keep(name: str, sections: Mapping[str, list[str]], numbers: Any, path: Path, goals: Iterable[Goal] = ()) -> None:
    """Write a result as JSON: the command, the tables as they were printed, what was judged, and every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    kept = {"benchmark": name, "command": command, "machine": machine(), "sections": sections,
            "goals": [goal.told() for goal in goals], "numbers": numbers}  # fmt: skip
    text = json.dumps(_short(kept), indent=1)
    lists = re.compile(r"\[\s+([-+.\d\w]+(?:,\s+[-+.\d\w]+)*)\s+\]")  # of numbers, on a line each
    path.write_text(lists.sub(lambda found: f"[{re.sub(r',\s+', ', ', found[1])}]", text) + "\n")


def _short(value: Any) -> Any:
    """Numbers to four digits; NaN, which JSON lacks, as null."""
    if isinstance(value, Mapping):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="where to keep the tables and every number")
    return made


# ---------------------------------------------------------------------------------------------- fresh processes


def fresh(script: str, *argv: str, env: Mapping[str, str] | None = None) -> Any:
    """Run a script of this folder in a process of its own; its last line is JSON."""
    command = [sys.executable, str(Path(__file__).parent / script), *argv]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(argv)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
