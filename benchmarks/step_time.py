"""How long a train step takes: D-RTRL made in reverse against loops written by hand, braintrace's best, and BPTT.

python benchmarks/step_time.py                      # the point that most goals are about
python benchmarks/step_time.py --full --budget 1800
python benchmarks/step_time.py --only lstm lru --rounds 5

The copying task, one factor at a time around a GRU of 128 units, 70 time steps of which the last 10 are scored, batch
64, Adam. The contenders take turns in one process (see common.py), start from the same values on the same batches, and
after their first step those that should have made the same gradient must have. Ratios are of the clock's time, medians
over rounds; "CPU ms" is the time of all threads:

* tutorial D-RTRL, tutorial BPTT: the loops of braintrace's tutorial, one jitted call a batch;
* braintrace's best: batched, windows of ten time steps, the warm-up in long windows;
* drtrl, pp_prop, bptt: what Fit runs, its compiled train program, dispatched chunk by chunk with the metrics fetched a
  chunk late; data is there, for Fit as for the loops (overhead.py measures the rest of Fit);
* trace: the same with engine="trace", which carries a trace as braintrace does.

"drtrl" is engine="auto"; where that chose a trace it is said, and the pair is one program. "forced" is
engine="reverse", which is timed where auto chose otherwise though the model could be reversed.
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
"""Sizes of ``--smoke``, as far as a point does not set them itself; time steps are cut to 40."""
SAME = {
    HAND: ["drtrl single-step", "trace single-step"],
    BEST: ["drtrl window 10", "trace window 10"],
    BPTT_HAND: ["bptt"],
    "trace window 1": ["drtrl window 1"],
}
"""Who makes the same gradient as whom; where the last window is the whole learning phase, as at most points, windows
of 10 have no other boundary."""
TOLERANCE = 1e-3
AGAINST = {HAND: (0.33, 0.35), BPTT_HAND: (0.60, 0.70), BEST: (0.70, 0.80)}
"""By reference, at most this much of its time with a window of 10, and with a window of 1 or the single-step rule."""
OF_TUTORIAL = {"lstm": 0.03, "lru": 0.12, "lif": 0.30}
CELLS = ("gru", "lstm", "minigru", "lru", "lif")


def strategies() -> dict[str, Any]:
    import jaxtrain as jt

    fields: dict[str, dict[str, Any]] = {
        "window 10": {"window": 10}, "window 1": {}, "single-step": {"vjp": "single-step"}
    }  # fmt: skip
    return {
        **{f"drtrl {variant}": jt.DRTRL(**given) for variant, given in fields.items()},
        **{f"trace {variant}": jt.DRTRL(engine="trace", **given) for variant, given in fields.items()},
        "pp_prop": jt.strategies.PPProp(),
        "bptt": jt.BPTT(),
    }


def contenders(setting: Any) -> dict[str, Any]:
    """Everybody who is timed at a point, compiled, by name."""
    from contenders import ByHand, FitSteps

    made: dict[str, Any] = {HAND: ByHand(setting, "drtrl"), BPTT_HAND: ByHand(setting, "bptt")}
    made[BEST] = ByHand(setting, "best")
    for name, strategy in strategies().items():
        made[name] = FitSteps(setting, strategy)
        if name in DRTRL and made[name].engine != "reverse":
            try:
                made[name.replace("drtrl", "forced")] = FitSteps(setting, replace(strategy, engine="reverse"))
            except ValueError:
                pass  # it cannot be reversed
    return made


def same_work(made: dict[str, Any]) -> dict[str, float]:
    """How far apart the gradients of the first step are that should be equal; raises where they are not."""
    from contenders import distance

    for one in made.values():
        one(1)
    moments = {name: one.first_moment() for name, one in made.items()}
    apart = {
        f"{name} / {reference}": distance(moments[name], moments[reference])
        for reference, names in SAME.items()
        for name in names
    }
    if wrong := {pair: far for pair, far in apart.items() if not far <= TOLERANCE}:
        raise RuntimeError(f"not the same gradient, relative distance: {wrong}")
    return apart


def measure(setting: Any, rounds: int, turn: float) -> dict[str, Any]:
    """Timings of one point, and what else is said of it."""
    started = time.perf_counter()
    made = contenders(setting)
    apart = same_work(made)
    compiled = time.perf_counter() - started
    timing = common.by_turns(made, rounds, turn)
    engines = {name: one.engine for name, one in made.items() if name in DRTRL}
    return {
        "seconds": timing.seconds,
        "cpu": timing.cpu,
        "apart": apart,
        "engines": engines,
        "compile_seconds": compiled,
    }


def goals(points: dict[str, common.Timing]) -> list[common.Goal]:
    """Everything that is judged at the points that were measured."""
    found: list[common.Goal] = []
    judge = lambda point, name, reference, bound: found.append(  # noqa: E731
        common.Goal(f"{point}: {name} / {reference}", points[point].ratio(name, reference), bound)
    )
    if "gru" in points:
        for reference, bounds in AGAINST.items():
            for name, bound in zip(DRTRL, (bounds[0], bounds[1], bounds[1]), strict=True):
                judge("gru", name, reference, bound)
        judge("gru", "bptt", BPTT_HAND, 0.95)
    for cell in CELLS:
        if cell in points:
            for name in DRTRL:
                if cell in OF_TUTORIAL:
                    judge(cell, name, HAND, OF_TUTORIAL[cell])
                if cell != "gru":
                    judge(cell, name, BPTT_HAND, 1.10)
    for point in points:
        for name, trace in zip(DRTRL, TRACE, strict=True):
            judge(point, name, trace, 1.05)
    return found


def sections(settings: dict[str, Any], measured: dict[str, Any], skipped: list[str]) -> dict[str, list[str]]:
    points = {point: common.Timing(found["seconds"], found["cpu"]) for point, found in measured.items()}
    told: dict[str, list[str]] = {}
    for point, timing in points.items():
        setting = settings[point]
        traces = [name for name, engine in measured[point]["engines"].items() if engine != "reverse"]
        title = (
            f"{point}: {setting.cell}, hidden {setting.hidden}, {setting.warm} + {setting.scored} time steps, "
            f"batch {setting.batch}"
        )
        told[title] = common.timing_table(timing, (HAND, BPTT_HAND, BEST))
        if traces:
            told[title] += ["", f'engine="auto" chose a trace for {", ".join(traces)}.']
    told["Judged"] = common.goals_table(goals(points))
    if skipped:
        told["Judged"] += ["", f"Skipped, since the budget was spent: {', '.join(skipped)}."]
    return told


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="all points, as far as the budget goes")
    parser.add_argument("--budget", type=float, default=1800, help="seconds after which no further point is begun")
    parser.add_argument("--only", nargs="+", choices=list(POINTS), metavar="POINT", help=f"of {', '.join(POINTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--turn", type=float, default=TURN, help="seconds a contender runs in a round")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs: not a result")
    options = parser.parse_args()
    if options.rounds < 1 or options.turn <= 0 or (options.full and options.only):
        parser.error("--rounds must be 1 or more, --turn positive, and --full and --only exclude each other")

    from contenders import Setting

    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    chosen = options.only or (list(POINTS) if options.full else ["gru"])
    settings = {point: Setting(**POINTS[point]) for point in chosen}
    if options.smoke:
        settings = {point: Setting(**_tiny(POINTS[point])) for point in chosen}
    print(f"{common.machine()}; {options.rounds} rounds, {options.turn} s a turn")
    started, measured, skipped = time.perf_counter(), {}, []
    for point, setting in settings.items():
        if time.perf_counter() - started > options.budget:
            skipped.append(point)
            continue
        measured[point] = measure(setting, options.rounds, options.turn)
        told = sections({point: setting}, {point: measured[point]}, [])
        common.tell({title: lines for title, lines in told.items() if title != "Judged"})
        print(f"\n({time.perf_counter() - started:.0f} s so far, load {os.getloadavg()[0]:.1f})", flush=True)
        _forget()
    told = sections(settings, measured, skipped)
    common.tell({"Judged": told["Judged"]})
    if options.json:
        points = {point: common.Timing(found["seconds"], found["cpu"]) for point, found in measured.items()}
        common.keep("step_time", told, measured, options.json, goals(points))


def _tiny(given: dict[str, Any]) -> dict[str, Any]:
    caps = {"hidden": 12, "time": 40, "batch": 3, "scored": 30}
    cut = {key: min(value, caps[key]) if key in caps else value for key, value in given.items()}
    return {**TINY, **cut}


def _forget() -> None:
    import gc

    import jax

    gc.collect()
    jax.clear_caches()


if __name__ == "__main__":
    main()
