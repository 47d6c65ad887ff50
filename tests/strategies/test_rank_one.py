"""UORO over known hidden states and products, against braintrace's trace with the same random signs."""

from dataclasses import replace

import brainstate
import braintrace
import jax.numpy as jnp
import pytest

from jaxtrain.strategies import UORO
from jaxtrain.strategies.reverse.rank_one import RankOneLearner
from tests.strategies.sums import sums
from tests.strategies.test_passes import CELLS, OPTIONS, Bypass, Layers, Masked, in_trace, sequences

pytestmark = pytest.mark.full

MODELS = {"bypass": Bypass, "layers": Layers, "masked": Masked}


class Shared(brainstate.nn.Module):
    """One weight acts on a hidden state twice, another one on two layers."""

    def __init__(self, lab):
        super().__init__()
        self.a = braintrace.nn.Linear(lab.N_IN, lab.N)
        self.b, self.c = braintrace.nn.Linear(lab.N, lab.N), braintrace.nn.Linear(lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def init_state(self, batch_size=None, **_):
        zeros = jnp.zeros((batch_size, 6) if batch_size else (6,))
        self.h, self.g = brainstate.HiddenState(zeros), brainstate.HiddenState(zeros)

    def update(self, x):
        h, g = self.h.value, self.g.value
        self.h.value = jnp.tanh(self.a(x) + 0.5 * self.a(-2 * x) + self.b(h))
        self.g.value = jnp.tanh(self.c(self.h.value) + self.b(g))
        return self.out(self.g.value)


def task_of(lab, model: str):
    if model not in MODELS and model != "shared":
        return lab.task(model)
    with brainstate.random.seed_context(0):
        return lab.Task(MODELS.get(model, Shared)(lab))


@pytest.mark.cover
@pytest.mark.parametrize("kind", ["plain", "warm-up, weights, resets"])
@pytest.mark.parametrize("model", [*CELLS, "lru", *MODELS, "shared"])
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


@pytest.mark.parametrize("options", [name for name in OPTIONS if "mapped" not in name])
@pytest.mark.parametrize("cell", ["gru", "lif"])
def test_segments_updates_and_streams(lab, cell, options):
    """The sum of all gradients of three batches."""
    rule, fields = UORO(), OPTIONS[options]
    batches = [sequences(lab, "warm-up, weights, resets", seed) for seed in range(3)]
    every = replace(rule, engine="reverse", **fields), in_trace(rule, fields)
    (grads, means, _), (wanted, others, _) = (sums(lab, each, lab.task(cell), batches) for each in every)
    lab.same(grads, wanted)
    assert means == [pytest.approx(other, rel=1e-5) for other in others]
