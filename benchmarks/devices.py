"""Several devices: what a train step takes where the cores of a CPU, or several GPUs, share its batch.

python benchmarks/devices.py
python benchmarks/devices.py --devices 4 --rounds 10 --json devices.json

GRU of 128 units, 70 time steps of which the last 10 are scored, batch 64, Adam. The loops of braintrace's tutorial,
which run on one device, and what Fit runs on one and on several take turns in one process (see common.py); after their
first step those that should have made the same gradient must have.
"""

from __future__ import annotations

import logging
from typing import Any

import common

ROUNDS, TURN = 15, 0.3
HAND, BPTT_HAND = "tutorial D-RTRL", "tutorial BPTT"
TOLERANCE = 1e-3


def contenders(setting: Any, devices: int) -> dict[str, Any]:
    from contenders import ByHand, FitSteps, distance

    import jaxtrain as jt

    made: dict[str, Any] = {HAND: ByHand(setting, "drtrl"), BPTT_HAND: ByHand(setting, "bptt")}
    for name, strategy in (("drtrl", jt.DRTRL(window=min(10, setting.scored))), ("bptt", jt.BPTT())):
        for count in (1, devices):
            made[f"{name}, {count} devices"] = FitSteps(setting, strategy, devices=count)
    for one in made.values():
        one(1)
    moments = {name: one.first_moment() for name, one in made.items()}
    for name in ("drtrl", "bptt"):
        far = distance(moments[f"{name}, {devices} devices"], moments[f"{name}, 1 devices"])
        if not far <= TOLERANCE:
            raise RuntimeError(f"{name}: not the gradient of one device, relative distance {far:.2g}")
    return made


def goals(timing: common.Timing, devices: int) -> list[common.Goal]:
    if devices != 2:
        return []
    bounds = (("drtrl", HAND, 0.26), ("drtrl", BPTT_HAND, 0.47), ("bptt", BPTT_HAND, 0.72))
    ratio = lambda name, reference: timing.ratio(f"{name}, 2 devices", reference)  # noqa: E731
    return [
        common.Goal(f"{name}, 2 devices / {reference}", ratio(name, reference), bound)
        for name, reference, bound in bounds
    ]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--turn", type=float, default=TURN, help="seconds a contender runs in a round")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs: not a result")
    options = parser.parse_args()
    if options.devices < 2 or options.rounds < 1 or options.turn <= 0:
        parser.error("--devices must be 2 or more, --rounds 1 or more, and --turn positive")

    from jaxtrain.engine.sharding import as_devices

    as_devices(options.devices)  # on CPU they are made now, before JAX starts
    from contenders import Setting

    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    setting = Setting(hidden=8, time=30, batch=options.devices) if options.smoke else Setting()
    print(f"{common.machine()}; {options.rounds} rounds, {options.turn} s a turn")
    timing = common.by_turns(contenders(setting, options.devices), options.rounds, options.turn)
    rows = []
    for name in timing.seconds:
        low, middle, high = (1e3 * value for value in timing.quartiles(name))
        against = [f"{timing.ratio(name, reference):.3f}" for reference in (HAND, BPTT_HAND)]
        cpu = f"{1e3 * timing.cpu_middle(name):.1f}"
        rows.append([name, f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{1e3 * timing.least(name):.2f}", cpu, *against])
    head = ["", "ms a step, median (quartiles)", "least", "CPU ms", f"/ {HAND}", f"/ {BPTT_HAND}"]
    judged = goals(timing, options.devices)
    told = {f"{options.devices} devices": common.table(head, rows)}
    if judged:
        told["Judged"] = common.goals_table(judged)
    common.tell(told)
    if options.json:
        common.keep("devices", told, {"seconds": timing.seconds, "cpu": timing.cpu}, options.json, judged)


if __name__ == "__main__":
    main()
