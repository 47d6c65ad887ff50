"""A fork that trains other parameters: optimizer state is kept where it can be, and frozen parameters stay."""

import braintools
import numpy as np
import optax
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.run_directory import read_checkpoint
from tests.small import Linear, leaves, lines, same

OPTIMIZERS = {
    "optax": lambda: optax.adam(0.05),
    "braintools": lambda: braintools.optim.Adam(0.05),
}


class Some(Linear):
    def __init__(self, names: str, optimizer=OPTIMIZERS["optax"]):
        super().__init__(optimizer)
        self.names = names

    def trainable(self, name):
        return name in self.names


def train(path, names, steps, optimizer="optax", **options):
    module = Some(names, OPTIMIZERS[optimizer])
    kept = [jt.Checkpoint(every=2, monitor=None, keep_last=9), *options.pop("callbacks", ())]
    seeds = options.pop("seeds", None)
    fit = jt.Fit("bptt", max_steps=steps, chunk=2, callbacks=kept, run_dir=path, seeds=seeds)
    result = fit.run(module, lines(), **options)
    return module, read_checkpoint(result.run_dir)


def moments(saved, name):
    return {leaf: value for leaf, value in saved.train.items() if leaf.endswith(f".{name}")}


def adam(gradients, value, m, v, count, rate=0.05):
    """Adam by hand, with the moments and the count that it starts from."""
    for g in gradients:
        count += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        value = value - rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
    return value, m, v


def gradients(w, b, step):
    """Those of ``Linear`` with respect to w and b on batch ``step``, by hand."""
    x, y = lines().train_data().batch(step)
    h, sums, ones = np.zeros((2, 3)), np.zeros((2, 2)), 0.0
    of_w, of_b = np.zeros((2, 3)), np.zeros(3)
    for xt, yt in zip(x.astype(float), y.astype(float), strict=True):
        sums, ones, h = 0.5 * sums + xt, 0.5 * ones + 1, 0.5 * h + xt @ w + b
        error = 2 / 3 * (h - yt) / 6
        of_w, of_b = of_w + sums.T @ error, of_b + ones * error.sum(0)
    return of_w, of_b


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_is_kept_fresh_or_dropped(tmp_path, optimizer, caplog):
    module, saved = train(tmp_path / "w", "w", 2, optimizer)
    start = {name: value.astype(float) for name, value in leaves(module).items()}
    assert (start["b"] == 0).all(), "frozen"
    (m, v) = (value.astype(float) for _, value in sorted(moments(saved, "w").items()))
    resume = tmp_path / "w/checkpoints/2"

    both, after = train(tmp_path / "both", "wb", 3, optimizer, resume=resume)
    of_w, of_b = gradients(start["w"], start["b"], 2)
    expected, *state = adam([of_w], start["w"], m, v, 2)
    np.testing.assert_allclose(leaves(both)["w"], expected, rtol=1e-4, err_msg="kept state")
    for (_, own), by_hand in zip(sorted(moments(after, "w").items()), state, strict=True):
        np.testing.assert_allclose(own, by_hand, rtol=1e-4)
    expected, *_ = adam([of_b], start["b"], 0.0, 0.0, 2)
    np.testing.assert_allclose(leaves(both)["b"], expected, rtol=1e-4, err_msg="fresh moments, shared count")
    assert "fork: newly trained: b; optimizer state is kept for the others" in caplog.text

    other, after = train(tmp_path / "other", "b", 4, optimizer, resume=resume)
    assert leaves(other)["w"].tobytes() == leaves(module)["w"].tobytes(), "no longer trained: not one bit changes"
    assert not moments(after, "w") and moments(after, "b").keys() and (leaves(other)["b"] != 0).all()
    assert "newly trained: b; no longer trained: w" in caplog.text


def test_a_fork_with_the_same_parameters_is_the_run_itself(tmp_path):
    whole, _ = train(tmp_path / "run", "wb", 4)
    fork, _ = train(tmp_path / "fork", "wb", 4, resume=tmp_path / "run/checkpoints/2")
    assert same(leaves(whole), leaves(fork))


def test_arrays_of_callbacks_are_kept(tmp_path):
    class Counts(jt.Callback):
        array = np.zeros(2)

        def state(self):
            return {"array": self.array}

        def load_state(self, state):
            self.array = state["array"] + 1

    train(tmp_path / "w", "w", 2, callbacks=[Counts()])
    _, after = train(tmp_path / "both", "wb", 4, callbacks=[counts := Counts()], resume=tmp_path / "w/checkpoints/2")
    assert counts.array.tolist() == [1, 1] and after.train["callbacks/Counts.0/0"].tolist() == [1, 1]


@pytest.mark.full
def test_a_fork_that_unfreezes_is_resumed_exactly(tmp_path):
    train(tmp_path / "w", "w", 2)
    resume = tmp_path / "w/checkpoints/2"
    whole, saved = train(tmp_path / "whole", "wb", 6, resume=resume)
    train(tmp_path / "cut", "wb", 4, resume=resume)
    cut, again = train(tmp_path / "cut", "wb", 6, resume="last")
    assert same(leaves(whole), leaves(cut)) and same(saved.train, again.train)


@pytest.mark.full
def test_seeds_keep_their_own_state(tmp_path):
    _, saved = train(tmp_path / "w", "w", 2, seeds=2)
    _, after = train(tmp_path / "both", "b", 4, seeds=2, resume=tmp_path / "w/checkpoints/2")
    assert after.params["w"].tobytes() == saved.params["w"].tobytes() and (after.params["b"] != 0).all()


def test_only_a_fork_may_train_other_parameters(tmp_path):
    train(tmp_path / "w", "w", 2)
    with pytest.raises(ValueError, match=r"other parameters \(newly trained: b\): continue as a fork, with resume="):
        train(tmp_path / "w", "wb", 4, resume="last")

    class Momentum(Some):
        def configure_optimizer(self):
            return optax.sgd(0.1, momentum=0.9)

    fit = jt.Fit("bptt", max_steps=4, run_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="is of another optimizer"):
        fit.run(Momentum("wb"), lines(), resume=tmp_path / "w/checkpoints/2")
