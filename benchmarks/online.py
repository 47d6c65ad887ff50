"""An update at every time step, while states and traces continue: D-RTRL of Fit compared with a hand-written loop.

python benchmarks/online.py
python benchmarks/online.py --only lru --rounds 30

A step processes ten time steps of 16 sequences and makes ten updates of Adam.

* by hand: one jitted call per step, in the style of braintrace's tutorial: its rule mapped over the sequences, with a
  gradient and an update per time step;
* drtrl: the compiled train program of Fit, one dispatch per chunk of steps, metrics are fetched one chunk later;
* trace: the same with engine="trace", which updates a trace at every time step, like braintrace;
* default: drtrl with its default window of one time step.

The first three use the single-step rule and start from the same values on the same batches. Their Adam moments must
agree after two steps.
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


def make_contenders(setting: Any) -> dict[str, Any]:
    """The contenders at a point, by name."""
    from contenders import ByHand, FitSteps

    import jaxtrain as jt

    online: dict[str, Any] = {"update_every": 1, "stateful": True}
    return {
        HAND: ByHand(setting, "online"),
        "drtrl": FitSteps(setting, jt.DRTRL(vjp="single-step", **online)),
        TRACE: FitSteps(setting, jt.DRTRL(vjp="single-step", engine="trace", **online)),
        "default": FitSteps(setting, jt.DRTRL(**online)),
    }


def check_updates(contenders: dict[str, Any]) -> dict[str, float]:
    """Relative distances of Adam moments that must be equal after two steps; raises RuntimeError if they differ."""
    from contenders import distance

    for contender in contenders.values():
        contender(1)
        contender(1)  # the second step shows whether states continue
    moments = {name: contenders[name].first_moment() for name in (HAND, *SAME)}
    distances = {name: distance(moments[name], moments[HAND]) for name in SAME}
    if not max(distances.values()) <= TOLERANCE:
        raise RuntimeError(
            f"the updates differ from those of {HAND!r} (expected a relative distance of at most {TOLERANCE:g}): "
            f"{distances}"
        )
    return distances


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(POINTS), metavar="POINT", help=f"points to measure: {', '.join(POINTS)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--smoke", action="store_true", help="test run with tiny sizes")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")

    from copy_task import Setting

    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    turn = 0.01 if options.smoke else TURN
    print(f"{common.machine()}; {options.rounds} rounds, {turn} s per turn")
    sections, numbers, goals = {}, {}, []
    for point in options.only or POINTS:
        setting = Setting(time=10, scored=10, **{**POINTS[point], **(TINY if options.smoke else {})})
        contenders = make_contenders(setting)
        distances = check_updates(contenders)
        timing = common.by_turns(contenders, options.rounds, turn)
        title = f"{point}: {setting.cell}, hidden {setting.hidden}, 10 time steps and updates, batch {setting.batch}"
        sections[title] = common.timing_table(timing, (HAND, TRACE))
        common.show({title: sections[title]})
        numbers[point] = {"seconds": timing.seconds, "cpu": timing.cpu, "distances": distances}
        for reference, bound in ((HAND, 1.0), (TRACE, 1.05)):
            goals.append(common.Goal(f"{point}: drtrl / {reference}", timing.ratio("drtrl", reference), bound))
    sections["Goals"] = common.goals_table(goals)
    common.show({"Goals": sections["Goals"]})
    if options.json:
        common.save("online", sections, numbers, options.json, goals)


if __name__ == "__main__":
    main()
