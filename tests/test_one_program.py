"""A model from one compiled program has the values of a model from one program per operation, bit for bit."""

import subprocess
import sys

import brainstate
import jax
import numpy as np
import pytest

from jaxtrain.core.one_program import in_one_program, when_known
from jaxtrain.core.state import seeded, states_of
from jaxtrain.nn.networks import CELLS, GATES, Network


def built(make):
    """The values of each State, and the random state afterwards."""
    with seeded(3):
        model = make()
        key = jax.random.key_data(brainstate.random.DEFAULT.value)
    values = {name: jax.tree.map(np.asarray, state.value) for name, state in states_of(model).items()}
    return {**values, "random state": np.asarray(key)}


def require_equal(make):
    one, each = built(lambda: in_one_program(make)), built(make)
    assert jax.tree.structure(one) == jax.tree.structure(each)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(each), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


OPTIONS = {
    cell: {"chrono": 20.0 if cell in GATES else None, "orthogonal": cell != "lru"} for cell in CELLS
}  # fmt: skip


@pytest.mark.parametrize("cell", ["gru", *(pytest.param(c, marks=pytest.mark.full) for c in CELLS if c != "gru")])
def test_a_network_has_the_same_values_bit_for_bit(cell):
    options = {"width": 7, "layers": 2, "mlp": 5, "learned_state": cell == "gru", **OPTIONS[cell]}
    require_equal(lambda: Network(5, 3, cell=cell, hidden=8, **options))


@pytest.mark.full
@pytest.mark.parametrize("cell", CELLS)
def test_a_network_with_default_initial_values(cell):
    require_equal(lambda: Network(5, 3, cell=cell, hidden=16))


def test_one_program_is_compiled(monkeypatch):
    """And another seed compiles nothing."""
    names = []
    monkeypatch.setattr(jax.monitoring, "record_event", jax.monitoring.record_event)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **rest: names.append(fun_name) if "backend_compile" in event else None
    )
    make = lambda: Network(6, 2, cell="mgu", hidden=9)  # noqa: E731
    with seeded(0):
        before = len(names)
        in_one_program(make)
        compiled = [name for name in names[before:] if "initial_values" in name]
    assert compiled == ["jit(initial_values)"] and len(names) - before <= 2


def test_a_call_that_needs_values_waits_for_them_only_in_one_program():
    seen = []

    def make():
        when_known(lambda number: seen.append(np.asarray(number).item()), brainstate.random.randint(0, 9, ()))
        return Network(2, 2, hidden=3)

    with seeded(5):
        make()
    with seeded(5):
        in_one_program(make)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_a_value_that_is_read_too_early_is_an_error():
    with pytest.raises(jax.errors.TracerArrayConversionError), seeded(0):
        in_one_program(lambda: np.asarray(brainstate.random.rand(2)))
    when_known(seen := [].append, np.ones(1))
    assert seen is not None, "calls outside of a program no longer wait"


@pytest.mark.full
def test_the_first_model_of_a_process():
    """Before the first use of random numbers, brainstate traces twice."""
    program = """
from functools import partial
from jaxtrain.core.one_program import in_one_program
from jaxtrain.nn import Network
model = in_one_program(partial(Network, 3, 2, cell="mini_gru", hidden=4, width=3, mlp=4))
print(model.readout.weight.value["bias"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[0.0, 0.0]\n"
