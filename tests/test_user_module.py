"""Somebody else's task from end to end: a module, data and callback of their own, nothing of ours but Fit."""

import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import jaxtrain as jt
from tests.kit.tiers import longer
from tests.small import Linear, Lines, leaves, same

pytestmark = pytest.mark.full

T, B = 6, 4


class TwoLayers(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = braintrace.nn.MiniGRU(3, 5)
        self.second = braintrace.nn.GRUCell(5, 4)
        self.out = braintrace.nn.Linear(4, 2)

    def update(self, x):
        return self.out(self.second(self.first(x)))


class Regression(jt.Module):
    """A target at every time step."""

    def build(self):
        return TwoLayers()

    def learning_step(self, forward, x, y):
        error = forward(x) - y
        return jnp.square(error).sum(-1), {"absolute": jnp.abs(error).mean(-1)}

    def configure_optimizer(self):
        return optax.adam(0.02)


def series(seed, batch=B):
    """The running mean of the inputs, and their last value."""
    x = np.random.default_rng(seed).normal(size=(T, batch, 3)).astype(np.float32)
    y = np.stack([np.cumsum(x[..., 0], 0) / np.arange(1, T + 1)[:, None], x[..., 1]], -1)
    return x, y.astype(np.float32)


class History(jt.Callback):
    def __init__(self):
        self.losses, self.epochs, self.validations = [], [], []

    def on_chunk_end(self, run, metrics):
        self.losses.extend(metrics["loss"])

    def on_epoch_end(self, run):
        self.epochs.append(run.step)

    def on_validation_end(self, run, metrics):
        self.validations.append(metrics["val/absolute"])


@pytest.mark.parametrize("strategy", ["drtrl", *longer("bptt", jt.DRTRL(window=3))])
def test_regression_on_a_plain_list(strategy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history, module = History(), Regression()
    train = [series(seed) for seed in range(8)]
    data = jt.DataModule(train, [series(100), series(101)])
    fit = jt.Fit(strategy, max_epochs=2, validate_every="1ep", callbacks=[history])
    result = fit.run(module, data)
    assert (result.status, result.step) == ("finished", 16) and history.epochs == [8, 16]
    assert len(history.losses) == 16 and np.mean(history.losses[8:]) < np.mean(history.losses[:8])
    assert history.validations == [pytest.approx(v) for v in history.validations] and len(history.validations) == 2
    assert fit.validate(module, data)["val/absolute"] == pytest.approx(history.validations[-1])
    outputs = fit.predict(module, [series(7)[0], series(8)[0], series(9, batch=3)[0]])
    assert outputs.shape == (T, 2 * B + 3, 2) and np.isfinite(outputs).all()
    short = fit.predict(module, [series(9, batch=3)[0]])
    np.testing.assert_allclose(outputs[:, -3:], short, rtol=1e-5, atol=1e-6)
    assert list(tmp_path.iterdir()) == [], "without a run directory nothing is written"


def test_groups_of_parameters_and_frozen_ones():
    class Groups(Regression):
        def configure_optimizer(self):
            return {"in": optax.inject_hyperparams(optax.sgd)(0.0), "out": braintools.optim.Adam(0.01)}

        def group(self, name):
            return "out" if name.startswith("out") else "in"

        def trainable(self, name):
            return not name.startswith("second")

    module, start = Groups(), Groups()
    jt.Fit("bptt", max_steps=1, seed=3).run(start, [series(0)])
    module.model = start.model
    before = leaves(module)
    rates = {}

    class Rates(jt.Callback):
        def on_chunk_end(self, run, metrics):
            rates.update({name: values[-1] for name, values in metrics.items() if name.startswith("lr")})

    jt.Fit("bptt", max_steps=2, callbacks=[Rates()]).run(module, [series(0)])
    after = leaves(module)
    changed = {name for name in after if not same({name: before[name]}, {name: after[name]})}
    assert changed and all(name.startswith("out") for name in changed)
    assert rates == {"lr/in": 0.0, "lr/out": pytest.approx(0.01)}


def test_a_spiking_network():
    import brainpy.state
    import brainunit as u

    class Spiking(brainstate.nn.Module):
        """Recurrent leaky integrate-and-fire neurons and a readout of their potentials."""

        def __init__(self):
            super().__init__()
            self.neurons = brainpy.state.LIF(5, tau=10.0 * u.ms, spk_fun=braintools.surrogate.ReluGrad())
            self.into = braintrace.nn.Linear(3 + 5, 5)
            self.out = braintrace.nn.Linear(5, 2)

        def update(self, x):
            spikes = self.neurons.get_spike()
            self.neurons(20.0 * self.into(jnp.concatenate([x, spikes], -1)) * u.mA)
            return self.out(self.neurons.get_spike())

    class Module(Regression):
        environ = {"dt": 1.0 * u.ms}

        def build(self):
            return Spiking()

    for strategy in ("bptt", "drtrl"):
        module = Module()
        fit = jt.Fit(strategy, max_steps=6, log_every=3)
        result = fit.run(module, [series(seed) for seed in range(3)])
        assert result.status == "finished" and np.isfinite(result.history[-1]["train/loss"])
        assert result.history[-1]["grad_norm"] > 0 and fit.validate(module, jt.DataModule([], [series(5)]))


def notes_of(mistake):
    with pytest.raises(Exception) as caught:
        mistake()
    return "; ".join(note for note in caught.value.__notes__ if note.startswith("jaxtrain: "))


def test_an_error_in_phases_comes_with_the_shapes():
    class Pair(Linear):
        def phases(self, batch):
            x, y = batch
            return jt.Phases(None, x, y)

    x, y = Lines().batch(0)
    note = "jaxtrain: in Pair.phases, given a batch of arrays of shape "
    assert note + "((3, 2, 2), (3, 2, 3), (3, 2, 3)), (T, B, ...)" in notes_of(
        lambda: jt.Fit("bptt", max_steps=1).run(Pair(), [(x, y, y)], batch_first=False)
    )
    inputs = np.concatenate([x, x])
    assert note + "(6, 2, 2), (T, B, ...)" in notes_of(lambda: jt.Fit("bptt").predict(Pair(), [inputs]))


class Leaky(jt.Module):
    def build(self):
        return braintrace.nn.LeakyRateReadout(2, 3)

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - y).mean(-1)

    def configure_optimizer(self):
        return optax.adam(1e-3)


def test_a_value_that_the_environment_lacks_is_named_and_the_advice_works():
    run = lambda module: jt.Fit("bptt", max_steps=1).run(module, Lines(), batch_first=False)  # noqa: E731
    note = notes_of(lambda: run(Leaky()))
    assert note.startswith(
        "jaxtrain: the model of Leaky needs 'dt': set Module.environ, as environ = {'dt': 1.0 * u.ms}"
    )

    class Plain(Leaky):
        environ = {"dt": 1.0}

    note = notes_of(lambda: run(Plain()))
    assert "needs 'dt' with a unit, and has 1.0: set Module.environ, as environ = {'dt': 1.0 * u.ms}" in note

    class Advised(Leaky):
        environ = {"dt": 1.0 * u.ms}

    assert run(Advised()).status == "finished"


def test_a_hidden_state_without_a_batch_axis_is_named_and_the_advice_works():
    class Early(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = braintrace.nn.Linear(2 + 3, 3)
            self.h = brainstate.HiddenState(jnp.zeros(3))

        def update(self, x):
            self.h.value = self.mix(jnp.concatenate([x, self.h.value], -1))
            return self.h.value

    class Advised(Early):
        def init_state(self, batch_size=None, **_):
            self.h = brainstate.HiddenState(jnp.zeros((3,) if batch_size is None else (batch_size, 3)))

    def run(kind):
        module = Linear()
        module.build = kind
        return jt.Fit(jt.BPTT(batching="batched"), max_steps=1).run(module, Lines(), batch_first=False)

    note = notes_of(lambda: run(Early))
    assert (
        "the hidden state 'h' has shape (3,), without a batch axis: make it in init_state(self, batch_size=None" in note
    )
    assert run(Advised).status == "finished"


def test_what_jax_says_of_a_step_comes_with_where_and_what_to_do():
    class Branches(Linear):
        def learning_step(self, forward, x, y):
            loss = jnp.square(forward(x) - y).mean(-1)
            return loss if loss.sum() > 1 else 2 * loss

    class Misfits(Linear):
        def learning_step(self, forward, x, y):
            return jnp.square(forward(x) @ jnp.zeros((7, 3)) - y).mean(-1)

    class Reshapes(Linear):
        def learning_step(self, forward, x, y):  # JAX's message has the word "into"
            return forward(x).reshape(7)

    class Labels(Linear):
        def learning_step(self, forward, x, y):
            return optax.softmax_cross_entropy_with_integer_labels(forward(x), y[:, 0])

    for module, kind, what in (
        (Labels, TypeError, "y is float32, and class labels must be integers: pass targets.astype('int32')"),
        (Branches, jax.errors.TracerBoolConversionError, "values are not known while tracing: use jnp.where or "),
        (Reshapes, TypeError, "check that the model's sizes fit these shapes"),
        (Misfits, TypeError, "check that the model's sizes fit these shapes"),
    ):
        with pytest.raises(kind) as caught:
            jt.Fit("bptt", max_steps=2).run(module(), Lines())
        (note,) = [note for note in caught.value.__notes__ if note.startswith("jaxtrain: in ")]
        shapes = "x of shape (2, 2) and y of shape (2, 3), (B, ...)"
        start = f"jaxtrain: in {module.__name__}.learning_step, traced for one time step of a batch with {shapes}; "
        assert note.startswith(start + what)
