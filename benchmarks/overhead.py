"""Overhead of ``Fit`` over a hand-written loop, and the speed of other ways to train the same network.

python benchmarks/overhead.py
python benchmarks/overhead.py --strategies bptt --rounds 30 --json overhead.json
python benchmarks/overhead.py --cases smallest

The copying task at a size with short steps, so that work on the host is visible: GRU of 16 units, 70 time steps, batch
16, Adam, a log entry every 100 steps. "smallest" has one unit, three time steps and one sequence, so that it measures
overhead only; it has no goals. Four ways to take the same steps:

* hand-written: ``jax.lax.scan`` over a chunk of the same steps that ``Fit`` compiles. The state is donated, the next
  batches are stacked while the device computes, and the losses are fetched for every log entry. It does nothing else.
* Fit: run directory, JSONL, TensorBoard, LearningRateMonitor, Throughput, Checkpoint, ProgressBar.
* tutorial: one jitted call per batch that creates learner and states; data is converted to one-hot and transposed; the
  loss is fetched at every step. Its D-RTRL is the default of braintrace, the single-step rule, which does less work per
  step than the default of Fit.
* braintools.trainer: a LightningModule and its Trainer with the CSV logger and no progress bar; it supports only BPTT.

Speed: all run in turns in one process. Every round is compared with the mean of the rounds of the hand-written loop
before and after it, so that a slow machine affects both. When a round of Fit or of the loop starts and ends, no
computation is in flight. A round of Fit includes data preparation, log entries and callbacks. It does not include
checkpoints and validations, which are listed separately. CPU time is that of all threads. Work on the host that
overlaps with the device takes no wall-clock time if a core is free, and its CPU time if none is. Compile seconds (from
an existing model to the first step) and peak memory are measured in a new process for each way. All processes import
the same modules.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
from copy_task import Setting
from trainers import LOG_EVERY, BrainTools, HandWritten, Rounds, Tutorial, run_fit

from jaxtrain.callbacks.throughput import peak_rss_mb

CASES = {"small": Setting(hidden=16, batch=16), "smallest": Setting(hidden=1, time=3, batch=1, scored=1)}
CASE_WITH_GOALS, MOST_OVERHEAD, LEAST_SPEEDUP = "small", 3.0, 10.0
"""Largest overhead over the hand-written loop in per cent, and smallest speed relative to braintools.trainer."""
SPARSE = 3
"""Ways that dispatch every batch are much slower than the loop: they run every third round, a third of its steps."""


def alone(setting: Setting, way: str, strategy: str, root: str) -> dict[str, float]:
    """Compile seconds and peak memory of one way. Run it in a new process."""
    imported, steps, numbers = peak_rss_mb(), 400, {}
    if way == "Fit":
        seconds = run_fit(setting, strategy, steps, Path(root) / "run", every=100).summary["seconds"]
        numbers = {"checkpoint_ms": 1e3 * seconds["checkpoint"] / 4, "validate_ms": 1e3 * seconds["validate"]}
        compiled = seconds["compile"]
    else:
        trainer = make(setting, way, strategy, root)
        trainer.round(steps)
        compiled = trainer.compile_seconds
    return {"compile_s": compiled, "peak_mib": peak_rss_mb(), "imports_mib": imported, **numbers}


def make(setting: Setting, way: str, strategy: str, root: str) -> HandWritten | Tutorial | BrainTools:
    if way == "braintools.trainer":
        return BrainTools(setting, root)
    return {"hand-written": HandWritten, "tutorial": Tutorial}[way](setting, strategy)


def by_turns(setting: Setting, strategy: str, ways: list[str], rounds: int, steps: int,
             root: str) -> dict[str, np.ndarray]:  # fmt: skip
    """Times per step of each way, and of the hand-written loop before and after it, in turns.

    Returns:
        For each way, an array ``(rounds, 2, 2)``: by round, way or loop, and wall-clock or CPU seconds.
    """
    hand = HandWritten(setting, strategy)
    others = {way: make(setting, way, strategy, root) for way in ways if way not in ("hand-written", "Fit")}
    pairs: dict[str, list[Any]] = {way: [] for way in ("Fit", *others)}
    before: list[np.ndarray] = []

    def between() -> None:
        reference = hand.round(steps)
        if before:  # after the warm-up
            pairs["Fit"].append((clock.times[-1], (before[-1] + reference) / 2))
        for way, other in others.items() if len(before) % SPARSE == 1 else ():
            times, earlier, reference = other.round(steps // SPARSE), reference, hand.round(steps)
            pairs[way].append((times, (earlier + reference) / 2))
        before.append(reference)

    clock = Rounds(steps, between)
    run_fit(setting, strategy, (rounds + 1) * steps, Path(root) / "run", every=10**9, extra=clock)
    return {way: np.array(rounds) for way, rounds in pairs.items()}


def make_table(pairs: dict[str, np.ndarray], fresh: dict[str, dict[str, float]]) -> list[str]:
    head = ["", "steps/s, median (quartiles)", "CPU ms per step", "time over hand-written, paired median (quartiles)"]
    head += ["CPU over hand-written", "compile, s", "peak memory, MiB (above imports)"]
    rows = []
    for way, times in {"hand-written": pairs["Fit"][:, [1, 1]], **pairs}.items():
        low, median, high = np.percentile(1 / times[:, 0, 0], [25, 50, 75])
        overhead = 100 * (times[:, 0] / times[:, 1] - 1)
        least, middle, most = np.percentile(overhead[:, 0], [25, 50, 75])
        compared = [f"{middle:+.1f} % ({least:+.1f} to {most:+.1f})", f"{np.median(overhead[:, 1]):+.1f} %"]
        peak, imports = fresh[way]["peak_mib"], fresh[way]["imports_mib"]
        rows.append([
            way, f"{median:.0f} ({low:.0f} to {high:.0f})", f"{1000 * np.median(times[:, 0, 1]):.2f}",
            *(["", ""] if way == "hand-written" else compared), f"{fresh[way]['compile_s']:.1f}",
            f"{peak:.0f} ({peak - imports:+.0f})",
        ])  # fmt: skip
    return common.table(head, rows)


def make_goals(strategy: str, pairs: dict[str, np.ndarray]) -> list[common.Goal]:
    """Goals for times relative to the hand-written loop, which depend less on the load of the machine."""
    over = {way: np.median(times[:, 0, 0] / times[:, 1, 0]) for way, times in pairs.items()}
    goals = [
        common.Goal(f"{strategy}: overhead of Fit over hand-written, per cent", 100 * (over["Fit"] - 1), MOST_OVERHEAD)
    ]
    if "braintools.trainer" in over:
        speedup = float(over["braintools.trainer"] / over["Fit"])
        what = f"{strategy}: steps/s of Fit over braintools.trainer"
        goals.append(common.Goal(what, speedup, LEAST_SPEEDUP, at_least=True))
    return goals


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--strategies", nargs="+", default=["drtrl", "bptt"], choices=["drtrl", "bptt"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=15, help="rounds of Fit; each is between two rounds of the loop")
    parser.add_argument("--steps", type=int, default=500, help=f"steps per round, a multiple of {LOG_EVERY}")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or options.steps < 1 or options.steps % LOG_EVERY:
        parser.error(f"--rounds must be 1 or more and --steps a multiple of {LOG_EVERY}")
    jax.config.update("jax_enable_compilation_cache", False)
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    if options.alone:
        case, way, strategy = options.alone
        with tempfile.TemporaryDirectory() as root:
            return print(json.dumps(alone(CASES[case], way, strategy, root)))

    print(f"a log entry every {LOG_EVERY} steps; {options.rounds} rounds of {options.steps} steps; {common.machine()}")
    ways = {name: ["hand-written", "Fit", "tutorial"] for name in options.strategies}
    ways |= {"bptt": [*ways["bptt"], "braintools.trainer"]} if "bptt" in ways else {}
    sections: dict[str, list[str]] = {}
    numbers: dict[str, Any] = {}
    goals: list[common.Goal] = []
    # Child processes start before this process grows: on Linux the peak of a child includes the size of its parent.
    fresh = {
        (case, name): {way: common.fresh("overhead.py", "--alone", case, way, name) for way in ways[name]}
        for case in options.cases
        for name in ways
    }
    for case, name in fresh:
        setting, processes = CASES[case], fresh[case, name]
        with tempfile.TemporaryDirectory() as root:
            pairs = by_turns(setting, name, ways[name], options.rounds, options.steps, root)
        fit = processes["Fit"]
        title = f"{case}, {name}: hidden {setting.hidden}, {setting.time} time steps, batch {setting.batch}"
        checkpoint = f"Not included: a checkpoint stops the loop for {fit['checkpoint_ms']:.0f} ms"
        validation = f"a validation of 8 batches takes {fit['validate_ms']:.0f} ms."
        sections[title] = [*make_table(pairs, processes), "", f"{checkpoint}; {validation}"]
        common.show({title: sections[title]})
        numbers[f"{case}, {name}"] = {"pairs": {way: pairs[way].tolist() for way in pairs}, "alone": processes}
        goals += make_goals(name, pairs) if case == CASE_WITH_GOALS else []
    sections["Goals"] = common.goals_table(goals)
    common.show({"Goals": sections["Goals"]})
    if options.json:
        common.save("overhead", sections, numbers, options.json, goals)


if __name__ == "__main__":
    main()
