"""An update at every time step, states and traces carried on: Fit's D-RTRL against a loop written by hand.

python benchmarks/online.py
python benchmarks/online.py --only lru --rounds 30

A step is ten time steps of 16 lanes, and ten updates of Adam.

* by hand: one jitted call a step, in the manner of braintrace's tutorial: its rule mapped over lanes, a gradient and an
  update a time step;
* drtrl: what Fit runs, its compiled train program, dispatched chunk by chunk with the metrics fetched a chunk late;
* trace: the same with engine="trace", which carries a trace as braintrace does;
* default: drtrl with the window of one time step that it has by itself.

The first three keep the single-step rule, start from the same values on the same batches, and after two steps their
moments of Adam must agree.
"""

from __future__ import annotations

import logging
from typing import Any

import common

ROUNDS, TURN = 20, 0.2
POINTS: dict[str, dict[str, Any]] = {
    "lru": {"cell": "lru", "hidden": 64, "batch": 16},
    "gru": {"cell": "gru", "hidden": 128, "batch": 16},
}
TINY = {"hidden": 6, "batch": 2}
HAND, TRACE = "by hand", "trace"
SAME = ("drtrl", TRACE)
TOLERANCE = 1e-3


def contenders(setting: Any) -> dict[str, Any]:
    """Everybody who is timed at a point, compiled, by name."""
    from contenders import ByHand, FitSteps

    import jaxtrain as jt

    online: dict[str, Any] = {"update_every": 1, "stateful": True}
    return {
        HAND: ByHand(setting, "online"),
        "drtrl": FitSteps(setting, jt.DRTRL(vjp="single-step", **online)),
        TRACE: FitSteps(setting, jt.DRTRL(vjp="single-step", engine="trace", **online)),
        "default": FitSteps(setting, jt.DRTRL(**online)),
    }


def same_work(made: dict[str, Any]) -> dict[str, float]:
    """How far apart Adam's moments are after two steps that should be equal; raises where they are not."""
    from contenders import distance

    for one in made.values():
        one(1)
        one(1)  # whether states go on shows in the second
    moments = {name: made[name].first_moment() for name in (HAND, *SAME)}
    apart = {name: distance(moments[name], moments[HAND]) for name in SAME}
    if not max(apart.values()) <= TOLERANCE:
        raise RuntimeError(f"not the same updates as by hand, relative distance: {apart}")
    return apart


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(POINTS), metavar="POINT", help=f"of {', '.join(POINTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs: not a result")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")

    from contenders import Setting

    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    turn = 0.01 if options.smoke else TURN
    print(f"{common.machine()}; {options.rounds} rounds, {turn} s a turn")
    told, numbers, goals = {}, {}, []
    for point in options.only or POINTS:
        setting = Setting(time=10, scored=10, **{**POINTS[point], **(TINY if options.smoke else {})})
        made = contenders(setting)
        apart = same_work(made)
        timing = common.by_turns(made, options.rounds, turn)
        title = f"{point}: {setting.cell}, hidden {setting.hidden}, 10 time steps and updates, batch {setting.batch}"
        told[title] = common.timing_table(timing, (HAND, TRACE))
        common.tell({title: told[title]})
        numbers[point] = {"seconds": timing.seconds, "cpu": timing.cpu, "apart": apart}
        for reference, bound in ((HAND, 1.0), (TRACE, 1.05)):
            goals.append(common.Goal(f"{point}: drtrl / {reference}", timing.ratio("drtrl", reference), bound))
    told["Judged"] = common.goals_table(goals)
    common.tell({"Judged": told["Judged"]})
    if options.json:
        common.keep("online", told, numbers, options.json, goals)


if __name__ == "__main__":
    main()
