"""Time and page faults of a train step under settings of glibc's allocator.

python benchmarks/allocator.py
python benchmarks/allocator.py --rounds 10 --time 200 --chunk 10

A GRU of 128 units on the copying task, 100 time steps of which the last 10 are scored, batch 64, one step per dispatch.
XLA allocates the temporary arrays of a dispatch when it starts and frees them when it ends. Contenders: the defaults of
glibc, which return the memory to the kernel, the settings that recipes and commands make in their own process, and the
same settings as environment variables. Each contender of a round runs in a new process, and every second round goes
through them in reverse order. The CPU time depends less on other load of the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

import common

STRATEGIES = {"drtrl": "DRTRL", "bptt": "BPTT"}
DEFAULT, RECIPE, VARIABLES = "defaults of glibc", "recipes and commands", "environment variables"
GOAL = 0.95
"""Largest ratio of a step's CPU time, with the settings of recipes, to that with the defaults."""


def alone(strategy: str, seconds: float, length: int, chunk: int, keep: bool) -> dict[str, Any]:
    """Measure steps for ``seconds``. Run it in a new process."""
    if keep:
        from jaxtrain.utils.allocator import keep_freed_memory

        if not keep_freed_memory():
            raise RuntimeError(
                "this C library has no mallopt, or the environment sets the allocator: nothing to compare"
            )
    from contenders import FitSteps
    from copy_task import Setting

    import jaxtrain as jt
    from jaxtrain.engine.report import compiled_memory

    steps = FitSteps(Setting(time=length), getattr(jt, STRATEGIES[strategy])(), chunk=chunk)
    temporary = compiled_memory(steps.program._train)["temporary_bytes"]
    for _ in range(2):  # the first dispatches fault in the memory that stays
        steps(chunk)
    before, started, count = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        steps(chunk)
        count += chunk
    spent, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"ms": 1e3 * spent / count, "cpu_ms": 1e3 * (user + kernel) / count, "kernel_ms": 1e3 * kernel / count,
            "faults": (after.ru_minflt - before.ru_minflt) / count, "temporary": temporary,
            "peak": 1024 * after.ru_maxrss}  # fmt: skip


def measure(rounds: int, seconds: float, length: int, chunk: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By strategy and contender, the measurements of every round."""
    from jaxtrain.utils.allocator import SETTINGS

    variables = {name: str(value) for name, (_, value) in SETTINGS.items()}
    contenders = {DEFAULT: ({}, []), RECIPE: ({}, ["--keep"]), VARIABLES: (variables, [])}
    measured = {strategy: {name: [] for name in contenders} for strategy in STRATEGIES}
    for number in range(rounds):
        for strategy, by_name in measured.items():
            for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
                env, extra = contenders[name]
                argv = ["--alone", strategy, "--seconds", str(seconds), "--time", str(length)]
                argv += ["--chunk", str(chunk), *extra]
                by_name[name].append(common.fresh("allocator.py", *argv, env=env))
    return measured


def ratios(by_name: dict[str, list[dict[str, Any]]], name: str, key: str = "ms") -> list[float]:
    """Time of ``name`` over that with the defaults, by round."""
    return [one[key] / other[key] for one, other in zip(by_name[name], by_name[DEFAULT], strict=True)]


def make_sections(measured: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, list[str]]:
    """A table per strategy, and the goals."""
    sections = {}
    head = ["", "ms per step", "/ defaults, median (quartiles)", "CPU ms", "/ defaults", "of it kernel",
            "page faults", "peak MiB"]  # fmt: skip
    for strategy, by_name in measured.items():
        rows = []
        for name, runs in by_name.items():
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            low, median, high = common.quartiles(ratios(by_name, name))
            cpu = statistics.median(ratios(by_name, name, "cpu_ms"))
            rows.append([
                name, f"{middle['ms']:.1f}", f"{median:.3f} ({low:.3f} to {high:.3f})", f"{middle['cpu_ms']:.1f}",
                f"{cpu:.3f}", f"{middle['kernel_ms']:.1f}", f"{middle['faults']:,.0f}", f"{middle['peak'] / 2**20:.0f}",
            ])  # fmt: skip
        temporary = by_name[DEFAULT][0]["temporary"] / 2**20
        sections[f"{strategy}, {temporary:.0f} MiB of temporary memory"] = common.table(head, rows)
    sections["Goals"] = common.goals_table(make_goals(measured))
    return sections


def make_goals(measured: dict[str, dict[str, list[dict[str, Any]]]]) -> list[common.Goal]:
    middle = {strategy: statistics.median(ratios(by_name, RECIPE, "cpu_ms")) for strategy, by_name in measured.items()}
    return [
        common.Goal(f"{strategy}: CPU time, {RECIPE} / defaults", ratio, GOAL) for strategy, ratio in middle.items()
    ]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds for which each process trains")
    parser.add_argument("--time", type=int, default=100, help="time steps of a sequence")
    parser.add_argument("--chunk", type=int, default=1, help="steps per dispatch")
    parser.add_argument("--alone", choices=list(STRATEGIES), help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.rounds, options.chunk) < 1 or options.seconds <= 0 or options.time < 21:
        parser.error("--rounds and --chunk must be 1 or more, --seconds positive, and --time 21 or more")
    if options.alone:
        return print(json.dumps(alone(options.alone, options.seconds, options.time, options.chunk, options.keep)))
    measured = measure(options.rounds, options.seconds, options.time, options.chunk)
    sections = make_sections(measured)
    print(f"{common.machine()}; {options.rounds} rounds, {options.seconds} s per process")
    common.show(sections)
    if options.json:
        common.save("allocator", sections, measured, options.json, make_goals(measured))


if __name__ == "__main__":
    main()
