"""Metrics that are no means, and one decision per sequence, against numpy over the whole data."""

import dataclasses

import brainstate
import braintools
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain import metrics
from jaxtrain.core.metrics import Collected
from tests.small import Linear, result_of, rows, scalars

T, CLASSES = 4, 3


class Scored(Linear):
    """Three outputs: scores of classes, of which the first is also a prediction; targets are class and value."""

    def learning_step(self, forward, x, y):
        out = forward(x)
        kind, value = y["class"], y["value"]
        found = {"every": metrics.Accuracy(out, kind), "plain": out.argmax(-1) == kind}
        for way in ("sum", "mean", "last", "max", largest):
            name = way if isinstance(way, str) else "function"
            found[f"accuracy_{name}"] = metrics.Accuracy(out, kind, decide=way)
            found[f"auroc_{name}"] = metrics.AUROC(out[:, 0], kind == 0, decide=way)
        found |= {
            "recall": metrics.Accuracy(out, kind, decide="sum", per_class=True),
            "f1": metrics.F1(out, kind, decide="sum"),
            "f1_each": metrics.F1(out, kind, decide="sum", average=None),
            "confusion": metrics.ConfusionMatrix(out, kind, decide="sum"),
            "confusion_steps": metrics.ConfusionMatrix(out, kind, weight=jnp.where(kind == 1, 2.0, 0.5)),
            "r2": metrics.R2(out[:, :2], value),
            "r2_last": metrics.R2(out[:, :2], value, decide="last"),
            "correlation": metrics.Correlation(out[:, :2], value),
        }
        return jnp.square(out[:, :2] - value).mean(-1), found


def largest(outputs, weights):  # the output of the largest norm
    size = jnp.where(weights != 0, jnp.abs(outputs.reshape(*weights.shape, -1)).sum(-1), -1)
    return outputs[size.argmax(0), jnp.arange(size.shape[1])]


def dataset(rng, n, mean=0.0):
    """Sequences of 2 to T time steps with the same outputs under every batching."""
    x = [rng.normal(size=(rng.integers(2, T + 1), 2)).astype("float32") for _ in range(n)]
    kind = [np.full(len(a), rng.integers(CLASSES), "int32") for a in x]
    value = [(a + mean + rng.normal(size=a.shape)).astype("float32") for a in x]
    return x, [{"class": k, "value": v} for k, v in zip(kind, value, strict=True)]


def padded(part, fill):
    """Sequences side by side, ``(T, B, ...)``, with ``fill`` at the end."""
    out = np.full((T, len(part), *part[0].shape[1:]), fill, part[0].dtype)
    for i, sequence in enumerate(part):
        out[: len(sequence), i] = sequence
    return out


def batches(x, y, size):
    """Padded batches with weights; the padding holds NaN."""
    found = []
    for at in range(0, len(x), size):
        part, targets = x[at : at + size], y[at : at + size]
        stacked = {name: padded([t[name] for t in targets], fill) for name, fill in (("class", -1), ("value", np.nan))}
        weights = padded([np.ones(len(sequence), "float32") for sequence in part], 0)
        found.append(jt.Phases(None, padded(part, np.nan), stacked, weights=weights))
    return found


def outputs(x):
    """The outputs of ``Linear`` before training, by hand."""
    found = []
    for sequence in x:
        h = np.zeros(3)
        rows = []
        for step in sequence.astype("float64"):
            h = 0.5 * h + step @ np.asarray(WEIGHT)
            rows.append(h)
        found.append(np.stack(rows))
    return found


WEIGHT = np.random.default_rng(3).normal(size=(2, 3)).astype("float32")


class Net(Linear.Net):
    def __init__(self):
        super().__init__()
        self.w.value = jnp.asarray(WEIGHT)


Scored.Net = Net
RNG = np.random.default_rng(0)
X, Y = dataset(RNG, 23)
OUT = outputs(X)
KIND = np.array([y["class"][0] for y in Y])


def decided(how):
    return np.stack([how(out) for out in OUT])


HOW = {
    "sum": lambda out: out.sum(0), "mean": lambda out: out.mean(0), "last": lambda out: out[-1],
    "max": lambda out: out.max(0), "function": lambda out: out[np.abs(out).sum(-1).argmax()],
}  # fmt: skip


def f1_by_hand(true, predicted):
    each = []
    for c in range(CLASSES):
        hit, missed, false = (np.sum(a) for a in ((true == c) & (predicted == c), (true == c) & (predicted != c),
                                                  (true != c) & (predicted == c)))  # fmt: skip
        each.append(2 * hit / (2 * hit + missed + false))
    return each


def auroc_by_hand(score, positive):
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    return np.mean(pairs)


def r2_by_hand(prediction, target):
    return np.mean(1 - np.square(target - prediction).sum(0) / np.square(target - target.mean(0)).sum(0))


@pytest.fixture(scope="module")
def found():
    return jt.Fit("bptt").validate(Scored(), batches(X, Y, 8))


@pytest.mark.parametrize("way", HOW)
def test_a_sequence_is_decided_once(found, way):
    scores = decided(HOW[way])
    assert found[f"val/accuracy_{way}"] == pytest.approx(np.mean(scores.argmax(-1) == KIND), abs=1e-6)
    one = decided(lambda out: HOW[way](out[:, :1]))[:, 0]
    assert found[f"val/auroc_{way}"] == pytest.approx(auroc_by_hand(one, KIND == 0), abs=1e-6)


def test_per_class_metrics_of_decisions(found):
    predicted = decided(HOW["sum"]).argmax(-1)
    recall = [np.mean(predicted[c == KIND] == c) for c in range(CLASSES)]
    np.testing.assert_allclose(found["val/recall"], recall, rtol=1e-6)
    np.testing.assert_allclose(found["val/f1_each"], f1_by_hand(KIND, predicted), rtol=1e-6)
    assert found["val/f1"] == pytest.approx(np.mean(f1_by_hand(KIND, predicted)), rel=1e-6)
    matrix = [[np.sum((a == KIND) & (predicted == b)) for b in range(CLASSES)] for a in range(CLASSES)]
    assert found["val/confusion"] == matrix


def test_without_a_decision_every_time_step_counts_with_its_own_weight(found):
    predicted, kind = np.concatenate(OUT).argmax(-1), np.concatenate([y["class"] for y in Y])
    weight = np.where(kind == 1, 2.0, 0.5)
    matrix = [[weight[(kind == a) & (predicted == b)].sum() for b in range(CLASSES)] for a in range(CLASSES)]
    np.testing.assert_allclose(found["val/confusion_steps"], matrix, rtol=1e-6)
    assert found["val/every"] == found["val/plain"] == pytest.approx(np.mean(predicted == kind), abs=1e-6)


def test_metrics_of_regression(found):
    out, value = np.concatenate(OUT)[:, :2], np.concatenate([y["value"] for y in Y])
    assert found["val/r2"] == pytest.approx(r2_by_hand(out, value), rel=1e-5)
    pearson = np.mean([np.corrcoef(out[:, i], value[:, i])[0, 1] for i in range(2)])
    assert found["val/correlation"] == pytest.approx(pearson, rel=1e-5)
    last = np.stack([out[-1, :2] for out in OUT]), np.stack([y["value"][-1] for y in Y])
    assert found["val/r2_last"] == pytest.approx(r2_by_hand(*last), rel=1e-5)


def equal(found, wanted, **tolerance):
    assert found.keys() >= wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **{"rtol": 1e-6, "atol": 1e-7, **tolerance})


@pytest.mark.full
def test_batches_do_not_matter(found, monkeypatch):
    monkeypatch.setattr(Collected, "LIMIT", 3)  # more batches than are kept before they are merged
    equal(jt.Fit("bptt").validate(Scored(), batches(X, Y, 2)), found, rtol=1e-5)


def data(size=8):
    return jt.DataModule(batches(X, Y, size)[:2], batches(X, Y, size))


class OfSeed(Scored):
    """Another weight for each seed; training changes nothing."""

    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.w.value = brainstate.random.normal(size=(2, 3))

    def __init__(self):
        super().__init__(lambda: braintools.optim.SGD(0.0))


@pytest.mark.full
def test_a_run_with_seeds_gives_the_mean_of_the_finished_metrics(tmp_path):
    each = [jt.Fit("bptt", seed=seed).validate(OfSeed(), batches(X, Y, 8)) for seed in (0, 1)]
    mean = {name: np.mean([one[name] for one in each], 0) for name in each[0]}
    assert each[0]["val/f1"] != each[1]["val/f1"]
    fit = jt.Fit("bptt", max_steps=2, seeds=2, accumulate=2, run_dir=tmp_path, log_every=2)
    result = fit.run(OfSeed(), data())
    equal(result.metrics, mean, rtol=1e-5)
    equal(result.metrics, {f"seeds/{name}": [one[name] for one in each] for name in mean}, rtol=1e-5)
    (row,) = rows(tmp_path)
    assert row["val/recall/2"] == pytest.approx(mean["val/recall"][2], rel=1e-5)
    assert row["seeds/val/recall/2"] == pytest.approx([one["val/recall"][2] for one in each], rel=1e-5)
    assert not {"val/recall", "val/confusion", "val/confusion/0", "seeds/val/confusion"} & row.keys()
    assert {name for name in row if name.startswith("train/")} == {"train/loss", "train/every", "train/plain"}
    assert row["train/every"] == row["train/plain"]
    shown = scalars(tmp_path)
    assert shown["val/recall/2"] == [(2, pytest.approx(row["val/recall/2"]))] and "val/confusion/0" not in shown
    np.testing.assert_allclose(result_of(tmp_path)["val"]["confusion"], mean["val/confusion"])
    assert "val/every=" in repr(result)


# ------------------------------------------------------------------------------------------------- difficult values


def finished(metric, weights):
    """A metric over stacked arrays, as ``over_time`` and the host compute it, in two batches along the sequences."""
    total = None
    for part in (slice(0, 3), slice(3, None)):
        cut = [jnp.asarray(a)[:, part] for a in (metric.outputs, metric.targets, weights)]
        one = dataclasses.replace(metric, outputs=cut[0], targets=cut[1], weight=cut[2]).over_time().on_host()
        total = one if total is None else total.merge(one)
    return total.finish()


@pytest.mark.parametrize("mean", [0.0, 1e4, -3e5])
def test_moments_do_not_cancel(mean):
    """float32 resolves 0.03 at 3e5, so the truth is that of the rounded values."""
    rng = np.random.default_rng(1)
    y = (mean + rng.normal(size=(50, 7))).astype("float32")
    p = (y + 0.5 * rng.normal(size=(50, 7))).astype("float32")
    a, b = y.astype("float64").ravel(), p.astype("float64").ravel()
    assert finished(metrics.R2(p, y), np.ones((50, 7))) == pytest.approx(r2_by_hand(b[:, None], a[:, None]), rel=1e-5)
    assert finished(metrics.Correlation(p, y), np.ones((50, 7))) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-5)


def test_ties_and_weights_of_an_auroc():
    rng = np.random.default_rng(2)
    score, y, w = rng.integers(0, 4, (9, 6)).astype("float32"), rng.random((9, 6)) < 0.4, rng.integers(0, 3, (9, 6))
    s, positive = np.repeat(score.ravel(), w.ravel()), np.repeat(y.ravel(), w.ravel())
    assert finished(metrics.AUROC(score, y), w.astype("float32")) == pytest.approx(auroc_by_hand(s, positive), rel=1e-9)


def test_what_is_not_defined_is_nan():
    nothing = np.zeros((2, 6), "float32")
    scores, kind = np.ones((2, 6, 3), "float32"), np.zeros((2, 6), int)
    for metric in (
        metrics.F1(scores, kind), metrics.AUROC(scores[..., 0], kind), metrics.R2(scores, scores),
        metrics.Correlation(scores, scores), metrics.Accuracy(scores, kind, decide="max"),
    ):  # fmt: skip
        assert np.isnan(finished(metric, nothing))
    assert np.isnan(finished(metrics.Accuracy(scores, kind, per_class=True), nothing + 1)[1:]).all()
    assert np.isnan(finished(metrics.AUROC(scores[..., 0], kind), nothing + 1))  # no positives
    first, either = np.arange(12).reshape(2, 6) == 0, np.arange(12).reshape(2, 6) % 2
    diverged = metrics.AUROC(np.where(first, np.float32(np.nan), scores[..., 0]), either)
    assert np.isnan(finished(diverged, nothing + 1)) and finished(diverged, nothing + ~first) == 0.5
    assert np.isnan(finished(metrics.R2(scores, scores), nothing + 1))  # constant targets


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda out, y: metrics.F1(out[:, 0], y), r"scores have shape \(2,\); expected \(B, C\)"),
        (lambda out, y: metrics.Accuracy(out, out), r"targets have shape \(2, 3\) and dtype float32; expected int"),
        (lambda out, y: metrics.Accuracy(out, y, decide="median"), "decide='median'; expected None, one of"),
        (lambda out, y: metrics.F1(out, y, average="micro"), "average='micro'; expected 'macro', or None"),
        (lambda out, y: metrics.AUROC(out, y), r"expected \(B,\) each: of two classes"),
        (lambda out, y: metrics.R2(out, out[:, 0]), "expected equal shapes"),
        (lambda out, y: metrics.R2(out[0], y), r"predictions have shape \(3,\); expected \(2, ...\), as the sequences"),
        (lambda out, y: metrics.R2(out, out, decide=lambda o, w: o[0, 0]), r"returned shape \(3,\) for outputs"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_fit(metric, message):
    class Wrong(Linear):
        def learning_step(self, forward, x, y):
            out = forward(x)
            return out.sum(-1), {"own": metric(out, y)}

    batch = np.zeros((3, 2, 2), "float32"), np.zeros((3, 2), int)
    with pytest.raises((TypeError, ValueError), match=message):
        jt.Fit("bptt").validate(Wrong(), [batch], batch_first=False)
