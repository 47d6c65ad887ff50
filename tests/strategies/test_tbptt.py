"""Truncated BPTT: exact within a window, nothing across its edge; one window is BPTT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, TBPTT
from jaxtrain.module import Objective, Phases
from jaxtrain.state import parameters


def affine(p, x):
    return x @ p["weight"] + p["bias"]


def truncated(params, phases: Phases, window: int):
    """``sum(loss)`` of a GRU in jax.numpy alone, whose hidden state passes no gradient at a window's edge."""
    x = phases.inputs if phases.warmup is None else jnp.concatenate([phases.warmup, phases.inputs])
    warm, total = phases.sizes[0], 0.0
    h = jnp.zeros((x.shape[1], params["rnn.Wz.weight"]["bias"].shape[0]))
    for t in range(len(x)):
        if t % window == 0:
            h = jax.lax.stop_gradient(h)
        xh = jnp.concatenate([x[t], h], -1)
        z, r = jax.nn.sigmoid(affine(params["rnn.Wz.weight"], xh)), jax.nn.sigmoid(affine(params["rnn.Wr.weight"], xh))
        candidate = jnp.tanh(affine(params["rnn.Wh.weight"], jnp.concatenate([x[t], r * h], -1)))
        h = (1 - z) * h + z * candidate
        if t >= warm:
            total += jnp.square(affine(params["out.weight"], h) - phases.targets[t - warm]).mean(-1).sum()
    return total


def values(task):
    return {name: state.value for name, state in parameters(task.model).items()}


@pytest.mark.parametrize("batching", ["batched", "vmap"])
@pytest.mark.parametrize("cell", ["gru", pytest.param("lstm", marks=pytest.mark.slow), "lif"])
def test_a_window_over_the_whole_sequence_is_bptt(lab, cell, batching):
    phases = lab.sequences()
    got = lab.learn(TBPTT(window=lab.WARM + lab.LEARN, batching=batching), lab.task(cell), phases)
    lab.same(got, lab.learn(BPTT(batching=batching), lab.task(cell), phases), tolerance=1e-6)


@pytest.mark.parametrize(
    "warm,window", [(5, 1), (5, 3), (5, 4), (5, 5), (5, 7), (5, 8), (0, 3), (6, 2), (1, 5)]
)  # fmt: skip
def test_windows_are_cut_by_hand(lab, warm, window):
    """Over 5 + 4 time steps windows of 3, 4, 7 and 8 begin in the warm-up and end among the scored time steps."""
    phases = lab.sequences(warm=warm)
    wanted = jax.jit(jax.grad(truncated), static_argnums=2)(values(lab.task()), phases, window)
    got, weight, metrics = lab.Drive(TBPTT(window=window), lab.task(), phases)(phases)
    lab.same(got, wanted)
    exact = jax.jit(jax.grad(truncated), static_argnums=2)(values(lab.task()), phases, 99)
    assert lab.cosine(got, exact) < 0.9999, "negative control: truncation shows"
    np.testing.assert_allclose(metrics["loss"].num, truncated(values(lab.task()), phases, 99), rtol=1e-5)
    assert float(weight) == float(metrics["loss"].weight) == lab.LEARN * lab.B


def test_weights_and_resets_under_windows(lab):
    """Padded time steps weigh nothing; a reset lane goes on from zeros, in a window that straddles the phases too."""
    full = lab.sequences()
    weights = jnp.asarray(np.random.default_rng(7).uniform(size=(lab.LEARN, lab.B)), jnp.float32)
    for window in (3, 4):
        parts = []
        for lane in range(lab.B):
            one = jax.tree.map(lambda leaf, lane=lane: leaf[:, [lane]], full)
            grads = [
                jax.grad(lambda p, t=t, one=one: only(p, one, window, t))(values(lab.task())) for t in range(lab.LEARN)
            ]
            parts += [jax.tree.map(lambda g, w=weights[t, lane]: w * g, grads[t]) for t in range(lab.LEARN)]
        wanted = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        given = Phases(full.warmup, full.inputs, full.targets, weights)
        lab.same(lab.learn(TBPTT(window=window), lab.task(), given), wanted)
    everywhere = jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool).at[lab.WARM].set(True)
    rest = Phases(None, full.inputs, full.targets)
    for window in (4, 9):
        got = lab.learn(TBPTT(window=window), lab.task(), Phases(full.warmup, full.inputs, full.targets, None, everywhere))
        if window == 9:  # one window: the reset alone cuts
            lab.same(got, lab.learn(BPTT(), lab.task(), rest))
        else:  # 4: ... [4, 8) [8, 9)
            lab.same(got, jax.grad(lambda p: resumed(p, rest, (3,)))(values(lab.task())))


def only(params, phases: Phases, window: int, t: int):
    """The loss of one scored time step under windows."""
    warm = phases.sizes[0]
    cut = Phases(phases.warmup, phases.inputs[: t + 1], phases.targets[: t + 1])
    before = Phases(phases.warmup, phases.inputs[:t], phases.targets[:t]) if t else None
    assert warm
    return truncated(params, cut, window) - (truncated(params, before, window) if before is not None else 0.0)


def resumed(params, phases: Phases, edges: tuple[int, ...]):
    """Windows that end at ``edges``."""
    total, h = 0.0, jnp.zeros((phases.inputs.shape[1], params["rnn.Wz.weight"]["bias"].shape[0]))
    for t, (x, y) in enumerate(zip(phases.inputs, phases.targets, strict=True)):
        h = jax.lax.stop_gradient(h) if t in edges else h
        xh = jnp.concatenate([x, h], -1)
        z, r = jax.nn.sigmoid(affine(params["rnn.Wz.weight"], xh)), jax.nn.sigmoid(affine(params["rnn.Wr.weight"], xh))
        h = (1 - z) * h + z * jnp.tanh(affine(params["rnn.Wh.weight"], jnp.concatenate([x, r * h], -1)))
        total += jnp.square(affine(params["out.weight"], h) - y).mean(-1).sum()
    return total


def test_what_does_not_fit_is_refused(lab):
    def bind(**kwargs):
        return TBPTT(**kwargs).bind(Objective(lab.task(), lambda x: x), lab.sequences())

    with pytest.raises(ValueError, match=r"^TBPTT\(window=0\): expected a whole number of time steps, at least 1$"):
        TBPTT(window=0)
    with pytest.raises(ValueError, match=r"^TBPTT\(window=10\): the sequence has only 9 time steps$"):
        bind(window=10)
    with pytest.raises(ValueError, match=r"update_every=3\): .* must be a multiple of it$"):
        TBPTT(window=2, update_every=3)
    with pytest.raises(ValueError, match=r"need a warm-up \(5 time steps\) of whole windows, and update_every at most"):
        bind(window=2, update_every=2)
    with pytest.raises(ValueError, match=r"update_every at most the 4 scored time steps$"):
        bind(window=5, update_every=5)
    assert bind(window=9).report()[0].trains == "yes"
