"""What the report says of parameters without a whole trace, checked against the gradient itself."""

from dataclasses import dataclass, replace

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.core.objective import Objective, check_phases
from jaxtrain.core.state import parameters
from jaxtrain.strategies import (
    DNI,
    UORO,
    EProp,
    ETrace,
    OnlineRule,
    OSTLFeedforward,
    OSTLRecurrent,
    PPProp,
    SnAp,
    ThreeFactor,
)
from tests.kit.tiers import longer

pytestmark = pytest.mark.full

UNITS, TIME = 4, 6
CHAINED = "reaches the hidden state only through another weight, so no trace of it is kept: "
PARTLY = "one of its paths into the hidden state passes through another weight, and only the direct one is traced: "
ELSEWHERE = "For more use drtrl with a window, or tbptt"


class Ways(brainstate.nn.Module):
    """``e`` reaches the hidden state through other weights alone, ``v`` both directly and through ``u``."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.e, self.v = braintrace.nn.Linear(n_in, UNITS), braintrace.nn.Linear(UNITS, UNITS)
        self.u, self.out = braintrace.nn.Linear(UNITS, UNITS), braintrace.nn.Linear(UNITS, n_out)

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((UNITS,) if batch_size is None else (batch_size, UNITS)))

    def update(self, x):
        a = self.v(jnp.tanh(self.e(x)))
        self.h.value = 0.9 * self.h.value + a + self.u(jnp.tanh(a))
        return self.out(jnp.tanh(self.h.value))


def task(lab):
    with brainstate.random.seed_context(0):
        return lab.Task(Ways(lab.N_IN, lab.N_OUT))


def truth(lab, phases, window: int | None) -> dict:
    """Gradients of ``e`` and ``v`` in jax.numpy alone: what passes through another weight is detached at the start of
    each window of scored time steps, or everywhere (None); the direct path of ``v`` never is."""
    values = {name: state.value for name, state in parameters(task(lab).model).items()}
    x = jnp.concatenate([phases.warmup, phases.inputs])
    warm, _, batch_size = phases.sizes
    stop = jax.lax.stop_gradient

    def affine(p, x):
        return x @ p["weight"] + p["bias"]

    def loss(params, of):
        w = {**values, **params}
        direct = other = jnp.zeros((batch_size, UNITS))
        total = 0.0
        for t in range(len(x)):
            if window is None or t <= warm or (t - warm) % window == 0:
                other = stop(other)
                direct = stop(direct) if of == "e.weight" else direct
            a = affine(w["v.weight"], jnp.tanh(affine(w["e.weight"], x[t])))
            direct = 0.9 * direct + a
            other = 0.9 * other + affine(values["u.weight"], jnp.tanh(stop(a) if window is None else a))
            if t >= warm:
                out = affine(values["out.weight"], jnp.tanh(direct + other))
                total += jnp.square(out - phases.targets[t - warm]).mean(-1).sum()
        return total

    return {name: jax.grad(loss)({name: values[name]}, name)[name] for name in ("e.weight", "v.weight")}


def within(window: int) -> str:
    return f"from {'one scored time step' if window == 1 else f'{window} scored time steps'} only (window={window})"


LARGER = "A larger window extends the credit; strategy='bptt' gives full credit"
RULES = {
    # strategy: the window of e (0: no gradient at all) and of v (None: the direct path alone, "-": not compared), and
    # what is said of how much there is, and of what gives more
    DRTRL(): (1, 1, within(1), LARGER),
    DRTRL(window=3): (3, 3, within(3), LARGER),
    DRTRL(window=TIME): (TIME, TIME, within(TIME), "Use strategy='bptt' for all credit"),
    DRTRL(engine="trace", window=4): (4, 4, within(4), LARGER),
    DRTRL(vjp="single-step"): (0, None, "", "Use vjp='multi-step'"),
    DRTRL(vjp="single-step", engine="trace"): (0, None, "", "Use vjp='multi-step'"),
    PPProp(window=3): (3, "-", within(3), LARGER),
    OSTLFeedforward(): (1, "-", within(1), LARGER),
    ETrace(): (1, 1, within(1), LARGER),
    ETrace(recurrence_scope="coupled"): (1, 1, "from one time step only", ELSEWHERE),
    EProp(): (0, None, "", "Use vjp='multi-step'"),
    EProp(vjp="multi-step"): (1, 1, "from one time step only", ELSEWHERE),
    OSTLRecurrent(): (1, 1, "from one time step only", ELSEWHERE),
    SnAp(): (1, 1, "from one time step only", ELSEWHERE),
    UORO(): (1, "-", "from one time step only", ELSEWHERE),
}


SHORT = [DRTRL(), DRTRL(window=3), DRTRL(vjp="single-step"), DRTRL(engine="trace", window=4), PPProp(window=3), EProp()]


@pytest.mark.parametrize("strategy", [*SHORT, *longer(*(rule for rule in RULES if rule not in SHORT))], ids=str)
def test_what_is_said_is_what_the_gradient_has(lab, strategy):
    phases = lab.sequences(time=TIME)
    e, v, reach, more = RULES[strategy]
    drive = lab.Drive(strategy, task(lab), phases)
    grads, rows = drive.grads(phases), {row.name: row for row in drive.learner.report(phases)}
    chained, partly = rows["e.weight"], rows["v.weight"]
    assert (rows["u.weight"].trains, rows["u.weight"].why, rows["out.weight"].trains) == ("yes", "", "yes")
    exact = lab.learn(BPTT(), task(lab), phases)
    if e == 0:
        assert (chained.trains, chained.why) == ("no", f"{CHAINED}its gradient is exactly zero. {more}")
        assert not any(leaf.any() for leaf in lab.flat({"": grads["e.weight"]}).values())
        assert (partly.trains, partly.why) == ("in part", f"{PARTLY}the other has no credit. {more}")
    else:
        assert (chained.trains, chained.why) == ("in part", f"{CHAINED}it gets credit {reach}. {more}")
        lab.same({"e": grads["e.weight"]}, {"e": truth(lab, phases, e)["e.weight"]})
        assert lab.cosine({"e": grads["e.weight"]}, {"e": exact["e.weight"]}) < 0.999, "the test sees what is missing"
        assert (partly.trains, partly.why) == ("in part", f"{PARTLY}the other gets credit {reach}. {more}")
    if v != "-":
        lab.same({"v": grads["v.weight"]}, {"v": truth(lab, phases, v)["v.weight"]})
        assert lab.cosine({"v": grads["v.weight"]}, {"v": exact["v.weight"]}) < 0.999


def test_more_than_a_window_gives_is_given_as_said(lab):
    """A larger window gives more credit, and on the average over sequences a gradient nearer to BPTT's."""
    batches = [lab.sequences(seed, time=TIME) for seed in range(12)]
    of = lambda grads: {"e": grads["e.weight"]}  # noqa: E731
    exact = lab.Drive(BPTT(), task(lab), batches[0])
    truths = [of(exact.grads(phases)) for phases in batches]
    found = []
    for window in (1, 3, TIME):
        drive = lab.Drive(DRTRL(window=window), task(lab), batches[0])
        grads = [of(drive.grads(phases)) for phases in batches]
        found.append(np.mean([lab.cosine(a, b) for a, b in zip(grads, truths, strict=True)]))
    assert found == sorted(found) and found[0] < found[-1] - 0.01, found


@pytest.mark.parametrize("engine", ["reverse", "trace"])
def test_what_is_advised_within_a_sequence_of_updates_can_be_had(lab, engine):
    """The window is one of all scored time steps, not of those of an update."""
    phases = lab.sequences(time=10)

    def said(**fields):
        learner = DRTRL(engine=engine, **fields).bind(Objective(task(lab), lambda x: x), check_phases(phases))
        return {row.name: row.why for row in learner.report(phases)}["e.weight"].partition(": ")[2]

    multiple = "A larger window, of which update_every is a multiple, extends the credit"
    without = "strategy='bptt', which has no update_every,"
    for fields in ({"window": 2, "update_every": 2}, {"window": 5, "update_every": 10}):
        assert said(**fields) == f"it gets credit {within(fields['window'])}. {multiple}; {without} gives full credit"
    assert said(window=4, update_every=4).startswith(f"it gets credit {within(4)}. ")
    with pytest.raises(ValueError, match="update_every=2.: .* update_every must be a multiple of it$"):
        said(window=4, update_every=2)
    assert said(window=10, update_every=10) == f"it gets credit {within(10)}. Use {without} for all credit"
    assert said(window=2) == f"it gets credit {within(2)}. {LARGER}"


class Read(brainstate.nn.Module):
    """A GRU behind a trained layer: a table of words, or a convolution."""

    def __init__(self, lab, kind: str):
        super().__init__()
        self.kind = kind
        table = kind == "embedding"
        self.layer = braintrace.nn.Embedding(5, 3) if table else braintrace.nn.Conv1d((lab.N_IN, 1), 2, 3)
        self.rnn = braintrace.nn.GRUCell(3 if table else 2 * lab.N_IN, UNITS)
        self.out = braintrace.nn.Linear(UNITS, lab.N_OUT)

    def update(self, x):
        if self.kind == "embedding":
            return self.out(self.rnn(self.layer(x[..., 0].astype("int32") % 5)))
        return self.out(self.rnn(self.layer(x[..., None]).reshape(*x.shape[:-1], -1)))


@pytest.mark.parametrize("engine", ["reverse", *longer("trace")])
@pytest.mark.parametrize("kind", ["embedding", "convolution"])
def test_a_layer_before_the_recurrence_is_named(lab, kind, engine):
    phases = lab.sequences()
    phases = replace(phases, warmup=4 * phases.warmup, inputs=4 * phases.inputs)
    for strategy, trains, ending in (
        (DRTRL(engine=engine, vjp="single-step"), "no", "its gradient is exactly zero. Use vjp='multi-step'"),
        (DRTRL(engine=engine, window=2), "in part", f"it gets credit {within(2)}. {LARGER}"),
    ):
        drive = lab.Drive(strategy, lab.Task(Read(lab, kind)), phases)
        row = next(row for row in drive.learner.report(phases) if row.name == "layer.weight")
        assert (row.trains, row.why) == (trains, CHAINED + ending)
        grads = lab.flat({"": drive.grads(phases)["layer.weight"]}).values()
        assert any(leaf.any() for leaf in grads) is (trains != "no")


def test_what_a_rule_has_no_field_for_is_not_advised(lab):
    """A rule of somebody else's, single-step and without a field vjp."""

    @dataclass(frozen=True)
    class Own(OnlineRule):
        def rule(self):
            return "d_rtrl", {"vjp_method": "single-step"}

    phases = lab.sequences()
    learner = Own().bind(Objective(task(lab), lambda x: x), phases)
    rows = {row.name: row.why for row in learner.report(phases)}
    elsewhere = "Use drtrl with vjp='multi-step', or tbptt"
    assert rows["e.weight"] == f"{CHAINED}its gradient is exactly zero. {elsewhere}"
    assert rows["v.weight"] == f"{PARTLY}the other has no credit. {elsewhere}"


def test_dni_estimates_what_comes_later_for_what_has_no_trace_at_all(lab):
    phases = lab.sequences(time=TIME)
    drive = lab.Drive(DNI(fit_epochs=3), task(lab), phases)
    grads, rows = drive.grads(phases), {row.name: row.why for row in drive.learner.report(phases)}
    wanted = truth(lab, phases, 1)
    assert rows["e.weight"] == f"{CHAINED}it gets credit from one time step only. For later losses it has the " + (
        "synthesiser's estimate"
    )
    with pytest.raises(AssertionError, match="off by"):
        lab.same({"e": grads["e.weight"]}, {"e": wanted["e.weight"]})
    assert rows["v.weight"] == f"{PARTLY}the other gets credit from one time step only. {ELSEWHERE}"
    lab.same({"v": grads["v.weight"]}, {"v": wanted["v.weight"]})


def test_a_reward_reaches_the_direct_way_alone(lab):
    class Rewarded(lab.Task):
        def learning_step(self, forward, x, y, reward):
            return super().learning_step(forward, x, y)

    phases = replace(lab.sequences(), extras={"reward": jnp.ones((lab.LEARN, lab.B))})
    learner = ThreeFactor().bind(Objective(Rewarded(task(lab).model), lambda x: x), phases)
    assert {row.name: (row.trains, row.why) for row in learner.report(phases) if row.name == "v.weight"} == {
        "v.weight": ("in part", f"{PARTLY}the other has no credit")
    }


def test_uoro_is_unbiased_where_there_is_a_trace_and_only_there(lab):
    """The mean over draws becomes BPTT's gradient for ``Wz`` and ``Wh`` of a GRU; ``Wr`` draws nothing, and stays at
    the credit of one time step."""

    phases = lab.sequences(batch_size=1)
    exact = lab.learn(BPTT(), lab.task(), phases)
    diagonal = lab.learn(DRTRL(), lab.task(), phases)
    drive = lab.Drawing(UORO(), lab.Drawn(lab.task().model), lab.drawn(phases, 0))
    first = total = drive.grads(lab.drawn(phases, 0))
    for i in range(1, 1000):
        total = jax.tree.map(jnp.add, total, drive.grads(lab.drawn(phases, i)))
    of = lambda grads, name: {name: grads[name]}  # noqa: E731
    for name in ("rnn.Wz.weight", "rnn.Wh.weight"):
        assert lab.cosine(of(first, name), of(exact, name)) < 0.9, "one draw says little"
        assert lab.cosine(of(total, name), of(exact, name)) > 0.992
        assert lab.cosine(of(diagonal, name), of(exact, name)) < 0.99, "D-RTRL is biased here"
        ratio = [np.linalg.norm(lab.flat(of(g, name))[f"{name}['weight']"]) for g in (total, exact)]
        assert abs(ratio[0] / 1000 / ratio[1] - 1) < 0.1
    lab.same(of(first, "rnn.Wr.weight"), of(diagonal, "rnn.Wr.weight"))
    assert lab.cosine(of(total, "rnn.Wr.weight"), of(exact, "rnn.Wr.weight")) < 0.99
    row = next(row for row in drive.learner.report(phases) if row.name == "rnn.Wr.weight")
    assert row.trains == "in part" and row.why.endswith(f"it gets credit from one time step only. {ELSEWHERE}")


class Begun(brainstate.nn.Module):
    """Its hidden state begins with a learned value; ``noisy`` with dropout."""

    def __init__(self, n_in: int, n_out: int, noisy: bool):
        super().__init__()
        self.start = brainstate.ParamState(jnp.full((UNITS,), 0.3))
        self.mix, self.out = braintrace.nn.Linear(n_in, UNITS), braintrace.nn.Linear(UNITS, n_out)
        self.drop = brainstate.nn.Dropout(0.5) if noisy else lambda h: h

    def init_state(self, batch_size=None, **_):
        lead = () if batch_size is None else (batch_size,)
        self.h = brainstate.HiddenState(jnp.broadcast_to(self.start.value, (*lead, UNITS)))

    def update(self, x):
        self.h.value = 0.9 * self.h.value + self.mix(x)
        return self.out(self.drop(jnp.tanh(self.h.value)))


RESET = {"stateful": False, "update_every": "sequence"}


@pytest.mark.parametrize(
    ("fields", "advice", "noisy"),
    [
        ({"segment": 3}, "Use segment='sequence'", False),
        ({"stateful": True}, "Use segment='sequence' with stateful=False and update_every='sequence'", False),
        ({"batching": "vmap"}, "Use bptt, or tbptt with stateful=False and update_every='sequence'", True),
        (
            {"engine": "trace"},
            "Use bptt, tbptt, or drtrl with engine='reverse', each with stateful=False and update_every='sequence'",
            False,
        ),
    ],
)
def test_advice_on_a_learned_initial_state(lab, fields, advice, noisy):
    """What is advised can be had, and trains it."""
    phases = lab.sequences(warm=0, time=6)

    def row(strategy):
        with brainstate.random.seed_context(0), brainstate.environ.context(fit=True):
            objective = Objective(lab.Task(Begun(lab.N_IN, lab.N_OUT, noisy)), lambda x: x)
            learner = strategy.bind(objective, phases)
            return {row.name: row for row in learner.report(phases)}["start"]

    first = row(DRTRL(**fields))
    assert first.trains == "no" and first.why.endswith(f"receives no credit for it. {advice}")
    ways = [DRTRL(**{**fields, **RESET, "segment": "sequence"})] if "segment" in advice else [BPTT(), TBPTT(window=6)]
    if "engine" in advice:
        ways.append(DRTRL(engine="reverse"))
    if noisy:
        ways.append(BPTT(batching="vmap"))
    assert [row(way).trains for way in ways] == ["yes"] * len(ways)


def test_a_rule_that_maps_a_model_with_random_numbers_says_so(lab):
    with brainstate.random.seed_context(0), brainstate.environ.context(fit=True):
        task = lab.Task(Begun(lab.N_IN, lab.N_OUT, noisy=True))
        notes = SnAp().bind(Objective(task, lambda x: x), lab.sequences(warm=0)).notes
    assert notes == [
        "batching: snap takes one sequence at a time, for which the model differs: it draws random numbers, "
        "which would differ from those for a whole batch"
    ]
