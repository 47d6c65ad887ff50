"""Rates over updates, and what weight decay touches."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.cli.options import NetworkOptions, TrainingOptions
from jaxtrain.errors import ConfigError
from jaxtrain.nn.networks import is_pole
from jaxtrain.nn.schedules import adam, matrices, schedule


def test_warm_up_then_cosine():
    rate = schedule(2.0, 110, warmup=10, decay="cosine")
    assert [float(rate(i)) for i in (0, 5, 10, 60, 110, 500)] == pytest.approx([0, 1, 2, 1, 0, 0])
    flat = schedule(2.0, 110, warmup=10)
    assert [float(flat(i)) for i in (5, 10, 110)] == pytest.approx([1, 2, 2])
    assert schedule(2.0, 110) == 2.0
    with pytest.raises(ValueError, match="warmup=110: expected at least 0 and fewer than all 110 updates"):
        schedule(2.0, 110, warmup=110)


def run(optimizer, params, grads, steps):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_weight_decay_moves_matrices_alone():
    params = {"a": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "nu_log": jnp.ones(2)}
    zeros = {"a": {"weight": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "nu_log": jnp.zeros(2)}
    found, _ = run(adam(0.1, 0.5), params, zeros, 1)
    np.testing.assert_allclose(found["a"]["weight"], 0.95)
    np.testing.assert_array_equal(found["a"]["bias"], 1)
    np.testing.assert_array_equal(found["nu_log"], 1)
    assert matrices(params) == {"a": {"weight": True, "bias": False}, "nu_log": False}


def test_adam_follows_its_schedule():
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    found, state = run(adam(schedule(1.0, 4, decay="cosine")), params, grads, 4)
    # Adam moves by the rate at a constant gradient: 1 + .854 + .5 + .146 of it.
    np.testing.assert_allclose(found["w"], -2.5, rtol=1e-4)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1464, rel=1e-3)


def test_poles_have_a_rate_of_their_own():
    @dataclass(frozen=True)
    class Config(TrainingOptions, NetworkOptions):
        pass

    assert isinstance(Config().optimizer(), optax.GradientTransformation)
    with pytest.raises(ConfigError, match="an LRU needs the time steps that the task must bridge: memory="):
        Config(cell="lru").optimizer()
    assert Config(cell="lru", pole_rate=0.5).optimizer().keys() == {"rest", "poles"}
    assert isinstance(Config().optimizer(50), optax.GradientTransformation)
    config = Config(cell="lru", lr=0.1)
    assert config.group("rnn.layers.0.theta_log") == "poles" and config.group("readout.weight") == "rest"
    for memory, given, rate in ((50, None, 0.01), (5, None, 0.1), (5000, None, 1e-4), (5000, 0.5, 0.05)):
        both = Config(cell="lru", lr=0.1, pole_rate=given).optimizer(memory)
        assert set(both) == {"rest", "poles"}
        moved = {label: -run(both[label], {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 1)[0]["w"].item() for label in both}
        assert moved == pytest.approx({"rest": 0.1, "poles": rate}, rel=1e-4)
    assert is_pole("nu_log") and not is_pole("gamma_log")
