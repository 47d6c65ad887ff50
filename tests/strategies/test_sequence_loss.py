"""A loss that is any function of the outputs of a sequence: against ``jax.grad`` of a loop written by hand."""

import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain import DRTRL, metrics
from jaxtrain.nn import Running
from tests.small import CopyGRU, Linear, copies, leaves

T, B = 4, 3
TRUE = pytest.mark.parametrize("strategy", ["bptt", jt.BPTT(remat=True)], ids=["bptt", "remat"])


def spread(outputs, targets, weights):
    """The distance of the largest output over time from the last target, relative to the size of all outputs."""
    count = weights != 0
    largest = jnp.where(count[..., None], outputs, -jnp.inf).max(0)
    return jnp.square(largest - targets[-1]).sum(-1) / (1 + jnp.square(outputs).sum((0, 2)))


class Whole(Linear):
    def __init__(self, rate=1.0):
        super().__init__(lambda: braintools.optim.SGD(rate))

    def learning_step(self, forward, x, y):
        out = forward(x)
        return metrics.SequenceLoss(out, y, spread), {"size": jnp.abs(out).max(-1)}


def batch(seed, weights):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(T, B, 2)), np.tile(rng.normal(size=(1, B, 3)), (T, 1, 1))
    return jt.Phases(None, x.astype("float32"), y.astype("float32"), weights=np.asarray(weights, "float32"))


EVEN = np.ones((T, B))
PADDED = np.array([[1, 2, 0], [1, 2, 0], [1, 0, 0], [0, 0, 0]])  # weights 1 and 2, and a sequence without any


def by_hand(values, batches):
    """The weighted mean of the losses of all sequences."""
    total = weight = 0.0
    for phases in batches:
        h, outputs = jnp.zeros((B, 3)), []
        for x in phases.inputs:
            h = 0.5 * h + x @ values["w"] + values["b"]
            outputs.append(h)
        for i in range(B):
            length = int((phases.weights[:, i] != 0).sum())
            if length:
                own = phases.weights[length - 1, i]
                out = jnp.stack(outputs)[:length, i]
                loss = jnp.square(out.max(0) - phases.targets[-1, i]).sum() / (1 + jnp.square(out).sum())
                total, weight = total + own * loss, weight + own
    return total / weight


def start():
    return {"w": jnp.full((2, 3), 0.1), "b": jnp.zeros(3)}


@TRUE
@pytest.mark.parametrize("batches", [[batch(0, EVEN)], [batch(1, PADDED)], [batch(0, EVEN), batch(1, PADDED)]])
def test_bptt_differentiates_it(strategy, batches):
    """Accumulated batches of other weights count by their sequences."""
    module = Whole()
    fit = jt.Fit(strategy, max_steps=len(batches), accumulate=len(batches), log_every=len(batches))
    result = fit.run(module, batches)
    loss, grads = jax.value_and_grad(by_hand)(start(), batches)
    for name, value in leaves(module).items():
        np.testing.assert_allclose(value, start()[name] - grads[name], rtol=1e-4, atol=1e-6)
    assert result.metrics["train/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert jt.Fit(strategy).validate(Whole(), batches)["val/loss"] == pytest.approx(float(loss), rel=1e-5)


class Copies(CopyGRU):
    def learning_step(self, forward, x, y):
        return metrics.SequenceLoss(forward(x), y, lambda out, y, w: jnp.square(out).mean((0, 2)))


class Summed(CopyGRU):
    """The advice."""

    def build(self):
        return Running(super().build(), 10)


@pytest.mark.full
@pytest.mark.parametrize("strategy", [DRTRL(readout_memory=True), jt.TBPTT(window=2)])
def test_other_rules_refuse_it(strategy):
    fit = jt.Fit(strategy, max_steps=1)
    advice = "use strategy='bptt'. For other rules, .* by a model in jaxtrain.nn.Running"
    with pytest.raises(ValueError, match=f"^Copies.learning_step returned a SequenceLoss.*{advice}"):
        fit.run(Copies(), copies())
    assert jt.Fit("bptt", max_steps=1).run(Copies(), copies()).step == fit.run(Summed(), copies()).step == 1


def test_what_is_no_loss_of_a_sequence():
    class Scalar(Linear):
        def learning_step(self, forward, x, y):
            return metrics.SequenceLoss(forward(x), y, lambda out, y, w: out.sum())

    with pytest.raises(
        ValueError, match=r"a SequenceLoss returned float32 of shape \(\) .*one loss per sequence, \(3,\)"
    ):
        jt.Fit("bptt", max_steps=1).run(Scalar(), [batch(0, EVEN)])
