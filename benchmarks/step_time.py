"""Time of a train step: D-RTRL in reverse compared with hand-written loops, braintrace's fastest D-RTRL, and BPTT.

python benchmarks/step_time.py                      # the point of most goals
python benchmarks/step_time.py --full --budget 1800
python benchmarks/step_time.py --only lstm lru --rounds 5

The copying task, one factor at a time around a GRU of 128 units, 70 time steps of which the last 10 are scored, batch
64, Adam. The contenders take turns in one process (see common.py) and start from the same values on the same batches.
After the first step, gradients that must be equal are compared. Ratios are medians over rounds of wall-clock time; "CPU
ms" is the time of all threads:

* tutorial D-RTRL, tutorial BPTT: the loops of braintrace's tutorial, one jitted call per batch;
* braintrace's best: batched, windows of ten time steps, the warm-up in long windows;
* drtrl, pp_prop, bptt: the compiled train program of Fit, one dispatch per chunk of steps, metrics are fetched one
  chunk later. Data is prepared before, for Fit as for the loops (overhead.py measures the rest of Fit);
* trace: the same with engine="trace", which updates a trace at every time step, like braintrace.

"drtrl" is engine="auto". If it chose a trace, drtrl and trace are the same program; a line below
the table states it.
"forced" is engine="reverse"; it is timed if auto chose a trace although the model has a reverse form.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from typing import Any

import common

ROUNDS, TURN = 25, 0.1
HAND, BPTT_HAND, BEST = "tutorial D-RTRL", "tutorial BPTT", "braintrace's best"
VARIANTS = ("window 10", "window 1", "single-step")
DRTRL = [f"drtrl {variant}" for variant in VARIANTS]
TRACE = [f"trace {variant}" for variant in VARIANTS]
POINTS: dict[str, dict[str, Any]] = {
    "gru": {},
    "lstm": {"cell": "lstm"},
    "minigru": {"cell": "minigru"},
    "lru": {"cell": "lru"},
    "lif": {"cell": "lif"},
    "hidden-64": {"hidden": 64},
    "hidden-256": {"hidden": 256},
    "time-220": {"time": 220},
    "time-1020": {"time": 1020},
    "batch-16": {"batch": 16},
    "all-scored": {"scored": 70},
}
TINY = {"hidden": 8, "time": 30, "batch": 4}
"""Sizes of ``--smoke``, unless a point sets its own."""
SAME = {
    HAND: ["drtrl single-step", "trace single-step"],
    BEST: ["drtrl window 10", "trace window 10"],
    BPTT_HAND: ["bptt"],
    "trace window 1": ["drtrl window 1"],
}
"""Contenders that must have the gradient of a reference. At most points a window of 10 is the whole learning phase,
so that there is no other window boundary on which implementations could differ."""
TOLERANCE = 1e-3
AGAINST = {HAND: (0.33, 0.35), BPTT_HAND: (0.60, 0.70), BEST: (0.70, 0.80)}
"""Largest ratio to the time of a reference: with a window of 10, and with a window of 1 or the single-step rule."""
OF_TUTORIAL = {"lstm": 0.03, "lru": 0.12, "lif": 0.30}
"""Largest ratio to the time of the tutorial's D-RTRL, for other cells."""
CELLS = ("gru", "lstm", "minigru", "lru", "lif")


def strategies() -> dict[str, Any]:
    import jaxtrain as jt

    variants: dict[str, dict[str, Any]] = {
        "window 10": {"window": 10}, "window 1": {}, "single-step": {"vjp": "single-step"}
    }  # fmt: skip
    return {
        **{f"drtrl {variant}": jt.DRTRL(**fields) for variant, fields in variants.items()},
        **{f"trace {variant}": jt.DRTRL(engine="trace", **fields) for variant, fields in variants.items()},
        "pp_prop": jt.strategies.PPProp(),
        "bptt": jt.BPTT(),
    }


def make_contenders(setting: Any) -> dict[str, Any]:
    """The contenders at a point, by name."""
    from contenders import ByHand, FitSteps

    rules = {HAND: "drtrl", BPTT_HAND: "bptt", BEST: "best"}
    contenders: dict[str, Any] = {name: ByHand(setting, rule) for name, rule in rules.items()}
    for name, strategy in strategies().items():
        contenders[name] = FitSteps(setting, strategy)
        if name in DRTRL and contenders[name].engine != "reverse":
            try:
                contenders[name.replace("drtrl", "forced")] = FitSteps(setting, replace(strategy, engine="reverse"))
            except ValueError:
                pass  # the model has no reverse form
    return contenders


def check_gradients(contenders: dict[str, Any]) -> dict[str, float]:
    """Relative distances of first gradients that must be equal; raises RuntimeError if they differ."""
    from contenders import distance

    for contender in contenders.values():
        contender(1)
    moments = {name: contender.first_moment() for name, contender in contenders.items()}
    distances = {
        f"{name} / {reference}": distance(moments[name], moments[reference])
        for reference, names in SAME.items()
        for name in names
    }
    if wrong := {pair: far for pair, far in distances.items() if not far <= TOLERANCE}:
        raise RuntimeError(f"gradients differ (expected a relative distance of at most {TOLERANCE:g}): {wrong}")
    return distances


def measure(setting: Any, rounds: int, turn: float) -> dict[str, Any]:
    """Timings of one point, distances of gradients, engines, and seconds to compile."""
    started = time.perf_counter()
    contenders = make_contenders(setting)
    distances = check_gradients(contenders)
    compiled = time.perf_counter() - started
    timing = common.by_turns(contenders, rounds, turn)
    return {
        "seconds": timing.seconds,
        "cpu": timing.cpu,
        "distances": distances,
        "engines": {name: contenders[name].engine for name in DRTRL},
        "compile_seconds": compiled,
    }


def make_goals(points: dict[str, common.Timing]) -> list[common.Goal]:
    """The goals of the measured points."""
    goals: list[common.Goal] = []

    def add(point: str, name: str, reference: str, bound: float) -> None:
        ratio = points[point].ratio(name, reference)
        goals.append(common.Goal(f"{point}: {name} / {reference}", ratio, bound))

    if "gru" in points:
        for reference, bounds in AGAINST.items():
            for name, bound in zip(DRTRL, (bounds[0], bounds[1], bounds[1]), strict=True):
                add("gru", name, reference, bound)
        add("gru", "bptt", BPTT_HAND, 0.95)
    for cell in CELLS:
        if cell in points:
            for name in DRTRL:
                if cell in OF_TUTORIAL:
                    add(cell, name, HAND, OF_TUTORIAL[cell])
                if cell != "gru":
                    add(cell, name, BPTT_HAND, 1.10)
    for point in points:
        for name, trace in zip(DRTRL, TRACE, strict=True):
            add(point, name, trace, 1.05)
    return goals


def timings(measured: dict[str, Any]) -> dict[str, common.Timing]:
    return {point: common.Timing(numbers["seconds"], numbers["cpu"]) for point, numbers in measured.items()}


def make_sections(settings: dict[str, Any], measured: dict[str, Any], skipped: list[str]) -> dict[str, list[str]]:
    """A table for each point, and the goals."""
    points = timings(measured)
    sections: dict[str, list[str]] = {}
    for point, timing in points.items():
        setting = settings[point]
        traces = [name for name, engine in measured[point]["engines"].items() if engine != "reverse"]
        title = (
            f"{point}: {setting.cell}, hidden {setting.hidden}, {setting.warm} + {setting.scored} time steps, "
            f"batch {setting.batch}"
        )
        sections[title] = common.timing_table(timing, (HAND, BPTT_HAND, BEST))
        if traces:
            sections[title] += ["", f'engine="auto" chose a trace for {", ".join(traces)}.']
    sections["Goals"] = common.goals_table(make_goals(points))
    if skipped:
        sections["Goals"] += ["", f"Skipped because the time budget was used up: {', '.join(skipped)}."]
    return sections


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="all points within the budget")
    parser.add_argument("--budget", type=float, default=1800, help="seconds after which no further point is started")
    parser.add_argument(
        "--only", nargs="+", choices=list(POINTS), metavar="POINT", help=f"points to measure: {', '.join(POINTS)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--turn", type=float, default=TURN, help="seconds for which a contender runs in a round")
    parser.add_argument("--smoke", action="store_true", help="test run with tiny sizes")
    options = parser.parse_args()
    if options.rounds < 1 or options.turn <= 0 or (options.full and options.only):
        parser.error("--rounds must be 1 or more, --turn positive, and --full and --only exclude each other")

    from copy_task import Setting

    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    chosen = options.only or (list(POINTS) if options.full else ["gru"])
    settings = {point: Setting(**POINTS[point]) for point in chosen}
    if options.smoke:
        settings = {point: Setting(**_tiny(POINTS[point])) for point in chosen}
    print(f"{common.machine()}; {options.rounds} rounds, {options.turn} s per turn")
    started, measured, skipped = time.perf_counter(), {}, []
    for point, setting in settings.items():
        if time.perf_counter() - started > options.budget:
            skipped.append(point)
            continue
        measured[point] = measure(setting, options.rounds, options.turn)
        sections = make_sections({point: setting}, {point: measured[point]}, [])
        common.show({title: lines for title, lines in sections.items() if title != "Goals"})
        print(f"\n({time.perf_counter() - started:.0f} s so far, load {os.getloadavg()[0]:.1f})", flush=True)
        _clear_caches()
    sections = make_sections(settings, measured, skipped)
    common.show({"Goals": sections["Goals"]})
    if options.json:
        common.save("step_time", sections, measured, options.json, make_goals(timings(measured)))


def _tiny(point: dict[str, Any]) -> dict[str, Any]:
    most = {"hidden": 12, "time": 40, "batch": 3, "scored": 30}
    return {**TINY, **{key: min(value, most[key]) if key in most else value for key, value in point.items()}}


def _clear_caches() -> None:
    import gc

    import jax

    gc.collect()
    jax.clear_caches()


if __name__ == "__main__":
    main()
