"""Truncated BPTT: exact within a window, no gradient across its boundary; one window is BPTT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, TBPTT
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import parameters
from tests.kit.tiers import longer

pytestmark = pytest.mark.full


def affine(p, x):
    return x @ p["weight"] + p["bias"]


def truncated(params, phases: Phases, window: int):
    """``sum(w * loss)`` of a GRU in jax.numpy alone, whose hidden state passes no gradient at a window's boundary."""
    x = phases.inputs if phases.warmup is None else jnp.concatenate([phases.warmup, phases.inputs])
    warm, total = phases.sizes[0], 0.0
    h = jnp.zeros((x.shape[1], params["rnn.Wz.weight"]["bias"].shape[0]))
    for t in range(len(x)):
        if t % window == 0:
            h = jax.lax.stop_gradient(h)
        if phases.reset is not None:
            h = jnp.where(phases.reset[t][:, None], 0.0, h)
        xh = jnp.concatenate([x[t], h], -1)
        z, r = jax.nn.sigmoid(affine(params["rnn.Wz.weight"], xh)), jax.nn.sigmoid(affine(params["rnn.Wr.weight"], xh))
        candidate = jnp.tanh(affine(params["rnn.Wh.weight"], jnp.concatenate([x[t], r * h], -1)))
        h = (1 - z) * h + z * candidate
        if t >= warm:
            loss = jnp.square(affine(params["out.weight"], h) - phases.targets[t - warm]).mean(-1)
            total += (loss if phases.weights is None else phases.weights[t - warm] * loss).sum()
    return total


gradient = jax.jit(jax.grad(truncated), static_argnums=2)


def values(task):
    return {name: state.value for name, state in parameters(task.model).items()}


@pytest.mark.cover
@pytest.mark.parametrize("batching", ["batched", "vmap"])
@pytest.mark.parametrize("cell", ["gru", *longer("lstm"), "lif"])
def test_a_window_over_the_whole_sequence_is_bptt(lab, cell, batching):
    phases = lab.sequences()
    got = lab.learn(TBPTT(window=lab.WARM + lab.LEARN, batching=batching), lab.task(cell), phases)
    lab.same(got, lab.learn(BPTT(batching=batching), lab.task(cell), phases), tolerance=1e-6)


@pytest.mark.parametrize(
    "warm,window", [(5, 3), (5, 8), *longer((0, 3), (6, 2), (5, 1), (5, 4), (5, 5), (5, 7), (1, 4))]
)
def test_windows_are_truncated_by_hand(lab, warm, window):
    """Over 5 + 4 time steps windows of 3, 4, 7 and 8 begin in the warm-up and end among the scored time steps."""
    phases = lab.sequences(warm=warm)
    wanted = gradient(values(lab.task()), phases, window)
    got, weight, metrics = lab.Drive(TBPTT(window=window), lab.task(), phases)(phases)
    lab.same(got, wanted)
    exact = gradient(values(lab.task()), phases, 99)
    assert lab.cosine(got, exact) < 0.9999, "negative control: truncation shows"
    np.testing.assert_allclose(metrics["loss"].num, truncated(values(lab.task()), phases, 99), rtol=1e-5)
    assert float(weight) == float(metrics["loss"].weight) == lab.LEARN * lab.B


@pytest.mark.parametrize("window", [3, *longer(4)])
def test_weights_and_resets_under_windows(lab, window):
    """Padded time steps weigh nothing; sequences are reset in the warm-up, where the phases meet, and at the end."""
    full, rng = lab.sequences(), np.random.default_rng(7)
    weights = jnp.asarray(rng.uniform(size=(lab.LEARN, lab.B)), jnp.float32).at[1].set(0).at[3, 2].set(0)
    reset = jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool).at[2, 0].set(True).at[lab.WARM, 1].set(True)
    phases = Phases(full.warmup, full.inputs, full.targets, weights, reset.at[8, 2].set(True))
    for batching in ("batched", "vmap"):
        grads, weight, _ = lab.Drive(TBPTT(window=window, batching=batching), lab.task(), phases)(phases)
        lab.same(grads, gradient(values(lab.task()), phases, window))
        np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)


def test_what_does_not_fit_is_refused(lab):
    def bind(**kwargs):
        return TBPTT(**kwargs).bind(Objective(lab.task(), lambda x: x), lab.sequences())

    with pytest.raises(ValueError, match=r"^TBPTT\(window=0\): expected a whole number of time steps, at least 1$"):
        TBPTT(window=0)
    with pytest.raises(
        ValueError, match=r"^TBPTT\(window=10\): the sequence has only 9 time steps; give a window of 9 or less"
    ):
        bind(window=10)
    with pytest.raises(ValueError, match=r"update_every=3\): .* must be a multiple of it$"):
        TBPTT(window=2, update_every=3)
    with pytest.raises(
        ValueError, match=r"of whole windows, and it has 5 time steps; give a window that divides 5, or"
    ):
        bind(window=2, update_every=2)
    with pytest.raises(ValueError, match=r"has only 4 time steps; give 4 or less, or 'sequence'$"):
        bind(window=5, update_every=5)
    assert bind(window=9).report(lab.sequences())[0].trains == "yes"


def test_a_window_over_the_whole_sequence_is_called_bptt(lab):
    def notes(window, **kwargs):
        return TBPTT(window=window, **kwargs).bind(Objective(lab.task(), lambda x: x), lab.sequences()).notes

    assert notes(9) == ["tbptt: a window is the whole sequence of 9 time steps, as in bptt"]
    assert notes(8) == notes(8, stateful=True) == []
    (stateful,) = notes(9, stateful=True)
    assert stateful.endswith("as in bptt; no gradient passes from one sequence to the previous one")
