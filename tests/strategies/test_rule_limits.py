"""What a rule refuses, says and keeps: models it cannot follow, rewards, narrow numbers, bytes of traces."""

from dataclasses import replace

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import parameters
from jaxtrain.strategies import (
    DNI,
    UORO,
    EProp,
    ETrace,
    OSTLFeedforward,
    OSTLRecurrent,
    PPProp,
    ReadoutOnly,
    SnAp,
    ThreeFactor,
)
from jaxtrain.strategies import bind_rule as rules_of
from tests.strategies.test_rules import CASES, LEAK, at_work, compiled, rewarded, three_sequences

pytestmark = pytest.mark.full


def bind(lab, strategy, model=None, phases=None):
    return strategy.bind(Objective(lab.Task(model or lab.task().model), lambda x: x), phases or lab.sequences())


def test_coordinates_with_recurrent_mixing_are_mapped(lab):
    coupled = ETrace(recurrence_scope="coupled")
    lab.same(lab.learn(coupled, lab.task(), lab.sequences()), lab.learn(OSTLRecurrent(), lab.task(), lab.sequences()))
    with pytest.raises(ValueError, match=r"^ETrace\(batching='batched'\): this rule needs 'vmap', .*'coupled'\)$"):
        replace(coupled, batching="batched")


def test_a_model_without_a_recurrence_is_refused(lab):
    for strategy in (PPProp(), EProp(kappa=0.5), UORO(), SnAp()):
        with pytest.raises(ValueError, match="no weight of Linear reaches a hidden state through a braintrace op"):
            bind(lab, strategy, braintrace.nn.Linear(lab.N_IN, lab.N_OUT))


def test_a_filtered_trace_stays_batched_where_lanes_would_be_faster(lab, monkeypatch):
    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)
    for strategy in (EProp(kappa=0.8, engine="trace"), ETrace(trace_filter="kappa", kappa=0.8)):
        assert bind(lab, strategy).resolved() == {"batching": "batched"}


def test_why_a_model_is_not_mapped_over_lanes_is_said(lab, monkeypatch):
    """States made in __init__ take a batch alone; mapping would only have been faster."""

    class Made(type(lab.task().model)):
        def __init__(self):
            super().__init__("gru")
            self.last = brainstate.HiddenState(jnp.zeros((lab.B, lab.N_OUT)))

        def update(self, x):
            self.last.value = super().update(x)
            return self.last.value

    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)
    learner = bind(lab, PPProp(engine="trace"), Made())
    assert learner.resolved() == {"batching": "batched"}
    (note,) = learner.notes
    assert note.startswith("batching: batched, since the model cannot be mapped over sequences (") and len(note) > 70
    assert bind(lab, PPProp(engine="trace")).notes == []


class Counting(brainstate.nn.Module):
    """A network with a hidden state that is no number to differentiate."""

    def __init__(self, lab):
        super().__init__()
        self.net = lab.task().model

    def init_state(self, batch_size=None, **kwargs):
        self.count = brainstate.HiddenState(jnp.zeros((batch_size,), jnp.int32))

    def update(self, x):
        self.count.value = self.count.value + 1
        return self.net(x)


def test_a_hidden_state_of_whole_numbers_is_not_differentiated(lab):
    strategy = DRTRL(window=2, engine="trace")
    got = lab.learn(strategy, lab.Task(Counting(lab)), lab.sequences())
    lab.same({n.removeprefix("net."): g for n, g in got.items()}, lab.learn(strategy, lab.task(), lab.sequences()))


def test_what_braintrace_refuses_is_a_line_and_what_a_model_raises_is_not(lab, monkeypatch):
    """Its own refusals are for the reader; an error within the model keeps its place and gets a note."""

    compile_rule = rules_of.compile_rule
    for name, more, what in (
        ("no such rule", {}, "no such rule"),
        (None, {"snap_max_jacobian_elements": 9}, "ceiling"),
    ):

        def changed(*args, name=name, more=more, **options):
            *args, algorithm = args
            return compile_rule(*args, name or algorithm, **options, **more)

        monkeypatch.setattr(rules_of, "compile_rule", changed)
        with pytest.raises(ValueError, match=rf"^strategy 'snap' cannot run on Net: .*{what}") as raised:
            bind(lab, SnAp())
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(rules_of, "compile_rule", lambda *args, **kwargs: int("the model's"))
    with pytest.raises(ValueError, match=r"^invalid literal for int") as raised:
        bind(lab, PPProp(engine="trace"))
    assert raised.value.__notes__ == ["jaxtrain: strategy 'pp_prop' cannot run on Net"]


# -------------------------------------------------------------------------------------------------------------- rewards


def test_three_factor_needs_its_reward(lab):
    with pytest.raises(ValueError, match=r"^ThreeFactor\(modulator='reward'\): Phases.extras holds \[\]; give it the"):
        bind(lab, ThreeFactor())


def test_three_factor_says_where_a_reward_comes_from(lab):
    with pytest.raises(ValueError) as raised:
        bind(lab, ThreeFactor())
    for part in ("Module.phases", "extras={'reward': reward}", "(T_l, B, units)", "by keyword", "recipes have none"):
        assert part in str(raised.value)
    (phases, *_) = three_sequences(lab, CASES["three_factor"])
    for shape in ((lab.LEARN, lab.B, lab.N + 1), (lab.LEARN, lab.B, 1, 1)):
        wrong = replace(phases, extras={"reward": jnp.ones(shape)})
        with pytest.raises(
            ValueError, match=r"\['reward'\] has shape .*expected one of \(4, 3\), \(4, 3, 1\), \(4, 3, 6\)"
        ):
            ThreeFactor().bind(Objective(rewarded(lab.task()), lambda x: x), wrong)


@pytest.mark.parametrize("shape", ["(T, B)", "(T, B, 1)", "(T, B, N)"])
def test_a_reward_may_be_a_number_a_lane_or_a_unit(lab, shape):
    (phases, *_) = three_sequences(lab, CASES["three_factor"])
    reward = phases.extras["reward"]
    given = {"(T, B)": reward, "(T, B, 1)": reward[..., None], "(T, B, N)": jnp.repeat(reward[..., None], lab.N, -1)}
    grads = lab.learn(ThreeFactor(), rewarded(lab.task()), replace(phases, extras={"reward": given[shape]}))
    lab.same(grads, lab.learn(ThreeFactor(), rewarded(lab.task()), phases))
    assert lab.flat(grads)["rnn.Wh.weight['weight']"].any()
    none = lab.learn(ThreeFactor(), rewarded(lab.task()), replace(phases, extras={"reward": 0 * reward}))
    assert not any(leaf.any() for leaf in lab.flat(none).values())


def test_a_reward_stands_where_the_gradient_of_a_loss_would(lab):
    """Of the loss sum(number * hidden state): the rule's gradient is D-RTRL's, whatever its own module's loss is."""

    class Summed(lab.Task):
        def learning_step(self, forward, x, y, reward):
            return (reward * forward(x)[1]).sum(-1)

    (phases, *_) = three_sequences(lab, CASES["three_factor"])
    rng = np.random.default_rng(3)
    phases = replace(phases, extras={"reward": jnp.asarray(rng.normal(size=(lab.LEARN, lab.B, lab.N)), jnp.float32)})
    got = lab.learn(ThreeFactor(), rewarded(lab.task()), phases)
    wanted = lab.learn(DRTRL(vjp="single-step"), Summed(lab.task(states=True).model), phases)
    traced = ("rnn.Wz.weight", "rnn.Wh.weight")
    lab.same({name: got[name] for name in traced}, {name: wanted[name] for name in traced})


# ------------------------------------------------------------------------------------------------------- narrow numbers

NARROW = [
    DRTRL(engine="trace"),
    PPProp(),
    EProp(kappa=0.5),
    OSTLFeedforward(),
    SnAp(),
    DNI(fit_epochs=1),
    ETrace(**LEAK),
]


def halved(lab):
    task, phases = lab.task(), lab.sequences()
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)  # noqa: E731
    for state in parameters(task.model).values():
        state.value = half(state.value)
    return task, replace(phases, warmup=half(phases.warmup), inputs=half(phases.inputs))


@pytest.mark.parametrize("strategy", NARROW, ids=lambda strategy: strategy.name)
def test_below_32_bits_is_refused(lab, strategy):
    task, phases = halved(lab)
    with pytest.raises(ValueError, match=rf"^strategy '{strategy.name}': the recurrence of Net runs in bfloat16, and "):
        bind(lab, strategy, task.model, phases)


@pytest.mark.parametrize("strategy", [OSTLRecurrent(), UORO()], ids=lambda strategy: strategy.name)
def test_below_32_bits_where_braintrace_can(lab, strategy):
    task, phases = halved(lab)
    assert all(np.isfinite(leaf).all() for leaf in lab.flat(lab.learn(strategy, task, phases)).values())


@pytest.mark.parametrize(
    "name",
    ["drtrl-trace", "pp_prop", "eprop", "ostl_feedforward", "snap", "three_factor", "dni", "etrace-leak"],
)
def test_upstream_a_trace_is_float32_and_its_model_must_be(lab, name):
    """Where this fails, upstream has mended it: the rule's ``narrow`` may be true."""
    task, phases = halved(lab)
    learner = compiled(task, phases.inputs[0], CASES[name])
    if name == "dni":
        learner.attach_synthesizer(braintrace.SyntheticGradient(learner.group_signal_shapes()))
    reward = {"modulator": jnp.ones((1, 1))} if name == "three_factor" else {}

    def step(x, y):
        return lab.squared(learner(x, **reward), y).sum(-1)

    with at_work(task), pytest.raises((ValueError, TypeError), match="(?s)float32.*bfloat16|bfloat16.*float32"):
        learner.etrace_grad(phases.inputs, phases.targets, step_fn=step, reduction="sum")


# --------------------------------------------------------------------------------------------- trace bytes, the control


@pytest.mark.parametrize("cell,name", [("gru", "uoro"), ("lstm", "pp_prop"), ("gru", "eprop-kappa"), ("gru", "snap")])
def test_rows_add_up_to_the_traces(lab, cell, name):
    """A trace that several parameters share is counted once; random numbers and counters are no traces."""
    strategy = CASES[name].strategy
    strategy = replace(strategy, engine="trace") if hasattr(strategy, "engine") else strategy
    learner = strategy.bind(Objective(lab.task(cell), lambda x: x), lab.sequences())
    total = sum(row.bytes for row in learner.report(lab.sequences()))
    assert (
        total
        == learner.trace_bytes()
        == sum(
            leaf.nbytes
            for state in learner.own.values()
            if isinstance(state, brainstate.ShortTermState)
            for leaf in jax.tree.leaves(state.value)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        )
    )
    # UORO: the hidden side, and (weights and bias) of two gates. pp-prop: the inputs once, outputs of four gates.
    wanted = {"uoro": 4 * (lab.B * lab.N + 2 * 60), "pp_prop": 4 * lab.B * (9 + 4 * 2 * lab.N)}
    assert total == wanted.get(name, total) > 0


def test_readout_only_keeps_no_trace(lab):
    learner = bind(lab, ReadoutOnly())
    assert learner.trace_bytes() == 0 and not hasattr(learner, "rule") and not hasattr(learner, "inner")


def test_the_control_says_what_it_trains(lab):
    class Frozen(lab.Task):
        def trainable(self, name):
            return name == "rnn.Wh.weight"

    with pytest.raises(ValueError, match=r"^readout_only: rnn.Wh.weight act through the hidden state, and nothing"):
        ReadoutOnly().bind(Objective(Frozen(lab.task().model), lambda x: x), lab.sequences())
    assert bind(lab, ReadoutOnly()).notes == []
    plain = bind(lab, ReadoutOnly(), braintrace.nn.Linear(lab.N_IN, lab.N_OUT))
    assert plain.notes == ["readout_only: Linear has no hidden state, so everything is read out, as in bptt"]
    model = lambda: braintrace.nn.Linear(lab.N_IN, lab.N_OUT)  # noqa: E731
    with brainstate.random.seed_context(0):
        ours = lab.learn(ReadoutOnly(), lab.Task(model()), lab.sequences())
    with brainstate.random.seed_context(0):
        lab.same(ours, lab.learn(BPTT(), lab.Task(model()), lab.sequences()))
