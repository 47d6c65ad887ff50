"""Recordings of hidden states, spikes and outputs."""

import brainpy.state
import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import jaxtrain as jt
from tests.small import Linear, Lines, LinesOf, line


class Spiking(jt.Module):
    """Recurrent LIF units, then a GRU."""

    environ = {"dt": 1.0 * u.ms}

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.current = braintrace.nn.Linear(5, 3)
            self.neurons = brainpy.state.LIF(3, tau=5.0 * u.ms, spk_fun=braintools.surrogate.ReluGrad())
            self.rnn = braintrace.nn.GRUCell(3, 4)

        def update(self, x):
            spikes = self.neurons.get_spike()
            self.neurons(40.0 * jnp.square(self.current(jnp.concatenate([x, spikes], -1))) * u.mA)
            return 2 * self.rnn(self.neurons.get_spike())

    def build(self):
        return self.Net()

    def predict_step(self, forward, x):
        return forward(x).sum(-1)

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x)).mean(-1)


NAMES = ["neurons.V", "rnn.h", "neurons.spike", "output"]
BATCHES = [(line(i, time=6)[0], line(i, time=4)[1]) for i in range(2)]  # two time steps of warm-up


def by_hand(module, batches):
    """A loop over ``model(x)``."""
    model, found = module.model, {name: [] for name in NAMES}
    for x, _ in batches:
        with brainstate.environ.context(dt=1.0 * u.ms, fit=False):
            brainstate.nn.init_all_states(model, batch_size=x.shape[1])
            steps = []
            for now in x:
                out = model(now)
                V = model.neurons.V.value.to_decimal(u.mV)
                steps.append([V, model.rnn.h.value, model.neurons.get_spike(), out])
        for name, *values in zip(NAMES, *steps, strict=True):
            found[name].append(np.stack(values))
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


@pytest.fixture(scope="module")
def spiking():
    fit, module = jt.Fit("bptt", max_steps=1), Spiking()
    recorded = fit.record(module, BATCHES, batch_first=False)
    return fit, module, recorded


def test_everything_is_recorded_over_both_phases(spiking):
    fit, module, recorded = spiking
    truth = by_hand(module, BATCHES)
    assert sorted(recorded) == sorted(NAMES) and all(type(each) is np.ndarray for each in recorded.values())
    for name, values in truth.items():
        np.testing.assert_allclose(recorded[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert recorded["neurons.V"].shape == (6, 4, 3) and 0 < recorded["neurons.spike"].mean() < 1
    np.testing.assert_allclose(fit.predict(module, BATCHES), recorded["output"][2:].sum(-1), rtol=1e-5)


def test_units_are_stated(spiking):
    recorded = spiking[-1]
    assert {name: str(unit) for name, unit in recorded.units.items()} == {"neurons.V": "mV"}
    assert u.get_unit(recorded["neurons.V"] * recorded.units["neurons.V"]) == u.mV


def test_chosen_states_in_the_layout_of_the_data(spiking):
    fit, module, recorded = spiking
    data = [(x.swapaxes(0, 1), y.swapaxes(0, 1)) for x, y in BATCHES]
    found = fit.record(module, data, ["rnn.h", "neurons.spike"], batch_first=True)
    assert sorted(found) == ["neurons.spike", "rnn.h"]
    for name, values in found.items():
        np.testing.assert_allclose(values.swapaxes(0, 1), recorded[name], rtol=1e-5, atol=1e-6)


def test_an_unknown_state_is_refused_with_those_that_there_are(spiking):
    fit, module, _ = spiking
    said = r"record: Net has no 'rnn'; it has neurons.V, rnn.h, neurons.spike, output"
    with pytest.raises(ValueError, match=said):
        fit.record(module, BATCHES, ["rnn"])
    with pytest.raises(TypeError, match=r'record: states=.*; expected a list of names, as \["rnn.h", "output"\]'):
        fit.record(module, BATCHES, "rnn.h")
    with pytest.raises(TypeError, match=r"record: states=\[\]; expected a list of names"):
        fit.record(module, BATCHES, [])


class Shared(Linear):
    """The batch is the last axis of one state, and another one is shared by all sequences."""

    class Net(Linear.Net):
        def init_state(self, batch_size=None, **_):
            super().init_state(batch_size)
            self.last = brainstate.HiddenState(jnp.zeros((2, batch_size or 1)))
            self.count = brainstate.HiddenState(jnp.zeros(()))

        def update(self, x):
            self.last.value = x.T
            self.count.value = self.count.value + 1
            return super().update(x)


def test_sequences_are_on_one_axis_whatever_the_state():
    x = line(0)[0]
    found = jt.Fit("bptt", max_steps=1).record(Shared(), [x, x], ["last", "count"], batch_first=False)
    np.testing.assert_array_equal(found["last"], np.concatenate([x, x], axis=1))
    np.testing.assert_array_equal(found["count"], np.tile([[1.0], [2.0], [3.0]], (1, 4)))


def test_resets_apply_and_a_mapped_model_is_recorded():
    class Resets(jt.Module):
        def build(self):
            return braintrace.nn.GRUCell(2, 3)

        def phases(self, batch):
            return jt.Phases(warmup=batch["x"][:1], inputs=batch["x"][1:], reset=batch["reset"])

    x, reset = line(0, time=5)[0], np.zeros((5, 2), bool)
    reset[3, 1] = True
    fit, module = jt.Fit(jt.BPTT(batching="vmap"), max_steps=1), Resets()
    found = fit.record(module, [{"x": x, "reset": reset}])["h"]
    model, truth = module.model, []
    brainstate.nn.init_all_states(model, batch_size=2)
    for t in range(5):
        model.h.value = jnp.where(reset[t][:, None], 0.0, model.h.value)
        truth.append(model(x[t]))
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6)


def test_a_data_set_is_recorded_in_its_order_without_padding():
    x = [line(i, time=time, batch=1)[0][:, 0] for i, time in enumerate((3, 2, 3))]
    fit, module = jt.Fit("bptt", max_steps=1), Linear()
    data = jt.datasets.bucket(x, batch_size=2, lengths=(3,), last="pad")
    found = fit.record(module, data)
    for each, own in zip(found, x, strict=True):
        np.testing.assert_allclose(each["h"], fit.predict(module, [own[:, None]])[:, 0], atol=1e-6)
    assert list(found[0]) == ["h", "output"] and found[0].units == {}


def test_a_callback_records_with_the_values_of_the_step():
    seen = []

    class Look(jt.Callback):
        def on_validation_end(self, run, metrics):
            seen.append(run.record([line(0)[0]], ["h"])["h"])
            np.testing.assert_array_equal(seen[-1], run.predict([line(0)[0]]))

    for seeds in (None, 2):
        fit = jt.Fit("bptt", max_steps=2, seeds=seeds, validate_every=1, callbacks=[Look()])
        fit.run(Linear(), jt.DataModule(Lines(), LinesOf(1)))
    assert len(seen) == 4 and (seen[0] != seen[1]).any()


class Quiet(jt.Module):
    """Only the firing rate is penalised."""

    environ = {"dt": 1.0 * u.ms}

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.current = braintrace.nn.Linear(2, 3, b_init=braintools.init.Constant(0.5))
            self.neurons = brainpy.state.LIF(3, tau=5.0 * u.ms, spk_fun=braintools.surrogate.ReluGrad())
            self.readout = braintrace.nn.Linear(3, 2)

        def update(self, x):
            self.neurons(20.0 * self.current(x) * u.mA)
            return self.readout(self.neurons.get_spike())

    def build(self):
        return self.Net()

    def learning_step(self, forward, x, y):
        forward(x)
        return jnp.square(self.model.neurons.get_spike().mean(-1) - 0.3)

    def configure_optimizer(self):
        return braintools.optim.SGD(1.0)


@pytest.mark.parametrize("strategy", ["bptt", "drtrl"])
def test_a_penalty_on_firing_rates_is_credited(strategy):
    fit, module, x = jt.Fit(strategy, max_steps=1), Quiet(), line(0, time=8)[0]
    fit.record(module, [x], ["neurons.V"], batch_first=False)
    before = dict(module.model.current.weight.value)
    report = fit.run(module, [(x, line(0, time=8)[1])], batch_first=False).report["parameters"]

    def loss(params):
        spike, V, total = braintools.surrogate.ReluGrad(), jnp.zeros((2, 3)), 0.0
        for now in x:
            current = 20.0 * (now @ params["weight"] + params["bias"])
            V = (V - spike(V - 1.0)) * np.exp(-0.2) + (1 - np.exp(-0.2)) * current
            total = total + jnp.square(spike(V - 1.0).mean(-1) - 0.3).mean()
        return total / len(x)

    grads = jax.grad(loss)(before)
    assert all(np.abs(grad).max() > 1e-3 for grad in grads.values())
    assert report["current.weight"]["trains"] == "yes" and report["readout.weight"]["trains"] == "no"
    for name, value in module.model.current.weight.value.items():
        np.testing.assert_allclose(value, before[name] - grads[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_rule_that_does_not_credit_the_penalty_says_so():
    with pytest.raises(ValueError, match="'readout_only' trains none of the parameters"):
        jt.Fit("readout_only", max_steps=1).run(Quiet(), [line(0, time=8)], batch_first=False)
