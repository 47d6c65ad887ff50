"""Rules computed backward in time against braintrace's trace: the same gradients for any cell and sequence."""

from dataclasses import replace

import brainstate
import braintrace
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

from jaxtrain import DRTRL
from jaxtrain.strategies import EProp, OSTLFeedforward, OSTLRecurrent, PPProp
from jaxtrain.strategies.reverse.passes import PassesLearner

pytestmark = pytest.mark.full

RULES = {
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
CELLS = ["gru", "lstm", "mgu", "minigru", "vanilla", "lif"]


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
    assert isinstance(reverse.learner, PassesLearner) and reverse.learner.trace_bytes() == 0
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


class Masked(brainstate.nn.Module):
    """A recurrence whose weight, but not its bias, passes through a function."""

    def __init__(self, lab):
        super().__init__()
        mask = np.random.default_rng(0).random((lab.N_IN + lab.N, lab.N)) < 0.5
        self.rnn = braintrace.nn.Linear(lab.N_IN + lab.N, lab.N, w_mask=jnp.asarray(mask, jnp.float32))
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 6) if batch_size else (6,)))

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


@pytest.mark.cover
@pytest.mark.parametrize("model", [Bypass, Layers, Leaky])
@pytest.mark.parametrize("rule", RULES)
def test_models_with_several_paths(lab, rule, model):
    def task():
        with brainstate.random.seed_context(0), brainstate.environ.context(dt=1.0 * u.ms):
            made = lab.Task(model(lab))
        made.environ = {"dt": 1.0 * u.ms}
        return made

    if rule.startswith("ostl_recurrent") and model is Layers:
        with pytest.raises(ValueError, match=r"concatenate mixes positions .*; use engine='trace'$"):
            lab.Drive(replace(RULES[rule], engine="reverse"), task(), sequences(lab, "plain"))
        return
    phases = sequences(lab, "warm-up, weights, resets")
    lab.same(*(lab.learn(replace(RULES[rule], engine=engine), task(), phases) for engine in ("reverse", "trace")))


class Plain(brainstate.nn.Module):
    """A recurrence through three products one after another."""

    def __init__(self, lab):
        super().__init__()
        make = lambda: braintrace.nn.Linear(lab.N, lab.N)  # noqa: E731
        self.inputs, self.a, self.b, self.c = braintrace.nn.Linear(lab.N_IN, lab.N), make(), make(), make()
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 6) if batch_size else (6,)))

    def update(self, x):
        h = self.h.value
        self.h.value = jnp.tanh(self.inputs(x) + self.c(jnp.tanh(self.b(jnp.tanh(self.a(h))))))
        return self.out(self.h.value)


def test_a_recurrence_without_an_element_wise_form_is_refused(lab):
    with brainstate.random.seed_context(0):
        task = lab.Task(Plain(lab))
    message = r"does not fit Plain: a recurrent product that follows another one .*; use engine='trace'$"
    with pytest.raises(ValueError, match=message):
        lab.Drive(OSTLRecurrent(engine="reverse"), task, lab.sequences())
    assert lab.learn(OSTLRecurrent(), task, lab.sequences()), "as advised"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"update_every": 2}, "it needs a trace between updates or batches"),
        ({"stateful": True}, "it needs a trace between updates or batches"),
        ({"batching": "vmap"}, "the model is mapped over sequences"),
    ],
)
def test_what_needs_a_trace_is_refused(lab, fields, why):
    with pytest.raises(ValueError, match=rf"^PPProp\(engine='reverse'\) does not fit Net: {why}; use engine='trace'$"):
        lab.Drive(PPProp(engine="reverse", **fields), lab.task(), lab.sequences())
