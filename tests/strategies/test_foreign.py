"""The same flag on modules that nobody here had in mind: an integrator, and a task of braintools.cogtask."""

import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import jaxtrain as jt
from jaxtrain import DRTRL, TBPTT
from jaxtrain.strategies import PPProp
from tests.kit.tiers import longer

pytestmark = pytest.mark.full

RULES = {"drtrl": DRTRL(), "online": DRTRL(update_every=5), "pp_prop": PPProp(decay=0.5), "tbptt": TBPTT(window=10)}


class Integrator(jt.Module):
    """The running sum of a noisy input, regressed at every time step, with a penalty on weights and activity."""

    def build(self):
        class Net(brainstate.nn.Module):
            def __init__(self):
                super().__init__()
                self.cells = brainstate.nn.Sequential(
                    braintrace.nn.MiniGRU(1, 16), braintrace.nn.MinimalRNNCell(16, 16)
                )
                self.read = brainstate.nn.Linear(16, 1)

            def update(self, x):
                return self.read(self.cells(x))

        return Net()

    def learning_step(self, forward, x, y):
        error = jnp.square(forward(x) - y).mean(-1)
        activity = jnp.square(self.model.cells.layers[1].h.value).mean(-1)
        weights = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(self.model.read.weight.value))
        return error + 1e-4 * activity + 1e-5 * weights, {"error": error}

    def configure_optimizer(self):
        return braintools.optim.Adam(braintools.optim.ExponentialDecayLR(0.02, decay_steps=20, decay_rate=0.9))


class Sums:
    def batch(self, step):
        rng = np.random.default_rng((3, step))
        x = (rng.standard_normal((25, 16, 1)) * 0.3 + rng.uniform(-0.3, 0.3, (1, 16, 1))).astype(np.float32)
        return x, np.cumsum(x, 0)[5:] * 0.2  # five time steps of warm-up


class Decision(jt.Module):
    """Perceptual decision making of braintools: which of two noisy evidences is the larger; it is asked at the end."""

    environ = {"dt": 20.0 * u.ms}

    def build(self):
        class Net(brainstate.nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = braintrace.nn.GRUCell(9, 24)
                self.out = braintrace.nn.Linear(24, 3)

            def update(self, x):
                return self.out(self.rnn(x))

        return Net()

    def learning_step(self, forward, x, y):
        logits = forward(x)
        loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)
        return loss, {"accuracy": logits.argmax(-1) == y}

    def phases(self, batch):
        inputs, targets = batch
        weights = jnp.where(targets > 0, 1.0, 0.05)  # fixation is easy and long
        return jt.Phases(warmup=inputs[:2], inputs=inputs[2:], targets=targets[2:], weights=weights[2:])

    def configure_optimizer(self):
        return braintools.optim.Adam(0.01)


class Trials:
    """Batches of a task of braintools.cogtask, which draws from brainstate's random numbers."""

    def __init__(self):
        with brainstate.environ.context(**Decision.environ):
            self.task = braintools.cogtask.PerceptualDecisionMaking(t_stimulus=300.0 * u.ms, coherences=(51.2, 80.0))

    def batch(self, step):
        with brainstate.random.seed_context(step), brainstate.environ.context(**Decision.environ):
            inputs, targets = self.task.batch_sample(16)
        return np.asarray(inputs), np.asarray(targets)


@pytest.mark.parametrize("name", ["drtrl", "online", *longer("pp_prop", "tbptt")])
@pytest.mark.parametrize(
    "module,data,steps,tag",
    [(Decision, Trials, 60, "train/loss"), *longer((Integrator, Sums, 150, "train/error"))],
    ids=["cogtask", "integrator"],
)  # fmt: skip
def test_the_same_flag_trains_a_foreign_module(module, data, steps, tag, name):
    fit = jt.Fit(RULES[name], max_steps=steps, log_every=steps // 10, clip=1.0)
    losses = [row[tag] for row in fit.run(module(), data()).history]
    assert losses[-1] < 0.5 * losses[0], losses
    assert np.isfinite(losses).all()
