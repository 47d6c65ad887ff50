"""UORO over known hidden states and products, against braintrace's trace with the same random signs."""

from dataclasses import replace

import brainstate
import braintrace
import jax.numpy as jnp
import pytest

from jaxtrain.strategies import UORO
from jaxtrain.strategies.reverse.rank_one import RankOneLearner
from tests.strategies.sums import assert_same_sums
from tests.strategies.test_passes import CELLS, OPTIONS, Bypass, Layers, Masked, Units, in_trace, sequences

pytestmark = pytest.mark.full


class Equal(brainstate.nn.Module):
    """Two layers of equal size."""

    def __init__(self, lab):
        super().__init__()
        self.first, self.second = braintrace.nn.GRUCell(lab.N_IN, lab.N), braintrace.nn.ValinaRNNCell(lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        return self.out(self.second(self.first(x)))


class Twice(Units):
    """One weight acts on the hidden state twice."""

    def __init__(self, lab):
        super().__init__()
        self.a, self.b = braintrace.nn.Linear(lab.N_IN, lab.N), braintrace.nn.Linear(lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def update(self, x):
        self.h.value = jnp.tanh(self.a(x) + jnp.sin(self.a(-2 * x)) + self.b(self.h.value))
        return self.out(self.h.value)


MODELS = {"bypass": Bypass, "layers": Layers, "masked": Masked, "twice": Twice, "equal": Equal}


def task_of(lab, model: str):
    if model not in MODELS:
        return lab.task(model)
    with brainstate.random.seed_context(0):
        return lab.Task(MODELS[model](lab))


@pytest.mark.cover
@pytest.mark.parametrize("kind", ["plain", "warm-up, weights, resets"])
@pytest.mark.parametrize("model", [*CELLS, "lru", "bypass", "layers", "masked", "twice"])
def test_the_gradient_is_that_of_the_trace(lab, model, kind):
    phases = sequences(lab, kind)
    reverse, trace = (lab.Drive(UORO(engine=engine), task_of(lab, model), phases) for engine in ("reverse", "trace"))
    assert isinstance(reverse.learner, RankOneLearner)
    for seed in range(2):
        phases = sequences(lab, kind, seed)
        (grads, weight, _), (wanted, same, _) = reverse(phases), trace(phases)
        lab.same(grads, wanted)
        assert weight == same
    with brainstate.environ.context(**task_of(lab, model).environ, fit=True):
        reports = [drive.learner.report(phases) for drive in (reverse, trace)]
    assert [replace(row, bytes=0) for row in reports[0]] == [replace(row, bytes=0) for row in reports[1]]
    total = sum(row.bytes for row in reports[0])
    assert total == reverse.learner.trace_bytes() == trace.learner.trace_bytes()


@pytest.mark.cover
@pytest.mark.parametrize("options", [name for name in OPTIONS if "mapped" not in name])
@pytest.mark.parametrize("cell", ["gru", "lif"])
def test_segments_updates_and_streams(lab, cell, options):
    """The sum of all gradients of three batches."""
    rule, fields = UORO(), OPTIONS[options]
    batches = [sequences(lab, "warm-up, weights, resets", seed) for seed in range(3)]
    every = replace(rule, engine="reverse", **fields), in_trace(rule, fields)
    assert_same_sums(lab, every, lambda: lab.task(cell), batches)


def test_layers_of_equal_size_are_one_group_for_braintrace(lab):
    phases = lab.sequences()
    with pytest.raises(ValueError, match=r"^UORO\(engine='reverse'\) does not fit Equal: weights connect .*'auto'$"):
        lab.Drive(UORO(engine="reverse"), task_of(lab, "equal"), phases)
    drive = lab.Drive(UORO(), task_of(lab, "equal"), phases)
    assert drive.learner.notes == [
        "engine: a trace, since weights connect hidden states of equal shape, which then are one group"
    ]
