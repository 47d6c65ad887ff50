"""One loss per sequence, of the running sum or mean: against loops written by hand and ``jax.grad``."""

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain import BPTT, DRTRL
from jaxtrain.core.state import parameters
from jaxtrain.datasets import bucket
from jaxtrain.nn import Running

N, OUT, KEPT = 4, 2, 0.8
PHASES = pytest.mark.parametrize("warmup", [True, False], ids=["warm-up", "weights"])
MEAN = pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])


class Units(brainstate.nn.Module):
    def __init__(self, n_in, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.mix = braintrace.nn.Linear(n_in + N * recurrent, N)
        self.out = braintrace.nn.Linear(N, OUT)

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((N,) if batch_size is None else (batch_size, N)))

    def update(self, x):
        given = jnp.concatenate([x, self.h.value], -1) if self.recurrent else x
        self.h.value = jnp.tanh(KEPT * self.h.value + self.mix(given))
        return self.out(self.h.value)


def task(lab, mean, recurrent):
    with brainstate.random.seed_context(0):
        model = Running(Units(lab.N_IN, recurrent), OUT, mean=mean)
        for state in parameters(model).values():
            state.value = jax.tree.map(lambda leaf: leaf + 0.3 * brainstate.random.randn(*leaf.shape), state.value)
    return lab.Task(model)


def late(lab, warmup):
    """A loss at the last time step only: the others are a warm-up, or have weight 0."""
    if warmup:
        return lab.sequences(warm=6, time=1)
    return lab.sequences(warm=0, time=7, weights=jnp.zeros(7).at[-1].set(1.0))


def by_hand(model, phases, *, mean, recurrent, frozen):
    """The gradient of the loss of the summed outputs.

    Without ``frozen`` it is exact. With it, units pass on their past as D-RTRL has it, with a constant recurrent input;
    the output of each time step (a window of one) is differentiated as it is.
    """
    x = phases.inputs if phases.warmup is None else np.concatenate([phases.warmup, phases.inputs])

    def loss(values):
        affine = lambda name, x: x @ values[name]["weight"] + values[name]["bias"]  # noqa: E731
        h, total = jnp.zeros((x.shape[1], N)), jnp.zeros((x.shape[1], OUT))
        for given in x:
            grow = lambda fed, h=h, given=given: jnp.tanh(  # noqa: E731
                KEPT * h + affine("network.mix.weight", jnp.concatenate([given, fed], -1) if recurrent else given)
            )
            total = total + affine("network.out.weight", grow(h))
            h = grow(jax.lax.stop_gradient(h) if frozen else h)
        result = total / len(x) if mean else total
        return jnp.square(result - phases.targets[-1]).mean(-1).sum()

    return jax.jit(jax.grad(loss))({name: state.value for name, state in parameters(model).items()})


@PHASES
@MEAN
def test_bptt_differentiates_the_loss_of_a_sequence(lab, warmup, mean):
    phases = late(lab, warmup)
    wanted = by_hand(task(lab, mean, True).model, phases, mean=mean, recurrent=True, frozen=False)
    lab.same(lab.learn(BPTT(), task(lab, mean, True), phases), wanted)


@PHASES
@MEAN
@pytest.mark.parametrize("recurrent", [False, True], ids=["each alone", "recurrent"])
def test_drtrl_credits_earlier_time_steps_through_the_sum(lab, warmup, mean, recurrent):
    """All of BPTT's gradient but what D-RTRL does not represent: the mixing of the units."""
    phases = late(lab, warmup)
    wanted = by_hand(task(lab, mean, recurrent).model, phases, mean=mean, recurrent=recurrent, frozen=True)
    got = lab.learn(DRTRL(window=1, readout_memory=True), task(lab, mean, recurrent), phases)
    lab.same(got, wanted)
    if not recurrent:
        lab.same(got, lab.learn(BPTT(), task(lab, mean, recurrent), phases))


def test_the_last_time_step_of_padded_sequences_has_the_sum_of_its_own():
    """``bucket(scored=1)``: the result of a sequence does not depend on the padding."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 3)).astype("float32") for n in (2, 5, 3)]

    class Summed(jt.Module):
        def build(self):
            return Running(Units(3, True), OUT)

        def learning_step(self, forward, x, y):
            return jnp.square(forward(x) - y[:, None]).mean(-1)

    module, fit = Summed(), jt.Fit("bptt")
    data = bucket(x, [1.0, 2.0, 3.0], batch_size=3, lengths=[6], scored=1, shuffle=False)
    together = fit.validate(module, data)["val/loss"]
    alone = [
        fit.validate(module, [(a[:, None], np.full((1, 1), y, "float32"))], batch_first=False)["val/loss"]
        for a, y in zip(x, (1.0, 2.0, 3.0), strict=True)
    ]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


def test_a_size_that_does_not_fit():
    class Wrong(jt.Module):
        def build(self):
            return Running(Units(3, False), OUT + 1)

        def learning_step(self, forward, x, y):
            return forward(x).sum(-1)

    with pytest.raises(ValueError, match=r"Running: the output has shape \(2,\)|\(1, 2\), but size=3 was given"):
        jt.Fit("bptt").validate(Wrong(), [(np.zeros((2, 1, 3)), np.zeros((2, 1)))], batch_first=False)
