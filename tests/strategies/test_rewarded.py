"""Learning from a reward, computed backward in time, against braintrace's trace."""

from dataclasses import replace

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.strategies import ThreeFactor
from jaxtrain.strategies.reverse.rewarded import RewardedLearner
from tests.strategies.sums import assert_same_sums
from tests.strategies.test_passes import CELLS, OPTIONS, in_trace, sequences
from tests.strategies.test_rules import rewarded

pytestmark = pytest.mark.full


def with_reward(lab, kind: str, seed: int = 0, units: bool = False):
    phases = sequences(lab, kind, seed)
    shape = (*phases.sizes[1:], *((lab.N,) if units else ()))
    reward = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
    if phases.weights is not None:  # a number without weight may be anything
        hidden = phases.weights.reshape(*phases.weights.shape, *(1,) * units) == 0
        reward = jnp.where(hidden, jnp.nan, reward)
    return replace(phases, extras={"reward": reward})


@pytest.mark.cover
@pytest.mark.parametrize("kind", ["plain", "warm-up, weights, resets"])
@pytest.mark.parametrize("cell", [*CELLS, "lru"])
def test_the_gradient_is_that_of_the_trace(lab, cell, kind):
    phases = with_reward(lab, kind)
    reverse, trace = (
        lab.Drive(ThreeFactor(engine=engine), rewarded(lab.task(cell)), phases) for engine in ("reverse", "trace")
    )
    assert isinstance(reverse.learner, RewardedLearner) and reverse.learner.trace_bytes() == 0
    for seed in range(2):
        phases = with_reward(lab, kind, seed)
        (grads, weight, _), (wanted, same, _) = reverse(phases), trace(phases)
        lab.same(grads, wanted)
        assert weight == same
    with brainstate.environ.context(**lab.task(cell).environ, fit=True):
        assert reverse.learner.report(phases) == [replace(row, bytes=0) for row in trace.learner.report(phases)]


@pytest.mark.cover
@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("options", [name for name in OPTIONS if "mapped" not in name])
@pytest.mark.parametrize("cell", ["gru", "lif"])
def test_segments_updates_and_streams(lab, cell, options, units):
    """The sum of all gradients of three batches."""
    rule, fields = ThreeFactor(), OPTIONS[options]
    batches = [with_reward(lab, "warm-up, weights, resets", seed, units) for seed in range(3)]
    every = replace(rule, engine="reverse", **fields), in_trace(rule, fields)
    assert_same_sums(lab, every, lambda: rewarded(lab.task(cell)), batches)
