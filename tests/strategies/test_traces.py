"""What traces keep and forget: sequences that are reset, states that a window touches twice, terms of the loss."""

from dataclasses import replace

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.core.metrics import Mean
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective
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
from jaxtrain.strategies.update_schedule import UpdateSchedule
from tests.kit.tiers import longer
from tests.strategies.test_rules import LEAK, OTTT, rewarded

pytestmark = pytest.mark.full

CHOSEN, HALF = 1, 4


def halves(lab, first: int, second: int, part: int, reset: bool) -> Phases:
    """Two sequences one after the other, of which ``CHOSEN`` alone counts, in one part of them; it may be reset between
    the two. One shape for all, and a reward that only three_factor looks at."""
    a, b = (lab.sequences(seed, warm=0, time=HALF) for seed in (first, second))
    x, y = (jnp.concatenate([getattr(p, name) for p in (a, b)]) for name in ("inputs", "targets"))
    weights = jnp.zeros((2 * HALF, lab.B)).at[part * HALF : (part + 1) * HALF, CHOSEN].set(1.0)
    mask = jnp.zeros((2 * HALF, lab.B), bool).at[HALF, CHOSEN].set(reset)
    return Phases(None, x, y, weights, mask, {"reward": jnp.abs(y[..., 0])})


RESETTABLE = {
    "bptt": BPTT(),
    "tbptt": TBPTT(window=2),
    "drtrl": DRTRL(),
    "drtrl-segments": DRTRL(segment=2),
    "drtrl-trace": DRTRL(engine="trace"),
    "drtrl-vmap": DRTRL(engine="trace", batching="vmap"),
    "drtrl-window": DRTRL(engine="trace", window=2),
    "eprop-kappa": EProp(kappa=0.8),
    "eprop-random": EProp(feedback="random"),
    "ostl_recurrent": OSTLRecurrent(),
    "ostl_feedforward": OSTLFeedforward(),
    "snap": SnAp(),
    "three_factor": ThreeFactor(),
    "etrace-leak": ETrace(**LEAK),
    "etrace-ottt": ETrace(**OTTT),
    "readout_only": ReadoutOnly(),
}

RESET_IN_SHORT = {"bptt", "tbptt", "drtrl-segments", "drtrl-trace", "eprop-kappa", "ostl_recurrent", "snap"}
"""A rule of each kind of trace; the others are long."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in RESET_IN_SHORT else pytest.mark.long) for name in RESETTABLE]
)
def test_a_sequence_that_is_reset_is_the_sequence_alone_from_fresh(lab, name):
    """Whatever came before the reset, nothing is left of it: hidden states, traces, filters."""
    drive = lab.Drive(RESETTABLE[name], rewarded(lab.task()), halves(lab, 0, 1, 0, False))
    alone = drive.grads(halves(lab, 0, 1, 0, False))
    lab.same(drive.grads(halves(lab, 2, 0, 1, True)), alone)
    if name not in ("ostl_feedforward", "readout_only"):
        left = drive.grads(halves(lab, 2, 0, 1, False))
        assert lab.cosine(left, alone) < 0.9999, "negative control: without the reset something is"


@pytest.mark.parametrize(
    "strategy", [PPProp(engine="trace"), DNI(engine="trace", fit_epochs=1)], ids=["pp_prop", "dni"]
)
def test_a_reset_clears_every_trace_of_a_lane_and_of_no_other(lab, strategy):
    learner = strategy.bind(Objective(lab.task(), lambda x: x), lab.sequences())
    for trace in learner._sequence_traces():
        trace.value = jax.tree.map(jnp.ones_like, trace.value)
    learner._reset_with_traces(jnp.arange(lab.B) == CHOSEN)
    traces = [leaf for trace in learner._traces().values() for leaf in jax.tree.leaves(trace.value)]
    assert traces
    for leaf in traces:
        assert not leaf[CHOSEN].any() and leaf[:CHOSEN].all() and leaf[CHOSEN + 1 :].all()


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_after_a_reset_the_gradient_of_pp_prop_is_short_by_a_known_factor(lab, decay):
    """Its correction counts from the beginning of the batch, for all sequences: (1 - d^k) / (1 - d^n) after n
    time steps, k of them since the reset. The direction is that of the sequence alone, from initial states."""

    def only(phases: Phases, step: int) -> Phases:
        return replace(phases, weights=jnp.zeros_like(phases.weights).at[step, CHOSEN].set(1.0))

    fresh, after = halves(lab, 0, 1, 0, False), halves(lab, 2, 0, 1, True)
    drive = lab.Drive(PPProp(decay=decay, vjp="single-step"), rewarded(lab.task()), fresh)
    for k in (1, 2, HALF):
        alone, got = drive.grads(only(fresh, k - 1)), drive.grads(only(after, HALF + k - 1))
        factor = (1 - decay**k) / (1 - decay ** (HALF + k))
        wanted = {n: g if n == "out.weight" else jax.tree.map(lambda leaf: factor * leaf, g) for n, g in alone.items()}  # noqa: B023
        lab.same(got, wanted, 2e-5)
        assert factor < 0.95


# ------------------------------------------------------------------------------------- what a window goes over twice


class Noisy(brainstate.nn.Module):
    """Noise from the step's random numbers, or running means of the input."""

    def __init__(self, lab, running: bool):
        super().__init__()
        self.net = lab.task("lru").model
        self.mean = brainstate.LongTermState(jnp.zeros(lab.N_IN)) if running else None

    def update(self, x):
        if self.mean is None:
            return self.net(x + brainstate.random.randn(*x.shape))
        self.mean.value = 0.5 * self.mean.value + 0.5 * x.mean(0)
        return self.net(x - self.mean.value)


@pytest.mark.long
@pytest.mark.parametrize("what", ["noise", *longer("noise of the module", "running means")])
def test_a_window_puts_back_what_it_goes_over_twice(lab, what):
    """It is differentiated, then the trace goes over it: with the same noise, and the means of its entry. On an LRU
    D-RTRL is exact, so it is BPTT's gradient."""

    class Augmented(lab.Task):
        def learning_step(self, forward, x, y):
            return super().learning_step(forward, x + brainstate.random.randn(*x.shape), y)

    def task():
        return Augmented(lab.task("lru").model) if "module" in what else lab.Task(Noisy(lab, what == "running means"))

    phases = lab.sequences()
    truth = lab.learn(BPTT(), task(), phases)
    for window in (1, 2, 3):
        lab.same(lab.learn(DRTRL(engine="trace", window=window), task(), phases), truth, 1e-4)
    other = lab.learn(BPTT(), lab.task("lru"), phases)
    assert lab.cosine({n.removeprefix("net."): g for n, g in truth.items()}, other) < 0.99, "they matter"


# ------------------------------------------------------------------------------------------------- terms of the loss


@pytest.mark.parametrize(
    "strategy",
    [
        BPTT(),
        DRTRL(segment=3),
        *longer(
            TBPTT(window=2),
            DRTRL(engine="trace", window=3),
            DRTRL(),
            DRTRL(window=2),
            DRTRL(engine="trace"),
            DRTRL(engine="trace", window=2),
            DRTRL(engine="trace", vjp="single-step"),
            PPProp(window=2),
        ),
    ],
    ids=str,
)
def test_a_regulariser_of_the_weights_is_exact(lab, strategy):
    """A term 0.1 |W|^2 in the loss of every scored time step and sequence adds 0.2 W sum(w) to the gradient."""

    class Regularised(lab.Task):
        def learning_step(self, forward, x, y):
            weights = self.model.rnn.Wz.weight.value["weight"]
            return lab.squared(forward(x), y) + 0.1 * jnp.square(weights).sum()

    weights = jnp.asarray(np.random.default_rng(3).uniform(size=(lab.LEARN, lab.B)), jnp.float32)
    phases = lab.sequences(weights=weights)
    plain, task = lab.learn(strategy, lab.task(), phases), lab.task()
    held = task.model.rnn.Wz.weight.value["weight"]
    plain["rnn.Wz.weight"]["weight"] = plain["rnn.Wz.weight"]["weight"] + 0.2 * held * weights.sum()
    lab.same(lab.learn(strategy, Regularised(task.model), phases), plain, 2e-5)


EVERY = [
    BPTT(),
    DRTRL(segment=2, window=2),
    EProp(kappa=0.8),
    *longer(
        DRTRL(engine="trace", batching="vmap"),
        UORO(),
        TBPTT(window=2),
        DRTRL(),
        DRTRL(window=3),
        DRTRL(engine="trace", window=3),
        PPProp(window=2),
        OSTLRecurrent(),
        SnAp(),
        DNI(fit_epochs=2),
    ),
]


@pytest.mark.parametrize("strategy", EVERY, ids=str)
def test_a_regulariser_of_the_hidden_activity_is_that_of_an_output(lab, strategy):
    """The state that ``forward`` leaves is its time step's, and sends back what the same numbers do as an output."""

    class OfState(lab.Task):
        def learning_step(self, forward, x, y):
            return lab.squared(forward(x), y) + 0.3 * jnp.square(self.model.rnn.h.value).sum(-1)

    class OfOutput(lab.Task):
        def learning_step(self, forward, x, y):
            out, hidden = forward(x)
            return lab.squared(out, y) + 0.3 * jnp.square(hidden).sum(-1)

    got = lab.learn(strategy, OfState(lab.task().model), lab.sequences())
    lab.same(got, lab.learn(strategy, OfOutput(lab.task(states=True).model), lab.sequences()), 2e-5)
    assert lab.cosine(got, lab.learn(strategy, lab.task(), lab.sequences())) < 0.999, "the term matters"


@pytest.mark.parametrize("strategy", [*EVERY, ReadoutOnly()], ids=str)
def test_a_frozen_parameter_changes_nothing_for_the_others(lab, strategy):
    class Frozen(lab.Task):
        def trainable(self, name):
            return name != "rnn.Wz.weight"

    got = lab.learn(strategy, Frozen(lab.task().model), lab.sequences())
    whole = lab.learn(strategy, lab.task(), lab.sequences())
    assert whole.keys() - got.keys() == {"rnn.Wz.weight"}
    lab.same(got, {name: grad for name, grad in whole.items() if name in got}, 2e-5)


@pytest.mark.parametrize("strategy", [ReadoutOnly(), TBPTT(window=2), UORO()], ids=["readout_only", "tbptt", "uoro"])
def test_the_gradient_is_linear_in_the_weights(lab, strategy):
    rng = np.random.default_rng(2)
    parts = [jnp.asarray(rng.uniform(size=(lab.LEARN, lab.B)), jnp.float32) for _ in range(2)]
    drive = lab.Drive(strategy, lab.task(), lab.sequences(weights=parts[0]))
    first, second, both = (drive.grads(lab.sequences(weights=w)) for w in (*parts, sum(parts)))
    lab.same(both, jax.tree.map(jnp.add, first, second), 1e-4)
    assert lab.cosine(first, second) < 0.9999


def test_weights_of_a_piece_are_summed_in_float32():
    """Ones of half a mantissa: 3 x 301 of them sum to 904 in bfloat16."""
    ones = jnp.ones((6, 301), jnp.bfloat16)
    phases = Phases(None, jnp.zeros((6, 301, 1)), weights=ones)
    update = lambda grads, weight, metrics: {"weight": Mean(weight, jnp.float32(1))}  # noqa: E731
    for schedule, updates in ((UpdateSchedule(3), 2), (UpdateSchedule(), 1)):
        found = schedule.drive(phases, lambda sequences: ({}, {}), update)["weight"]
        assert float(found.num) == 6 * 301 and float(found.weight) == updates


def test_a_stateful_stream_of_uoro_begins_with_the_steps_own_random_numbers(lab):
    """As a sequence of stateful=False does, and not with a number of braintrace's whatever the seed."""
    phases = lab.sequences(warm=0)
    stream = lab.Drive(UORO(stateful=True), lab.task(), phases)
    first = stream.grads(phases)
    lab.same(first, lab.learn(UORO(), lab.task(), phases))
    assert lab.cosine(stream.grads(phases), first) < 0.9999, "and continues with others"
