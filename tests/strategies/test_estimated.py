"""Decoupled neural interfaces, computed backward in time, against braintrace's trace with the same synthesiser."""

from dataclasses import replace

import brainstate
import numpy as np
import pytest

from jaxtrain.core.objective import Objective
from jaxtrain.strategies import DNI, DRTRL
from jaxtrain.strategies.reverse.estimated import EstimatedLearner
from tests.strategies.sums import assert_same_sums
from tests.strategies.test_passes import CELLS, OPTIONS, Layers, in_trace, sequences

pytestmark = pytest.mark.full

RULE = DNI(fit_epochs=20, fit_lr=0.1)


@pytest.mark.cover
@pytest.mark.parametrize("kind", ["plain", "warm-up, weights, resets"])
@pytest.mark.parametrize("cell", [*CELLS, "lru", "layers"])
def test_the_gradient_is_that_of_the_trace(lab, cell, kind):
    with brainstate.random.seed_context(0):
        made = lab.Task(Layers(lab)) if cell == "layers" else lab.task(cell)
    rules = replace(RULE, engine="reverse"), replace(RULE, engine="trace")
    reverse, trace = (lab.Drive(rule, made, sequences(lab, kind)) for rule in rules)
    assert isinstance(reverse.learner, EstimatedLearner) and reverse.learner.trace_bytes() == 0
    for seed in range(2):
        phases = sequences(lab, kind, seed)
        (grads, weight, _), (wanted, same, _) = reverse(phases), trace(phases)
        lab.same(grads, wanted)
        assert weight == same
    if cell == "gru":
        assert lab.cosine(*({"r": g["rnn.Wr.weight"]} for g in (grads, lab.learn(DRTRL(), made, phases)))) < 0.999


@pytest.mark.cover
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cell", ["gru", "lif"])
def test_segments_updates_and_streams(lab, cell, options):
    """The sum of all gradients of three batches."""
    fields = OPTIONS[options]
    batches = [sequences(lab, "warm-up, weights, resets", seed) for seed in range(3)]
    every = replace(RULE, engine="reverse", **fields), in_trace(RULE, fields)
    assert_same_sums(lab, every, lambda: lab.task(cell), batches)


def test_a_checkpoint_holds_the_synthesiser_of_both_engines_under_the_same_names(lab):
    found = []
    for engine in ("reverse", "trace"):
        learner = replace(RULE, engine=engine).bind(Objective(lab.task(), lambda x: x), lab.sequences())
        found.append({name: np.asarray(state.value) for name, state in learner.states().items()})
    assert found[0].keys() == found[1].keys() and all(value.any() for value in found[0].values())
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-5)
