"""Time of a train step whose batch is split over several devices: cores of a CPU, or GPUs.

python benchmarks/devices.py
python benchmarks/devices.py --devices 4 --rounds 10 --json devices.json
python benchmarks/devices.py --hidden 64 --batch 32

GRU of 128 units (by default), 70 time steps of which the last 10 are scored, batch 64, Adam. `--devices auto` of a
recipe requires LEAST_WORK multiply-adds per time step and device (jaxtrain/engine/auto_devices.py); the line above the
table gives this number for the chosen size. Contenders are the loops of
braintrace's tutorial, which run on one device, and the train programs of Fit on one and on several devices. They take
turns in one process (see common.py). The gradients of Fit on one and on several devices are compared first.
"""

from __future__ import annotations

import logging
from typing import Any

import common

ROUNDS, TURN = 15, 0.3
HAND, BPTT_HAND = "tutorial D-RTRL", "tutorial BPTT"
TOLERANCE = 1e-3


def make_contenders(setting: Any, devices: int) -> dict[str, Any]:
    from contenders import ByHand, FitSteps, distance

    import jaxtrain as jt

    contenders: dict[str, Any] = {HAND: ByHand(setting, "drtrl"), BPTT_HAND: ByHand(setting, "bptt")}
    for name, strategy in (("drtrl", jt.DRTRL(window=min(10, setting.scored))), ("bptt", jt.BPTT())):
        for count in (1, devices):
            contenders[f"{name}, {count} devices"] = FitSteps(setting, strategy, devices=count)
    for contender in contenders.values():
        contender(1)
    moments = {name: contender.first_moment() for name, contender in contenders.items()}
    for name in ("drtrl", "bptt"):
        far = distance(moments[f"{name}, {devices} devices"], moments[f"{name}, 1 devices"])
        if not far <= TOLERANCE:
            raise RuntimeError(
                f"{name}: the gradient on {devices} devices differs from that on one (relative distance {far:.2g}, "
                f"expected at most {TOLERANCE:g})"
            )
    return contenders


def make_goals(timing: common.Timing, devices: int) -> list[common.Goal]:
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
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--turn", type=float, default=TURN, help="seconds for which a contender runs in a round")
    parser.add_argument("--smoke", action="store_true", help="test run with tiny sizes")
    options = parser.parse_args()
    if options.devices < 2 or options.rounds < 1 or options.turn <= 0:
        parser.error("--devices must be 2 or more, --rounds 1 or more, and --turn positive")
    if options.hidden < 1 or options.batch < 1 or options.batch % options.devices:
        parser.error(f"--hidden must be 1 or more, and --batch a multiple of --devices {options.devices}")

    from jaxtrain.engine.sharding import as_devices

    as_devices(options.devices)  # creates devices on CPU, before JAX starts
    from copy_task import Setting

    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    setting = (
        Setting(hidden=8, time=30, batch=options.devices)
        if options.smoke
        else Setting(hidden=options.hidden, batch=options.batch)
    )
    print(f"{common.machine()}; {options.rounds} rounds, {options.turn} s per turn")
    contenders = make_contenders(setting, options.devices)
    print(f"{contenders[f'bptt, {options.devices} devices'].work:,.0f} multiply-adds per time step and device")
    timing = common.by_turns(contenders, options.rounds, options.turn)
    goals = make_goals(timing, options.devices) if setting == Setting() or options.smoke else []
    sections = {f"{options.devices} devices": common.timing_table(timing, (HAND, BPTT_HAND))}
    if goals:
        sections["Goals"] = common.goals_table(goals)
    common.show(sections)
    if options.json:
        common.save("devices", sections, {"seconds": timing.seconds, "cpu": timing.cpu}, options.json, goals)


if __name__ == "__main__":
    main()
