"""Figures of activity, spikes and the eigenvalues of the recurrence."""

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
from jaxtrain.callbacks import Activity, RecurrentSpectrum, SpikeRaster
from jaxtrain.callbacks.drawing import activity, raster, spectrum
from jaxtrain.callbacks.recurrent_spectrum import time_constants
from tests.small import Linear, leaves, line, same


class Spiking(jt.Module):
    environ = {"dt": 1.0 * u.ms}

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.current = braintrace.nn.Linear(2, 3)
            self.neurons = brainpy.state.LIF(3, tau=5.0 * u.ms, spk_fun=braintools.surrogate.ReluGrad())

        def update(self, x):
            self.neurons(self.current(x) * 20 * u.mA)
            return self.neurons.get_spike()

    def build(self):
        return self.Net()

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x)).mean(-1)

    def configure_optimizer(self):
        return braintools.optim.SGD(0.01)


class Seen(jt.Callback):
    """Keeps figures and logged values."""

    rank = "record"

    def reset(self):
        self.figures, self.logged = {}, []

    def on_figure(self, run, tag, figure):
        self.figures[tag] = figure

    def on_log(self, run, row):
        self.logged.append(row.get("spectrum/radius"))


DATA = [(line(i, time=8)[0], line(i, time=6)[1]) for i in range(3)]  # two time steps of warm-up


@pytest.mark.full
def test_a_run_draws_what_it_does_and_learns_the_same(tmp_path):
    runs = {}
    for name, callbacks in (("plain", []), ("drawn", [Activity(2), SpikeRaster("1ep"), RecurrentSpectrum(2), Seen()])):
        fit, module = jt.Fit("bptt", max_steps=3, run_dir=tmp_path / name, callbacks=callbacks), Spiking()
        fit.run(module, jt.DataModule(DATA, batch_first=False))
        runs[name] = leaves(module)
    assert same(runs["plain"], runs["drawn"])
    files = sorted(path.name for path in (tmp_path / "drawn/figures").iterdir())
    assert files == ["activity-00000002.png", "spectrum-00000002.png", "spikes-00000003.png"]
    figures = callbacks[-1].figures
    assert figures["activity"].axes[0].get_title(loc="left") == "neurons.V (mV)"
    assert [x.get_xdata()[0] for x in figures["activity"].axes[0].lines] == [1.5], "the end of the warm-up"
    shown = np.asarray(figures["activity"].axes[0].images[0].get_array())
    assert shown.shape == (3, 8)
    recorded = fit.record(module, DATA[:1], batch_first=False)  # two updates of 0.01 later
    np.testing.assert_allclose(shown.T, recorded["neurons.V"][:, 0], atol=0.5)
    title = figures["spikes"].axes[0].get_title(loc="left")
    assert title.startswith("neurons.spike: 0") and title.endswith(" per unit and time step")


def test_the_jacobian_is_that_of_one_step():
    class Mixed(jt.Module):
        """Two states, one of which has its batch on the last axis, and an integer that counts."""

        class Net(brainstate.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = brainstate.ParamState(jnp.array([[0.3, -0.9], [0.8, 0.4]], jnp.float32))

            def init_state(self, batch_size=None, **_):
                self.a = brainstate.HiddenState(jnp.zeros((batch_size, 2)))
                self.b = brainstate.HiddenState(jnp.zeros((2, batch_size)))
                self.n = brainstate.HiddenState(jnp.zeros((batch_size,), jnp.int32))

            def update(self, x):
                self.n.value = self.n.value + 1
                self.a.value, self.b.value = self.step(self.a.value, self.b.value, x)
                return self.a.value

            def step(self, a, b, x):
                return jnp.tanh(a @ self.w.value + x + b.T), 0.5 * b + a.T

        def build(self):
            return self.Net()

        def learning_step(self, forward, x, y):
            return jnp.square(forward(x)).mean(-1)

        def configure_optimizer(self):
            return braintools.optim.SGD(0.0)

    seen, module, x = {}, Mixed(), DATA[0][0]

    class Keep(RecurrentSpectrum):
        def on_probe(self, run, values):
            seen.update(values)
            super().on_probe(run, values)

    watch = Seen()
    jt.Fit("bptt", max_steps=1, callbacks=[Keep(1), watch]).run(module, jt.DataModule(DATA[:1], batch_first=False))
    a, b, step = jnp.zeros((1, 2)), jnp.zeros((2, 1)), module.model.step
    for now in x[:-1]:
        a, b = step(a, b, now[:1])

    def flat(h):
        new = step(h[:2].reshape(1, 2), h[2:].reshape(2, 1), x[-1, :1])
        return jnp.concatenate([leaf.ravel() for leaf in new])

    truth = jax.jacobian(flat)(jnp.concatenate([a.ravel(), b.ravel()]))
    np.testing.assert_allclose(np.linalg.eigvals(seen["jacobian"]), np.linalg.eigvals(truth), atol=1e-5)
    np.testing.assert_allclose(seen["jacobian"], truth, atol=1e-6)
    assert watch.logged == [pytest.approx(np.abs(np.linalg.eigvals(truth)).max(), rel=1e-5)]


@pytest.mark.parametrize("batching", ["batched", "vmap"])
def test_the_time_constant_of_a_leaky_unit_is_its_own(batching):
    seen = {}

    class Keep(RecurrentSpectrum):
        def on_probe(self, run, values):
            seen.update(values)

    silent = [(0 * x, y) for x, y in DATA[:1]]
    fit = jt.Fit(jt.BPTT(batching=batching), max_steps=1, callbacks=[Keep(1)])
    fit.run(Spiking(), jt.DataModule(silent, batch_first=False))
    times = time_constants(np.linalg.eigvals(seen["jacobian"]), float(u.get_mantissa(seen["dt"])))
    np.testing.assert_allclose(times, 5.0, rtol=1e-4)
    assert str(u.get_unit(seen["dt"])) == "ms"


def test_time_constants():
    found = time_constants(np.array([0.5, -0.5j, 0.0, 1.0, -2.0]), 2.0)
    np.testing.assert_allclose(found, [2 / np.log(2), 2 / np.log(2), 0, np.inf, np.inf])


def test_a_spectrum_that_is_not_finite_does_not_end_the_run():
    class Tanh(Linear):
        class Net(Linear.Net):
            def update(self, x):
                self.h.value = jnp.tanh(0.5 * self.h.value + x @ self.w.value)
                return self.h.value

    x, y = line(0)
    data = jt.DataModule([(np.where(np.arange(3)[:, None, None] == 1, np.float32(np.nan), x), y)], batch_first=False)
    seen = Seen()
    fit = jt.Fit("bptt", max_steps=1, nonfinite="warn", callbacks=[RecurrentSpectrum(1), seen])
    assert fit.run(Tanh(), data).status == "finished"
    assert np.isnan(seen.logged[-1]) and not seen.figures


def test_what_figures_show():
    spikes = np.zeros((5, 300))
    spikes[2, 1] = spikes[4, 299] = 1
    ax = raster({"a.spike": spikes}, 0, 7).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[2, 1]])
    assert ax.get_title(loc="left") == "a.spike, first 200 of 300 units: 0.001 per unit and time step"
    shown = activity({"h": np.ones((5, 2))}, 2, 7).axes[0]
    assert shown.get_title(loc="left") == "h" and shown.lines[0].get_xdata()[0] == 1.5
    assert all(float(tick).is_integer() for tick in [*shown.get_xticks(), *shown.get_yticks()])
    values = np.array([0.5, 1.0])
    plane, ranks = spectrum(values, time_constants(values, 1.0), "time steps", 7).axes
    assert ranks.get_title() == "1 of 2 do not decay" and plane.lines[1].get_xydata().tolist() == [[0.5, 0], [1, 0]]
    assert ranks.lines[0].get_ydata() == pytest.approx([1 / np.log(2)])


def test_what_cannot_be_drawn_is_refused_and_the_advice_works():
    data = jt.DataModule([line(0)], batch_first=False)

    def run(callback):
        return jt.Fit("bptt", max_steps=1, callbacks=[callback]).run(Linear(), data)

    with pytest.raises(ValueError, match="SpikeRaster: no part of Net has a method get_spike; use Activity"):
        run(SpikeRaster(1))
    with pytest.raises(ValueError, match="record: Net has no 'x'; it has h, output"):
        run(Activity(1, states=["x"]))
    assert run(Activity(1, states=["output"])).status == "finished"
    with pytest.raises(ValueError, match=r'Activity: states is \'h\'; expected a list of names, as \["rnn.h"\]'):
        Activity(1, states="h")
    with pytest.raises(ValueError, match=r"SpikeRaster: states is \[\]; expected a list of names"):
        SpikeRaster(1, states=[])
    with pytest.raises(ValueError, match=r"RecurrentSpectrum\(every=\'1s\'\): expected steps \(500\) or epochs"):
        RecurrentSpectrum("1s")
