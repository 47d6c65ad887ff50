"""Cells by name, and what they begin with."""

import math

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.nn import networks as nn
from tests.kit.tiers import longer
from tests.small import copies


def made(**options):
    brainstate.random.seed(0)
    network = nn.Network(10, 10, **{"hidden": 8, **options})
    brainstate.nn.init_all_states(network, batch_size=2)
    return network


class Copy(jt.Module):
    def __init__(self, **options):
        self.options = options

    def build(self):
        return nn.Network(10, 10, **{"hidden": 8, **self.options})

    def learning_step(self, forward, x, y):
        logits = forward(x)
        return jnp.square(logits - (y[:, None] == jnp.arange(10))).sum(-1)

    def configure_optimizer(self):
        import optax

        return optax.sgd(0.01)


def cosine(module, strategy="drtrl"):
    """Of a rule's gradient and BPTT's, by parameter."""
    probe = jt.GradientFidelity(every=1)
    fit = jt.Fit(strategy, max_steps=1, log_every=1, callbacks=[probe])
    row = fit.run(module, copies(time_lag=6)).history[0]
    return {key.removeprefix("fidelity/cosine/"): value for key, value in row.items() if "fidelity/cosine/" in key}


@pytest.mark.full
@pytest.mark.parametrize("cell", nn.CELLS)
def test_every_cell_in_a_stack(cell):
    network = made(cell=cell, layers=2, width=6, mlp=5)
    out = network(jnp.ones((2, 10)))
    assert out.shape == (2, 10) and np.isfinite(out).all()
    assert (network(jnp.ones((2, 10))) != out).any(), "it remembers"
    plain = made(cell=cell)
    assert plain.readout.in_size[-1] == (10 if cell == "lru" else 8)


@pytest.mark.full
@pytest.mark.parametrize("cell", nn.GATES)
def test_chrono_gates_keep_for_as_long_as_they_say(cell):
    """A gate that keeps a part f of a unit's state a time step remembers for 1 / (1 - f) time steps."""
    network = made(cell=cell, hidden=400, chrono=50.0)
    layer = network.rnn.layers[0]
    (name, (sign, more)) = next(iter(nn.GATES[cell].items()))
    bias = np.asarray(getattr(layer, name).weight.value["bias"])
    added = 1.0 if cell == "lstm" else 0.0  # by the cell itself
    keeps = 1 / (1 + np.exp(-sign * (bias + added)))
    memory = 1 / (1 - keeps)
    assert 2 <= memory.min() < 5 and 40 < memory.max() <= 50
    assert abs(np.mean(memory) - 26) < 2, "evenly spread"
    without = getattr(made(cell=cell, hidden=400).rnn.layers[0], name).weight.value["bias"]
    assert not np.array_equal(without, bias)


def test_chrono_hangs_on_the_seed_of_the_run():
    bias = lambda: np.asarray(made(chrono=50.0).rnn.layers[0].Wz.weight.value["bias"])  # noqa: E731
    np.testing.assert_array_equal(bias(), bias())
    brainstate.random.seed(1)
    other = nn.make_cell("gru", 10, 8, chrono=50.0).Wz.weight.value["bias"]
    assert (np.asarray(other) != bias()).any()


@pytest.mark.parametrize(("cell", "name"), [("gru", "Wh"), ("lstm", "Wf"), ("vanilla", "W"), ("minimal_rnn", "W_u")])
def test_recurrent_weights_begin_orthogonal(cell, name):
    square = lambda network: np.asarray(getattr(network.rnn.layers[0], name).weight.value["weight"])[-8:]  # noqa: E731
    found, before = square(made(cell=cell, orthogonal=True)), square(made(cell=cell))
    np.testing.assert_allclose(found @ found.T, np.eye(8), atol=1e-5)
    assert np.abs(before @ before.T - np.eye(8)).max() > 0.05


def test_poles_lie_in_their_ring():
    cell = made(cell="lru", hidden=200, r_min=0.9, r_max=0.99, max_phase=0.5).rnn.layers[0]
    radius, phase = np.exp(-np.exp(cell.nu_log.value)), np.exp(cell.theta_log.value)
    assert 0.9 <= radius.min() < 0.91 and 0.98 < radius.max() <= 0.99 and 0.45 < phase.max() <= 0.5
    for memory in (50, 5000):
        r_min, r_max = nn.radii(memory)
        assert r_min**memory == pytest.approx(math.exp(-1), rel=0.02)
        assert r_max**memory == pytest.approx(math.exp(-0.1), rel=0.02)


@pytest.mark.parametrize("cell", ["lru", *longer("gru", "lstm")])
def test_learned_states_are_where_a_sequence_begins(cell):
    network = made(cell=cell, learned_state=True)
    layer = network.rnn.layers[0]
    x = jnp.ones((2, 10))
    first, second = network(x), network(x)
    brainstate.nn.init_all_states(network, batch_size=2)
    np.testing.assert_array_equal(network(x), first)
    for name in layer.names:
        getattr(layer, f"initial_{name}").value += 0.5
    brainstate.nn.init_all_states(network, batch_size=2)
    changed = network(x)
    assert np.abs(changed - first).max() > 1e-3
    # The same as a cell without them whose hidden states are set.
    plain = made(cell=cell)
    for name in layer.names:
        getattr(plain.rnn.layers[0], name).value += 0.5
    np.testing.assert_allclose(plain(x), changed, rtol=1e-5)
    assert (second != first).any()


@pytest.mark.long
def test_learned_states_have_a_trace():
    """Their credit reaches across the whole sequence: exact on an LRU, and zero without a trace."""
    module = Copy(cell="lru", learned_state=True)
    exact = cosine(module)
    assert {name: value for name, value in exact.items() if "initial" in name} == {
        f"rnn.layers.0.initial_{name}": pytest.approx(1.0, abs=1e-4) for name in ("h_re", "h_im")
    }
    for engine in ("trace", "reverse"):
        assert cosine(Copy(cell="lru", learned_state=True), jt.DRTRL(engine=engine)) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("cell", ["lru", *longer("mini_gru")])
def test_learned_states_come_back_at_a_reset(cell):
    network = made(cell=cell, learned_state=True)
    x = jnp.ones((2, 10))
    layer = network.rnn.layers[0]
    for name in layer.names:
        getattr(layer, f"initial_{name}").value += 0.5
    from jaxtrain.strategies.base import Network

    whole = Network(network, "batched")
    whole.reset(2)
    first, second = whole(x), whole(x)
    whole.reset_sequences(jnp.array([True, False]))
    third = whole(x)
    np.testing.assert_array_equal(third[0], first[0])
    assert (third[1] != first[1]).any() and (second != first).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "lru", "chrono": 9.0}, "'lru' has no gates and no recurrent matrix, so chrono does not apply"),
        ({"cell": "lru", "orthogonal": True}, "so orthogonal does not apply"),
        ({"cell": "vanilla", "chrono": 9.0}, "'vanilla' has no gates"),
        ({"cell": "rnn"}, "cell 'rnn' is unknown; expected one of gru,"),
        ({"cell": "gru", "chrono": 1.0}, "chrono=1.0: expected a number of time steps above 2"),
        ({"cell": "lru", "r_min": 0.9, "r_max": 0.8}, "expected 0 <= r_min < r_max < 1"),
        ({"cell": "lru", "max_phase": 0.0}, "expected a positive angle"),
        ({"nonlinear": True}, "nonlinear=True applies to the encoder, which needs a width"),
    ],
)
def test_what_has_no_effect_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_nonlinear_encoder():
    plain, bent = made(cell="lru", width=6), made(cell="lru", width=6, nonlinear=True)
    assert (plain(jnp.ones((2, 10))) != bent(jnp.ones((2, 10)))).any()
