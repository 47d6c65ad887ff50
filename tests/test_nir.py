"""NIR files: read by NIR's own library, and simulated in numpy by the equations of NIR's documentation."""

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
from jaxtrain import pretrained
from jaxtrain.core.state import create_hidden, seeded

nir = pytest.importorskip("nir", reason="the extra dev is not installed")

DT = 0.5e-3  # seconds


class Spiking(brainstate.nn.Module):
    def __init__(self, reset: str, bias: bool = True):
        super().__init__()
        self.neuron = brainpy.state.LIF(
            5, R=2.0 * u.kohm, tau=jnp.linspace(5.0, 20.0, 5) * u.ms, V_th=-50.0 * u.mV, V_reset=-63.0 * u.mV,
            V_rest=-60.0 * u.mV, spk_reset=reset, V_initializer=braintools.init.Constant(-60.0 * u.mV),
        )  # fmt: skip
        self.synapse = braintrace.nn.Linear(
            3, 5, w_init=braintools.init.Normal(0.0 * u.uA, 30.0 * u.uA),
            b_init=braintools.init.Constant(6.0 * u.uA) if bias else None,
        )  # fmt: skip
        self.deep = brainstate.nn.Sequential(
            braintrace.nn.Linear(
                5,
                4,
                w_init=braintools.init.Normal(0.0 * u.mA, 20.0 * u.mA),
                b_init=braintools.init.Constant(1.0 * u.mA),
            ),
            brainpy.state.LIF(4, tau=8.0 * u.ms, spk_reset=reset),
        )
        self.readout = braintrace.nn.LeakyRateReadout(4, 2, tau=10.0 * u.ms)

    def update(self, x):
        return self.readout(self.deep(self.neuron(self.synapse(x))))


class Task(jt.Module):
    environ = {"dt": 0.5 * u.ms}

    def __init__(self, make):
        self.make = make
        with brainstate.environ.context(**self.environ), seeded(3):
            self.model = make()

    def learning_step(self, forward, x, y):
        raise NotImplementedError

    def configure_optimizer(self):
        raise NotImplementedError


def outputs(task: Task, xs: np.ndarray) -> np.ndarray:
    """What the network itself computes, (T, 2)."""
    with brainstate.environ.context(**task.environ, fit=False):
        create_hidden(task.model, 1, False)
        return np.asarray(brainstate.transform.for_loop(task.model, jnp.asarray(xs[:, None])))[:, 0]


def simulate(graph, xs: np.ndarray, dt: float) -> tuple[np.ndarray, int]:
    """Integrate the graph exactly over steps of ``dt`` in which inputs are constant. Returns outputs and spikes."""
    order, following = ["input"], dict(graph.edges)
    while order[-1] != "output":
        order.append(following[order[-1]])
    v = {name: node.v_leak.copy() for name, node in graph.nodes.items() if hasattr(node, "v_leak")}
    results, spikes = [], 0
    for x in xs:
        for name in order:
            node = graph.nodes[name]
            if isinstance(node, nir.Affine | nir.Linear):
                x = node.weight @ x + getattr(node, "bias", 0.0)
            elif isinstance(node, nir.LI | nir.LIF):
                rest = node.v_leak + node.r * x
                v[name] = rest + (v[name] - rest) * np.exp(-dt / node.tau)
                x = v[name]
                if isinstance(node, nir.LIF):
                    z = v[name] > node.v_threshold
                    soft = node.metadata["spk_reset"] in ("soft", b"soft")
                    after = v[name] - (node.v_threshold - node.v_reset) if soft else node.v_reset
                    v[name] = np.where(z, after, v[name])
                    x, spikes = z.astype(float), spikes + z.sum()
        results.append(x)
    return np.stack(results), spikes


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_the_file_describes_the_network(tmp_path, reset, caplog):
    task = Task(lambda: Spiking(reset, bias=reset == "hard"))
    graph = nir.read(pretrained.save_nir(task, tmp_path / "net.nir"))
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    first = "Affine" if reset == "hard" else "Linear"
    assert sorted(kinds) == sorted(["Input", first, "LIF", "Affine", "LIF", "Linear", "LI", "Output"])
    lif = graph.nodes["neuron"]
    np.testing.assert_allclose(lif.tau, np.linspace(5e-3, 20e-3, 5), rtol=1e-6)
    facts = [(lif.r, 2e3), (lif.v_threshold, -0.05), (lif.v_reset, -0.063), (lif.v_leak, -0.06)]
    for value, expected in facts:
        np.testing.assert_allclose(value, np.full(5, expected), rtol=1e-6)
    xs = 2 * np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    simulated, spikes = simulate(graph, xs, DT)
    assert spikes > 40, "without spikes, the reset is not tested"
    np.testing.assert_allclose(outputs(task, xs), simulated, rtol=1e-3, atol=1e-3)
    assert ("NIR's LIF resets to v_reset" in caplog.text) == (reset == "soft")


def test_a_trained_time_constant_is_written(tmp_path):
    tau = brainstate.ParamState(jnp.array([5.0, 7.0]) * u.ms)
    make = lambda: brainstate.nn.Sequential(braintrace.nn.Linear(3, 2), brainpy.state.LIF(2, tau=tau))  # noqa: E731
    graph = nir.read(pretrained.save_nir(Task(make), tmp_path / "net.nir"))
    (lif,) = [node for node in graph.nodes.values() if isinstance(node, nir.LIF)]
    np.testing.assert_allclose(lif.tau, [5e-3, 7e-3], rtol=1e-6)


class Wired(brainstate.nn.Module):
    """Layers that ``wire(self, x)`` connects."""

    def __init__(self, wire):
        super().__init__()
        self.wire = wire
        self.a, self.b = braintrace.nn.Linear(3, 3), braintrace.nn.Linear(3, 3)
        self.cell = braintrace.nn.GRUCell(3, 3)

    def update(self, x):
        return self.wire(self, x)


CHAIN = "supported is a chain of layers"


@pytest.mark.parametrize(
    "wire, message",
    [
        (
            lambda m, x: m.b(m.cell(m.a(x))),
            "the layer 'cell' has the type GRUCell; supported are Linear, brainpy.state.LIF",
        ),
        (lambda m, x: m.a(m.a(x)), "the layer 'a' is called twice"),
        (lambda m, x: m.b(jax.nn.relu(m.a(x))), f"what receives the output of 'a' is no layer .*{CHAIN}"),
        (lambda m, x: m.b(x) + m.a(x), f"the layer 'a' receives something other than the output of 'b'; {CHAIN}"),
        (lambda m, x: 2 * m.b(x), f"what receives the output of 'b' is no layer .*{CHAIN}"),
        (lambda m, x: (m.b(x), x), f"it does not return the output of 'b'; {CHAIN}"),
        (lambda m, x: x, f"it does not return the input; {CHAIN}"),
    ],
)
def test_another_network_is_refused_by_the_name_of_the_layer(tmp_path, wire, message):
    task = Task(lambda: Wired(wire))
    with pytest.raises(ValueError, match=f"Wired has no NIR graph: {message}"):
        pretrained.save_nir(task, tmp_path / "net.nir")
    assert not (tmp_path / "net.nir").exists()
    assert "update" not in vars(task.model.a), "the model is as it was"


def test_a_layer_that_overrides_call_is_refused(tmp_path):
    task = Task(lambda: brainstate.nn.Sequential(braintrace.nn.Linear(3, 3), brainstate.nn.Dropout(0.5)))
    with pytest.raises(ValueError, match=r"the layer 'layers.1' has the type Dropout; supported are"):
        pretrained.save_nir(task, tmp_path / "net.nir")


def test_a_layer_with_registered_inputs_is_refused(tmp_path):
    task = Task(lambda: Spiking("hard"))
    task.model.neuron.add_current_input("noise", lambda: 0.0 * u.mA)
    with pytest.raises(ValueError, match=r"the layer 'neuron' has registered inputs \(add_current_input"):
        pretrained.save_nir(task, tmp_path / "net.nir")
