"""Rules computed backward in time against braintrace's trace: the same gradients for any cell and sequence."""

from dataclasses import replace

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxtrain import DRTRL
from jaxtrain.core.state import parameters
from jaxtrain.strategies import EProp, OSTLFeedforward, OSTLRecurrent, PPProp
from jaxtrain.strategies.reverse.blocks import BLOCK, parts_of, windows_per_block
from jaxtrain.strategies.reverse.learner import ReverseLearner
from tests.strategies.conftest import CELLS as CELLS_BY_NAME
from tests.strategies.sums import assert_same_sums, sums

pytestmark = pytest.mark.full

RULES = {
    "drtrl, window 3": DRTRL(window=3),
    "eprop": EProp(),
    "eprop, filtered": EProp(kappa=0.9),
    "eprop, filtered, multi-step": EProp(kappa=0.9, vjp="multi-step"),
    "eprop, random feedback": EProp(feedback="random", feedback_seed=3),
    "pp_prop": PPProp(decay=0.9),
    "pp_prop, rank": PPProp(rank=5),
    "pp_prop, window 3": PPProp(decay=0.9, window=3),
    "pp_prop, single-step": PPProp(decay=0.9, vjp="single-step"),
    "ostl_feedforward": OSTLFeedforward(),
    "ostl_feedforward, single-step": OSTLFeedforward(vjp="single-step"),
    "ostl_recurrent": OSTLRecurrent(),
    "ostl_recurrent, single-step": OSTLRecurrent(vjp="single-step"),
}
CELLS = ["gru", "lstm", "mgu", "minigru", "vanilla", "lru", "lif"]


def sequences(lab, kind: str, seed: int = 0):
    """``kind``: "plain", or a warm-up, weights per time step and sequence, and resets."""
    rng = np.random.default_rng(seed)
    if kind == "plain":
        return lab.sequences(seed, warm=0, time=7)
    weights = (rng.random((7, lab.B)) < 0.6) * rng.random((7, lab.B))
    reset = rng.random((12, lab.B)) < 0.25
    return lab.sequences(seed, warm=5, time=7, weights=jnp.asarray(weights, jnp.float32), reset=jnp.asarray(reset))


@pytest.mark.cover
@pytest.mark.parametrize("kind", ["plain", "warm-up, weights, resets"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_that_of_the_trace(lab, rule, cell, kind):
    reverse = lab.Drive(replace(RULES[rule], engine="reverse"), lab.task(cell), sequences(lab, kind))
    trace = lab.Drive(replace(RULES[rule], engine="trace"), lab.task(cell), sequences(lab, kind))
    assert isinstance(reverse.learner, ReverseLearner) and reverse.learner.trace_bytes() == 0
    for seed in range(2):
        (grads, weight, _), (wanted, same, _) = (drive(sequences(lab, kind, seed)) for drive in (reverse, trace))
        lab.same(grads, wanted)
        assert weight == same


@pytest.mark.parametrize("rule", [name for name in RULES if name != "eprop"])
def test_every_rule_differs_from_d_rtrl(lab, rule):
    """Otherwise the equalities above would mean nothing."""
    phases = sequences(lab, "warm-up, weights, resets")
    one, other = (lab.learn(each, lab.task(), phases) for each in (replace(RULES[rule], engine="reverse"), DRTRL()))
    assert lab.cosine(one, other) < 0.9999


class Units(brainstate.nn.Module):
    """A model with the hidden state ``h`` of six units."""

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 6) if batch_size else (6,)))


class Bypass(brainstate.nn.Module):
    """The output also reads the hidden state before the time step."""

    def __init__(self, lab):
        super().__init__()
        self.rnn, self.out = braintrace.nn.GRUCell(lab.N_IN, lab.N), braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        before = self.rnn.h.value
        return self.out(self.rnn(x)) + self.out(0.5 * before)


class Layers(brainstate.nn.Module):
    def __init__(self, lab):
        super().__init__()
        self.first, self.second = braintrace.nn.GRUCell(lab.N_IN, lab.N), braintrace.nn.ValinaRNNCell(lab.N, 4)
        self.out = braintrace.nn.Linear(4, lab.N_OUT)

    def update(self, x):
        return self.out(self.second(self.first(x)))


class Leaky(brainstate.nn.Module):
    def __init__(self, lab):
        super().__init__()
        self.rnn, self.out = braintrace.nn.GRUCell(lab.N_IN, lab.N), braintrace.nn.LeakyRateReadout(lab.N, lab.N_OUT)

    def update(self, x):
        return self.out(self.rnn(x))


class Masked(Units):
    """A recurrence whose weight, but not its bias, passes through a function."""

    def __init__(self, lab):
        super().__init__()
        mask = np.random.default_rng(0).random((lab.N_IN + lab.N, lab.N)) < 0.5
        self.rnn = braintrace.nn.Linear(lab.N_IN + lab.N, lab.N, w_mask=jnp.asarray(mask, jnp.float32))
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        self.h.value = jnp.tanh(self.rnn(jnp.concatenate([x, self.h.value], -1)))
        return self.out(self.h.value)


@pytest.mark.parametrize("rule", ["pp_prop", "pp_prop, single-step", "eprop, filtered"])
def test_a_bias_beside_a_masked_weight(lab, rule):
    def task():
        with brainstate.random.seed_context(0):
            return lab.Task(Masked(lab))

    phases = sequences(lab, "warm-up, weights, resets")
    lab.same(*(lab.learn(replace(RULES[rule], engine=engine), task(), phases) for engine in ("reverse", "trace")))


class TwoWays(Units):
    """``v`` reaches the units directly and through ``w``, which reads old units, too, if ``mixed``."""

    mixed = False

    def __init__(self, lab):
        super().__init__()
        self.v, self.w = braintrace.nn.Linear(lab.N_IN, lab.N), braintrace.nn.Linear(lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        a, h = self.v(x), self.h.value
        self.h.value = jnp.tanh(0.9 * h + a + self.w(jnp.tanh(a + h if self.mixed else a)))
        return self.out(self.h.value)


class Mixed(TwoWays):
    mixed = True


class Stacked(Units):
    """Two layers of equal size, which braintrace joins for this rule."""

    def __init__(self, lab):
        super().__init__()
        self.first = braintrace.nn.ValinaRNNCell(lab.N_IN, lab.N)
        self.between, self.own = braintrace.nn.Linear(lab.N, lab.N), braintrace.nn.Linear(lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        self.h.value = jnp.tanh(self.between(self.first(x)) + self.own(self.h.value))
        return self.out(self.h.value)


IRREVERSIBLE = {  # for the rules that include recurrent mixing
    Layers: r"concatenate mixes positions .*; use engine='auto'$", Mixed: "no element-wise form",
    Stacked: "hidden states of equal shape",
}  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize("model", [Bypass, Layers, Leaky, TwoWays, Mixed, Stacked])
@pytest.mark.parametrize("rule", RULES)
def test_models_with_several_paths(lab, rule, model):
    several_paths(lab, rule, model)


@pytest.mark.parametrize("model", [TwoWays, Mixed, Stacked])
@pytest.mark.parametrize("rule", ["ostl_recurrent", "ostl_recurrent, single-step"])
def test_only_recurrent_weights_lead_a_unit_to_itself(lab, rule, model):
    several_paths(lab, rule, model)


def several_paths(lab, rule, model):
    def learner(engine):
        with brainstate.random.seed_context(0), brainstate.environ.context(dt=1.0 * u.ms):
            made = lab.Task(model(lab))
        made.environ = {"dt": 1.0 * u.ms}
        return lab.Drive(replace(RULES[rule], engine=engine), made, phases)

    phases = sequences(lab, "warm-up, weights, resets")
    refused = IRREVERSIBLE.get(model, "") if rule.startswith("ostl_recurrent") else ""
    if "filtered" in rule and model is Leaky:
        refused = "filters the traces in place of a leaky readout"
        with pytest.raises(ValueError, match=refused):
            learner("trace")
    if refused:
        with pytest.raises(ValueError, match=refused):
            learner("reverse")
        if model is Leaky:
            return
    lab.same(*(learner(engine).grads(phases) for engine in ("auto" if refused else "reverse", "trace")))


class Plain(Units):
    """A recurrence through three products one after another."""

    def __init__(self, lab):
        super().__init__()
        make = lambda: braintrace.nn.Linear(lab.N, lab.N)  # noqa: E731
        self.inputs, self.a, self.b, self.c = braintrace.nn.Linear(lab.N_IN, lab.N), make(), make(), make()
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        h = self.h.value
        self.h.value = jnp.tanh(self.inputs(x) + self.c(jnp.tanh(self.b(jnp.tanh(self.a(h))))))
        return self.out(self.h.value)


def test_a_recurrence_without_an_element_wise_form_is_refused(lab):
    with brainstate.random.seed_context(0):
        task = lab.Task(Plain(lab))
    message = r"does not fit Plain: a recurrent product that follows another one .*; use engine='auto'$"
    with pytest.raises(ValueError, match=message):
        lab.Drive(OSTLRecurrent(engine="reverse"), task, lab.sequences())
    assert lab.learn(OSTLRecurrent(), task, lab.sequences()), "as advised"


OPTIONS = {
    "segments": {"segment": 3},
    "updates within a sequence": {"update_every": 3},
    "a stream": {"stateful": True, "segment": 4},
    "updates in a stream": {"stateful": True, "update_every": 3},
    "mapped": {"batching": "vmap"},
    "mapped segments": {"batching": "vmap", "segment": 3},
}


def in_trace(rule, fields):
    return replace(rule, engine="trace", **{name: value for name, value in fields.items() if name != "segment"})


@pytest.mark.cover
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cell", ["gru", "lru", "lif"])
@pytest.mark.parametrize("kind", ["plain", "warm-up, weights, resets"])
@pytest.mark.parametrize("rule", RULES)
def test_segments_updates_and_streams(lab, rule, kind, cell, options):
    """The sum of all gradients of three batches."""
    fields, strategy = OPTIONS[options], RULES[rule]
    if strategy.window_of() > 1:
        fields = {name: value for name, value in fields.items() if name != "batching"}
    elif "batching" in fields and strategy.works_in()[0] == "batched":
        pytest.skip("braintrace needs batched states here")
    if "batching" in fields and rule.startswith("ostl_recurrent"):
        with pytest.raises(ValueError, match="the reverse engine runs the whole batch"):
            replace(strategy, engine="reverse", **fields)
        return
    every = replace(strategy, engine="reverse", **fields), in_trace(strategy, fields)
    batches = [sequences(lab, kind, seed) for seed in range(3)]
    assert_same_sums(lab, every, lambda: lab.task(cell), batches)


class Leaks(Units):
    """Units whose only trained weights before the readout are element-wise; one of them passes through a function."""

    def __init__(self, lab):
        super().__init__()
        self.leak, self.gain = (brainstate.ParamState(jnp.linspace(low, 1.0, lab.N)) for low in (-1.0, 0.2))
        self.inputs = jax.random.normal(jax.random.key(0), (lab.N_IN, lab.N))
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        leak = braintrace.element_wise(self.leak.value, weight_fn=jax.nn.sigmoid)
        gain = braintrace.element_wise(self.gain.value)
        self.h.value = jnp.tanh(leak * self.h.value + gain * (x @ self.inputs))
        return self.out(self.h.value)


@pytest.mark.cover
@pytest.mark.parametrize("options", [{}, {"stateful": True, "update_every": 3}], ids=["sequences", "a stream"])
@pytest.mark.parametrize("rule", ["pp_prop", "pp_prop, window 3", "pp_prop, single-step", "ostl_recurrent"])
def test_element_wise_weights_alone(lab, rule, options):
    def task():
        with brainstate.random.seed_context(0):
            return lab.Task(Leaks(lab))

    every = replace(RULES[rule], engine="reverse", **options), in_trace(RULES[rule], options)
    assert_same_sums(lab, every, task, [sequences(lab, "warm-up, weights, resets", seed) for seed in range(3)])


@pytest.mark.parametrize("rule", ["pp_prop", "ostl_feedforward"])
def test_a_factored_trace_has_no_array_of_batch_times_parameters(lab, rule):
    drive = lab.Drive(
        replace(RULES[rule], engine="reverse", stateful=True, update_every=1), lab.task(), lab.sequences()
    )
    units, inputs = lab.N, lab.N_IN + lab.N
    traces = {leaf.shape for state in drive.learner.own.values() for leaf in [state.value]}
    assert traces == {(), (lab.B, inputs), (lab.B, units)}


class Stack(brainstate.nn.Module):
    """Layers of cells, and a readout."""

    def __init__(self, cells: tuple[str, ...], inputs: int, outputs: int, width: int):
        super().__init__()
        made = []
        for cell in cells:
            made.append(CELLS_BY_NAME[cell](inputs))
            inputs = width
        self.layers = brainstate.nn.Sequential(*made)
        self.out = braintrace.nn.Linear(inputs, outputs)

    def update(self, x):
        return self.out(self.layers(x))


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=40, deadline=None)
@given(
    rule=st.sampled_from(list(RULES)),
    cells=st.lists(st.sampled_from(["gru", "lstm", "minigru", "vanilla"]), min_size=1, max_size=2).map(tuple),
    warm=st.sampled_from([0, 3]),
    time=st.sampled_from([4, 7]),
    fields=st.sampled_from([{}, *OPTIONS.values()]),
    weights=st.sampled_from([None, "time", "sequences"]),
    resets=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_rule_on_any_network(lab, rule, cells, warm, time, fields, weights, resets, seed):
    strategy = RULES[rule]
    assume("batching" not in fields or (strategy.window_of() == 1 and strategy.works_in()[0] == "either"))
    assume(not rule.startswith("ostl_recurrent") or (len(cells) == 1 and "batching" not in fields))
    rng = np.random.default_rng(seed)
    shape = {"time": (time,), "sequences": (time, lab.B)}.get(weights)
    batches = [
        lab.sequences(
            number, warm=warm, time=time,
            weights=None if shape is None else jnp.asarray(rng.integers(0, 3, shape), jnp.float32),
            reset=jnp.asarray(rng.random((warm + time, lab.B)) < 0.2) if resets else None,
        )
        for number in range(2)
    ]  # fmt: skip

    def task():
        with brainstate.random.seed_context(seed):
            model = Stack(cells, lab.N_IN, lab.N_OUT, lab.N)
            for state in parameters(model).values():
                state.value = jax.tree.map(lambda leaf: leaf + 0.1 * brainstate.random.randn(*leaf.shape), state.value)
        return lab.Task(model)

    every = replace(strategy, engine="reverse", **fields), in_trace(strategy, fields)
    grads, wanted = (sums(lab, each, task(), batches)[0] for each in every)
    lab.same(grads, wanted, 2e-5)


@pytest.mark.parametrize("window", [1, 3, 40])
@pytest.mark.parametrize("time", [1, 2, 7, 31, 32, 33, 37, 64, 101, 1009])
def test_parts_hold_every_time_step_once_in_blocks_that_divide_them(time, window):
    parts = parts_of(time, window)
    steps = [step for which, _ in parts for step in range(time)[which]]
    assert steps == list(range(time))
    for which, own in parts:
        count = len(range(time)[which])
        windows = windows_per_block(count // own, own)
        assert count % (windows * own) == 0
        assert windows * own <= max(BLOCK, own)


@pytest.mark.parametrize("rule", ["drtrl, window 3", "pp_prop", "eprop, filtered"])
def test_a_number_of_windows_without_a_divisor(lab, rule):
    phases = lab.sequences(0, warm=37, time=3 * 13 + 2)
    one, other = (lab.learn(replace(RULES[rule], engine=engine), lab.task(), phases) for engine in ("reverse", "trace"))
    lab.same(one, other)
