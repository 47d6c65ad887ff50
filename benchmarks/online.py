"""An update at every time step, states and traces carried on: Fit's D-RTRL against a loop written by hand.

python benchmarks/online.py
python benchmarks/online.py --only lru --rounds 30

A step is a piece of ten time steps and as many updates of Adam, 16 lanes. "by hand" is one jitted call a piece: D-RTRL
of braintrace mapped over lanes as in its tutorial, a gradient and an update a time step; its states go on. "drtrl" is
what Fit runs; "trace" the same with engine="trace", which carries a trace as braintrace does. All of them keep the
single-step rule, and after the first step their moments of Adam must agree. "default" is Fit with the window of one
time step that D-RTRL has by itself.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import common

ROUNDS, TURN = 20, 0.2
POINTS: dict[str, dict[str, Any]] = {"lru": {"cell": "lru", "hidden": 64}, "gru": {"cell": "gru", "hidden": 128}}
HAND, TRACE = "by hand", "trace"
TOLERANCE = 1e-3


def contenders(setting: Any) -> dict[str, Any]:
    """Everybody who is timed at a point, by name; raises where those that should have done the same have not."""
    import brainstate
    import braintrace
    import jax
    from contenders import ByHand, FitSteps, cross_entropy, distance

    import jaxtrain as jt

    class Online(ByHand):
        """The rule's states are made once, and go on from call to call."""

        def __init__(self, setting: Any):
            super().__init__(setting, "drtrl")
            rule = braintrace.D_RTRL(self.model)

            @brainstate.transform.vmap_new_states(state_tag="new", axis_size=setting.batch)
            def init():
                brainstate.nn.init_all_states(self.model)
                rule.compile_graph(self.batches[0][0][0, 0])

            with setting.context(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # braintrace says what gets no trace
                init()
            self.learner = brainstate.nn.Vmap(rule, vmap_states="new")
            self.step = brainstate.transform.jit(self._online)
            self.factor = 1.0

        def _online(self, inputs: Any, targets: Any) -> jax.Array:
            def loss(x, y):
                return cross_entropy(self.learner(x), y).mean()

            gradient: Any = brainstate.transform.grad(loss, self.weights, return_value=True)

            def step(x, y):
                grads, value = gradient(x, y)
                self.optimizer.update(grads)
                return value

            return brainstate.transform.for_loop(step, inputs, targets).mean()

    cadence: dict[str, Any] = {"update_every": 1, "carry": "carry"}
    made: dict[str, Any] = {
        HAND: Online(setting),
        "drtrl": FitSteps(setting, jt.DRTRL(vjp="single-step", **cadence)),
        TRACE: FitSteps(setting, jt.DRTRL(vjp="single-step", engine="trace", **cadence)),
        "default": FitSteps(setting, jt.DRTRL(**cadence)),
    }
    for one in made.values():
        one(1)
    moments = {name: one.first_moment() for name, one in made.items()}
    apart = {name: distance(moments[name], moments[HAND]) for name in ("drtrl", TRACE)}
    if not max(apart.values()) <= TOLERANCE:
        raise RuntimeError(f"not the same updates as by hand, relative distance of Adam's moments: {apart}")
    return made


def rows(timing: common.Timing) -> list[list[str]]:
    """A row a contender: milliseconds of a piece, and what it takes of the references'."""
    found = []
    for name in timing.seconds:
        low, middle, high = (1e3 * value for value in timing.quartiles(name))
        against = [f"{timing.ratio(name, reference):.3f}" for reference in (HAND, TRACE)]
        least, cpu = f"{1e3 * timing.least(name):.2f}", f"{1e3 * timing.cpu_middle(name):.1f}"
        found.append([name, f"{middle:.2f} ({low:.2f} to {high:.2f})", least, cpu, *against])
    return found


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
    print(f"{common.machine()}; {options.rounds} rounds, {TURN} s a turn")
    told, numbers, goals = {}, {}, []
    for point in options.only or POINTS:
        given = {**POINTS[point], **({"hidden": 6, "batch": 2} if options.smoke else {"batch": 16})}
        setting = Setting(time=10, scored=10, **given)
        timing = common.by_turns(contenders(setting), options.rounds, 0.01 if options.smoke else TURN)
        head = ["", "ms a piece, median (quartiles)", "least", "CPU ms", f"/ {HAND}", f"/ {TRACE}"]
        title = f"{point}: {setting.cell}, hidden {setting.hidden}, 10 updates, batch {setting.batch}"
        told[title] = common.table(head, rows(timing))
        common.tell({title: told[title]})
        numbers[point] = {"seconds": timing.seconds, "cpu": timing.cpu}
        goals.append(common.Goal(f"{point}: drtrl / {HAND}", timing.ratio("drtrl", HAND), 1.0))
    told["Judged"] = common.goals_table(goals)
    common.tell({"Judged": told["Judged"]})
    if options.json:
        common.keep("online", told, numbers, options.json, goals)


if __name__ == "__main__":
    main()
