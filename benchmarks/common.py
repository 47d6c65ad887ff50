"""Shared parts of the benchmarks: timing in turns, ratios per round, goals, tables and child processes.

The speed of a machine changes during a measurement. Contenders that are compared therefore run in one process and take
turns. A ratio is computed within a round, between two turns about a second apart. Reported are the median over the
rounds and the quartiles. This file does not import JAX, so that `--help` is fast.
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
"""The last result of each benchmark. docs/performance.md shows them."""


# ------------------------------------------------------------------------------------------------------ timing


@dataclass
class Timing:
    """Seconds per step of every contender, by round; NaN if a slow contender skipped the round.

    ``cpu`` counts all threads of the process. Other load on the machine affects it less.
    """

    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(_measured(self.seconds[name]))

    def cpu_median(self, name: str) -> float:
        return statistics.median(_measured(self.cpu[name]))

    def minimum(self, name: str) -> float:
        return min(_measured(self.seconds[name]))

    def quartiles(self, name: str) -> tuple[float, float, float]:
        return quartiles(_measured(self.seconds[name]))

    def ratios(self, name: str, reference: str) -> list[float]:
        """Time of ``name`` over that of ``reference``, for the rounds in which both ran."""
        pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
        return _measured([a / b for a, b in pairs])

    def ratio(self, name: str, reference: str) -> float:
        return statistics.median(self.ratios(name, reference))


def _measured(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def by_turns(
    contenders: Mapping[str, Callable[[int], None]],
    rounds: int,
    turn: float,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Timing:
    """Time contenders in turns. Every second round goes through them in reverse order.

    A contender is called with a number of steps and returns when they are done. The number is a multiple of the
    contender's ``unit`` (the number of steps that it dispatches at once), if it has one. It must have been compiled
    before. A step of each contender warms up and determines how many steps fill a turn.

    A contender whose single step takes more than four turns skips rounds to save time. It runs in the first round, in
    the last round and in at least one more.

    Args:
        contenders: Functions of a number of steps, by name.
        rounds: Number of rounds.
        turn: Duration of a turn in seconds.
        clock: Wall-clock time in seconds.
        cpu_clock: CPU time in seconds.

    Raises:
        ValueError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected 1 or more")

    def measure(name: str, steps: int) -> tuple[float, float]:
        started, cpu = clock(), cpu_clock()
        contenders[name](steps)
        return (clock() - started) / steps, (cpu_clock() - cpu) / steps

    steps, active = {}, {}  # by contender: steps of a turn, and the rounds in which it runs
    for name in contenders:
        seconds = max(measure(name, 1)[0], 1e-9)
        if seconds < turn:
            seconds = max(measure(name, 1)[0], 1e-9)
        unit = getattr(contenders[name], "unit", 1)
        steps[name] = max(1, round(turn / seconds / unit)) * unit
        wanted = min(rounds, max(3, math.ceil(rounds * 4 * turn / seconds)))
        active[name] = {round(i * (rounds - 1) / max(wanted - 1, 1)) for i in range(wanted)}
    timing = Timing({name: [] for name in contenders}, {name: [] for name in contenders})
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(list(contenders)):
            wall, cpu = measure(name, steps[name]) if number in active[name] else (math.nan, math.nan)
            timing.seconds[name].append(wall)
            timing.cpu[name].append(cpu)
    return timing


def by_turns_of_runs(runs: Mapping[str, Callable[[int], float]], rounds: int, steps: int) -> Timing:
    """Like ``by_turns``, for functions that take a number of steps and return the measured seconds per step."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(steps)
    for number in range(rounds):
        for name in runs if number % 2 == 0 else reversed(list(runs)):
            seconds[name].append(runs[name](steps))
    return Timing(seconds)


def timing_table(timing: Timing, references: Sequence[str]) -> list[str]:
    """A markdown table with one row per contender, and its time divided by that of each reference."""
    rows = []
    for name in timing.seconds:
        low, median, high = (1e3 * value for value in timing.quartiles(name))
        ratios = [f"{timing.ratio(name, reference):.3f}" for reference in references]
        minimum, cpu = f"{1e3 * timing.minimum(name):.2f}", f"{1e3 * timing.cpu_median(name):.1f}"
        rows.append([name, f"{median:.2f} ({low:.2f} to {high:.2f})", minimum, cpu, *ratios])
    divided = [f"/ {reference}" for reference in references]
    return table(["", "ms per step, median (quartiles)", "minimum", "CPU ms", *divided], rows)


# ------------------------------------------------------------------------------------------------------- goals


@dataclass(frozen=True)
class Goal:
    """An upper bound of a measured number, or a lower bound if ``at_least``."""

    what: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return bool(self.measured >= self.bound if self.at_least else self.measured <= self.bound)

    def to_json(self) -> dict[str, Any]:
        """The goal for a result file. ``met`` is computed before the number is rounded."""
        goal = f"{'>=' if self.at_least else '<='} {self.bound:g}"
        return {"what": self.what, "measured": f"{self.measured:.3g}", "goal": goal, "met": self.met}

    def row(self) -> list[str]:
        saved = self.to_json()
        return [saved["what"], saved["measured"], saved["goal"], "met" if saved["met"] else "**missed**"]


def goals_table(goals: Sequence[Goal]) -> list[str]:
    return table(["quantity", "measured", "goal", ""], [goal.row() for goal in goals])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    if wrong := [line for line in lines if len(line) != len(head)]:
        raise ValueError(f"a row of {len(wrong[0])} cells in a table of {len(head)} columns: {wrong[0]}")
    return ["| " + " | ".join(line) + " |" for line in lines]


# ------------------------------------------------------------------------------------------------------ results


def machine() -> str:
    """One line about the versions and the machine on which a result was measured."""
    import jax

    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return f"{versions} on {jax.default_backend()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def show(sections: Mapping[str, list[str]]) -> None:
    """Print the sections of a result as markdown."""
    for title, lines in sections.items():
        print(f"\n### {title}\n\n" + "\n".join(lines), flush=True)


def save(name: str, sections: Mapping[str, list[str]], numbers: Any, path: Path, goals: Iterable[Goal] = (),
         earlier: Sequence[Any] = ()) -> None:  # fmt: skip
    """Write a result as JSON: the command, the machine, the printed sections, the goals and every number.

    Args:
        name: Name of the benchmark.
        sections: Printed lines by title.
        numbers: Every number.
        path: The file.
        goals: Goals, met or missed.
        earlier: Commands and machines of earlier runs of which the result has a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    result = {"benchmark": name, "command": command, "machine": machine(), "sections": sections,
              "goals": [goal.to_json() for goal in goals], "numbers": numbers}  # fmt: skip
    if earlier:
        result["earlier"] = list(earlier)
    text = json.dumps(_short(result), indent=1)
    lists = re.compile(r"\[\s+([-+.\d\w]+(?:,\s+[-+.\d\w]+)*)\s+\]")  # lists of numbers go on one line
    path.write_text(lists.sub(lambda match: f"[{re.sub(r',\s+', ', ', match[1])}]", text) + "\n")


def _short(value: Any) -> Any:
    """Round numbers to four digits, and replace NaN, which JSON lacks, by null."""
    if isinstance(value, Mapping):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def parser(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the tables and all numbers")
    return parser


# ---------------------------------------------------------------------------------------------- child processes


def fresh(script: str, *argv: str, env: Mapping[str, str] | None = None, limit: float | None = None) -> Any:
    """Run a script of this folder in a new process and return the JSON of its last line.

    Args:
        script: Name of the script.
        argv: Its arguments.
        env: Additional environment variables.
        limit: Seconds after which the process is stopped.

    Raises:
        RuntimeError: It failed; the message ends with its exit code.
        subprocess.TimeoutExpired: It was stopped.
    """
    command = [sys.executable, str(Path(__file__).parent / script), *argv]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(argv)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
