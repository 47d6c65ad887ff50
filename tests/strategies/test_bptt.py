"""BPTT's gradient is the true one: of a GRU written in jax.numpy alone, and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL
from jaxtrain.core.module import Phases
from jaxtrain.core.state import parameters
from tests.kit.tiers import longer

pytestmark = pytest.mark.full


def affine(p, x):
    return x @ p["weight"] + p["bias"]


def gru_outputs(params, x):
    """A GRU and its readout over ``x`` (T, B, N_IN), from zeros: no brainstate, no braintrace."""

    def step(h, x):
        xh = jnp.concatenate([x, h], -1)
        z, r = jax.nn.sigmoid(affine(params["rnn.Wz.weight"], xh)), jax.nn.sigmoid(affine(params["rnn.Wr.weight"], xh))
        candidate = jnp.tanh(affine(params["rnn.Wh.weight"], jnp.concatenate([x, r * h], -1)))
        h = (1 - z) * h + z * candidate
        return h, affine(params["out.weight"], h)

    n = params["rnn.Wz.weight"]["bias"].shape[0]
    return jax.lax.scan(step, jnp.zeros((x.shape[1], n)), x)[1]


def gru_loss(params, x, y, w=None):
    """``sum(w * loss)`` over the last ``len(y)`` time steps."""
    losses = jnp.square(gru_outputs(params, x)[-len(y) :] - y).mean(-1)
    return (losses if w is None else losses * w).sum()


def values(task):
    return {name: state.value for name, state in parameters(task.model).items()}


def whole(phases: Phases):
    return jnp.concatenate([*([] if phases.warmup is None else [phases.warmup]), phases.inputs])


@pytest.fixture(scope="module")
def truth(lab):
    phases = lab.sequences()
    return jax.jit(jax.grad(gru_loss))(values(lab.task()), whole(phases), phases.targets)


@pytest.mark.cover
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("batching", ["batched", "vmap"])
def test_gradient_is_the_true_one(lab, truth, batching, remat):
    lab.same(lab.grads_of(BPTT(batching=batching, remat=remat)), truth)


def test_gradient_without_warmup(lab):
    phases = lab.sequences(warm=0)
    wanted = jax.grad(gru_loss)(values(lab.task()), phases.inputs, phases.targets)
    lab.same(lab.learn(BPTT(), lab.task(), phases), wanted)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_gradient_with_weights(lab, shape):
    w = jnp.asarray(np.random.default_rng(3).uniform(size=shape), jnp.float32)
    phases = lab.sequences(weights=w)
    spread = w if w.ndim == 2 else w[:, None]
    wanted = jax.grad(gru_loss)(values(lab.task()), whole(phases), phases.targets, spread)
    grads, weight, metrics = lab.Drive(BPTT(), lab.task(), phases)(phases)
    lab.same(grads, wanted)
    np.testing.assert_allclose(weight, jnp.broadcast_to(spread, (4, lab.B)).sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].weight, weight, rtol=1e-6)
    loss = gru_loss(values(lab.task()), whole(phases), phases.targets, spread)
    np.testing.assert_allclose(metrics["loss"].num, loss, rtol=1e-5)


def test_gradient_by_finite_differences(lab):
    """Along one direction, in double precision of the hand-written network; the loss is checked against it too."""
    phases, task, rng = lab.sequences(), lab.task(), np.random.default_rng(0)
    at = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values(task))
    along = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), at)

    def loss(t):
        params = jax.tree.map(lambda a, d: a + t * d, at, along)
        return numpy_loss(params, np.asarray(whole(phases), np.float64), np.asarray(phases.targets, np.float64))

    np.testing.assert_allclose(loss(0), gru_loss(values(task), whole(phases), phases.targets), rtol=1e-5)
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    grads = lab.grads_of(BPTT())
    exact = sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(along), strict=True))
    assert abs(slope) > 0.1
    np.testing.assert_allclose(exact, slope, rtol=1e-4)


def numpy_loss(params, x, y):
    sigmoid, total = (lambda v: 1 / (1 + np.exp(-v))), 0.0
    h = np.zeros((x.shape[1], params["rnn.Wz.weight"]["bias"].shape[0]))
    for t in range(len(x)):
        xh = np.concatenate([x[t], h], -1)
        z, r = sigmoid(affine(params["rnn.Wz.weight"], xh)), sigmoid(affine(params["rnn.Wr.weight"], xh))
        h = (1 - z) * h + z * np.tanh(affine(params["rnn.Wh.weight"], np.concatenate([x[t], r * h], -1)))
        if t >= len(x) - len(y):
            total += np.square(affine(params["out.weight"], h) - y[t - len(x) + len(y)]).mean(-1).sum()
    return total


@pytest.mark.parametrize("cell", ["lru", *longer("lstm")])
def test_remat_and_batching_change_nothing(lab, cell):
    plain = lab.grads_of(BPTT(), cell)
    lab.same(lab.grads_of(BPTT(remat=True), cell), plain)
    lab.same(lab.grads_of(BPTT(batching="vmap"), cell), plain)


def test_remat_stores_less(lab):
    """What the backward pass keeps of a long sequence: hidden states instead of every gate."""
    phases = lab.sequences(warm=0, time=200)

    def peak(strategy):
        drive = lab.Drive(strategy, lab.task(), phases)
        return drive._call.lower(drive._values, phases).compile().memory_analysis().temp_size_in_bytes

    assert peak(BPTT(remat=True)) < 0.7 * peak(BPTT())


def test_report(lab):
    rows = lab.Drive(BPTT(), lab.task(), lab.sequences()).learner.report(lab.sequences())
    assert {row.name: (row.trains, row.bytes) for row in rows} == dict.fromkeys(values(lab.task()), ("yes", 0))


# ------------------------------------------------------------------- what is called D-RTRL is not BPTT, and where it is


@pytest.mark.parametrize("cell", ["gru", *longer("vanilla")])
def test_drtrl_is_not_bptt(lab, cell):
    """Negative control: recurrent mixing is dropped, so where it matters the gradients differ."""
    for strategy in (DRTRL(), DRTRL(vjp="single-step")):
        cosine = lab.cosine(lab.grads_of(strategy, cell), lab.grads_of(BPTT(), cell))
        assert 0.3 < cosine < 0.999


@pytest.mark.parametrize("warm", [5, *longer(0)])
def test_drtrl_is_bptt_where_the_recurrence_is_diagonal(lab, warm):
    """A linear recurrent unit mixes nothing over time: D-RTRL is exact on it, at any lag."""
    phases = lab.sequences(warm=warm)
    online, exact = (lab.learn(strategy, lab.task("lru"), phases) for strategy in (DRTRL(), BPTT()))
    assert lab.cosine(online, exact) > 0.9999
    lab.same(online, exact, tolerance=1e-4)
