"""Sequences of several lengths: a padded run is that of the sequences alone, and predictions have no padding."""

import logging

import brainstate
import braintrace
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.objective import phases_of
from jaxtrain.datasets import Delta, bucket, pad
from tests.small import Linear, count_compiles, leaves

RNG = np.random.default_rng(0)
LENGTHS = [3, 1, 4, 2, 4, 2, 3, 1]
INPUTS = [RNG.normal(size=(n, 2)).astype(np.float32) for n in LENGTHS]
TARGETS = [RNG.normal(size=(n, 3)).astype(np.float32) for n in LENGTHS]


class Recurrent(Linear):
    """``Linear`` through an operation that braintrace traces."""

    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.full((2, 3), 0.1, jnp.float32))

        def update(self, x):
            self.h.value = jnp.tanh(0.5 * self.h.value + braintrace.matmul(x, self.w.value) + self.b.value)
            return self.h.value


# --------------------------------------------------------------------------------------------------------- pad


def test_padding_at_the_end():
    phases = pad(INPUTS[:3], TARGETS[:3])
    assert phases.sizes == (0, 4, 3) and phases.reset is None
    assert phases.weights.T.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    for index in range(3):
        np.testing.assert_array_equal(phases.inputs[: LENGTHS[index], index], INPUTS[index])
        np.testing.assert_array_equal(phases.targets[: LENGTHS[index], index], TARGETS[index])
    assert pad(INPUTS[:3], TARGETS[:3], time=6).sizes == (0, 6, 3)


def test_padding_at_the_start_resets_after_it():
    phases = pad(INPUTS[:3], [y[-1:] for y in TARGETS[:3]], time=5, side="start")
    assert phases.sizes == (4, 1, 3) and phases.weights.tolist() == [[1, 1, 1]]
    assert phases.reset.argmax(0).tolist() == [2, 4, 1] and phases.reset.sum(0).tolist() == [1, 1, 1]
    x = np.concatenate([phases.warmup, phases.inputs])
    for index in range(3):
        np.testing.assert_array_equal(x[-LENGTHS[index] :, index], INPUTS[index])
        np.testing.assert_array_equal(phases.targets[0, index], TARGETS[index][-1])
    two = pad(INPUTS[:3], [y[-1:] for y in TARGETS[:3]], scored=2, side="start")
    assert two.sizes == (2, 2, 3) and two.weights.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_one_target_for_a_sequence():
    phases = pad(INPUTS[:3], [5, 6, 7])
    assert phases.targets.T.tolist() == [[5, 5, 5, 0], [6, 0, 0, 0], [7, 7, 7, 7]]
    assert pad(INPUTS[:2]).targets is None


@pytest.mark.full
@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("strategy", ["bptt", "drtrl"])
def test_a_padded_batch_has_the_gradient_of_its_sequences(side, strategy):
    """One step on a padded batch, and one on the accumulated sequences, change the parameters alike."""
    padded, alone = Linear(), Linear()
    jt.Fit(strategy, max_steps=1).run(padded, [pad(INPUTS[:3], TARGETS[:3], time=5, side=side)])
    merged = [pad([x], [y], time=4) for x, y in zip(INPUTS[:3], TARGETS[:3], strict=True)]
    jt.Fit(strategy, max_steps=3, accumulate=3).run(alone, merged)
    for name, leaf in leaves(alone).items():
        np.testing.assert_allclose(leaves(padded)[name], leaf, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pad([]), "0 inputs and 0 targets; expected at least one"),
        (lambda: pad(INPUTS, TARGETS[:2]), "8 inputs and 2 targets"),
        (lambda: pad([np.zeros(0)]), r"sequence 0 has shape \(0,\); expected \(T, ...\) with at least one"),
        (lambda: pad([np.zeros((2, 3)), np.zeros((2, 4))]), r"sequence 1 has shape \(2, 4\); expected \(T, 3\)"),
        (lambda: pad(INPUTS[:1], [np.zeros(5)]), "targets 0 have 5 time steps, inputs 0 3"),
        (lambda: bucket(np.zeros((3, 2)), batch_size=1), "inputs are a ndarray; expected a list of sequences"),
        (lambda: bucket(INPUTS, batch_size=3, lengths=(2, 4)).batch(9) and bucket(INPUTS, batch_size=5, lengths=(2, 4)),
         "4 sequences of one length do not fill a batch of 5"),
    ],
)  # fmt: skip
def test_bad_sequences(call, message):
    with pytest.raises(jt.errors.DataError, match=message):
        call()


def test_bad_options():
    with pytest.raises(ValueError, match="pad: time=2 is less than the 3 time steps"):
        pad(INPUTS[:1], time=2)
    with pytest.raises(ValueError, match="pad: scored=1 is less than the 3 time steps"):
        pad(INPUTS[:1], TARGETS[:1], scored=1, side="start")
    with pytest.raises(ValueError, match="pad: side='left'; expected 'end' or 'start'"):
        pad(INPUTS, side="left")
    with pytest.raises(ValueError, match=r"bucket: 4 time steps do not fit into the sizes \[2, 3\]; give a larger one"):
        bucket(INPUTS, batch_size=1, lengths=(2, 3))


# ------------------------------------------------------------------------------------------------------ bucket


def test_each_batch_has_one_of_a_few_lengths():
    data = bucket(INPUTS, TARGETS, batch_size=2, lengths=(2, 4))
    seen = []
    for step in range(len(data)):
        batch = data.batch(step)
        phases = phases_of(Linear(), batch)
        time = phases.sizes[1]
        assert time in (2, 4)
        for index, row in enumerate(batch.row):
            n = LENGTHS[row]
            np.testing.assert_array_equal(phases.inputs[:n, index], INPUTS[row])
            np.testing.assert_array_equal(phases.targets[:n, index], TARGETS[row])
            assert np.asarray(phases.weights)[:, index].tolist() == [1.0] * n + [0.0] * (time - n)
            assert time == 2 if n <= 2 else time == 4
            seen.append(int(row))
    assert sorted(seen) == [*range(8)]
    assert [phases_of(Linear(), data.batch(step)).sizes[1] for step in data.shape_examples] == [4, 2]
    later = [data.batch(4 + step).row.tolist() for step in range(4)]
    assert sorted(np.concatenate(later).tolist()) == [*range(8)] and later != [
        data.batch(step).row.tolist() for step in range(4)
    ]


def test_lengths_are_chosen_by_quantiles():
    assert bucket(INPUTS, batch_size=1, lengths=2).lengths == [2, 4]
    assert bucket(INPUTS, batch_size=1).lengths == [1, 2, 3, 4]
    assert bucket(INPUTS, batch_size=1, lengths=(9, 4, 4)).lengths == [4, 9]


def test_the_last_time_steps_are_scored():
    data = bucket(INPUTS, [*range(8)], batch_size=4, lengths=(4,), scored=2, shuffle=False)
    phases = phases_of(Linear(), data.batch(0))
    assert np.asarray(phases.weights).T.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    assert np.asarray(phases.targets)[:, 3].tolist() == [3] * 4
    short = bucket(INPUTS, [y[-1:] for y in TARGETS], batch_size=4, lengths=(4,), shuffle=False)
    phases = phases_of(Linear(), short.batch(1))
    assert np.asarray(phases.weights).sum(0).tolist() == [1] * 4
    np.testing.assert_array_equal(np.asarray(phases.targets)[LENGTHS[5] - 1, 1], TARGETS[5][-1])


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["bptt", "drtrl", jt.DRTRL(engine="trace"), "pp_prop"], ids=str)
def test_a_run_over_several_lengths_is_that_of_one_length(strategy):
    """Batches padded to few lengths train as the same batches padded to the longest."""

    class Longest:
        def __init__(self, data):
            self.data = data

        def __len__(self):
            return len(self.data)

        def batch(self, step):
            rows = self.data.batch(step).row
            return pad([INPUTS[row] for row in rows], [TARGETS[row] for row in rows], time=4)

    data, ends = bucket(INPUTS, TARGETS, batch_size=2, lengths=(2, 4)), []
    for source in (data, Longest(data)):
        module = Recurrent()
        fit = jt.Fit(strategy, max_epochs=3, log_every=1, chunk=4, validate_every=4)
        result = fit.run(module, jt.DataModule(source, source, batch_first=None if source is data else False))
        ends.append((result, leaves(module)))
    (several, ours), (longest, theirs) = ends
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=1e-4, atol=1e-6)
    for a, b in zip(several.history, longest.history, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)
    assert several.metrics["val/loss"] == pytest.approx(longest.metrics["val/loss"], rel=1e-5)


@pytest.mark.full
def test_nothing_is_compiled_after_the_start():
    module, counts = Linear(), []
    data = bucket(INPUTS, TARGETS, batch_size=2, lengths=(2, 4))

    class Count(jt.Callback):
        def on_fit_start(self, run):
            counts.append(len(seen))

    seen, stop = count_compiles()
    jt.Fit("bptt", max_epochs=3, callbacks=[Count()]).run(module, jt.DataModule(data, data))
    stop()
    assert len(seen) == counts[0]


@pytest.mark.full
def test_seeds_and_accumulation_work_with_several_lengths():
    data = bucket(INPUTS, TARGETS, batch_size=2, lengths=(2, 4))
    one = Linear()
    jt.Fit("bptt", max_epochs=2, accumulate=2).run(one, data)
    several = Linear()
    result = jt.Fit("bptt", max_epochs=2, accumulate=2, seeds=2).run(several, data)
    assert result.step == 8
    for name, leaf in leaves(one).items():
        np.testing.assert_allclose(leaves(several)[name], leaf, rtol=1e-5, atol=1e-7)


def test_an_encoder_that_keeps_the_time_steps():
    data = bucket(INPUTS, [0] * 8, batch_size=2, lengths=(4,), encoder=Delta(0.5), shuffle=False)
    got = np.asarray(phases_of(Linear(), data.batch(1)).inputs)
    for index, row in enumerate((2, 3)):
        alone = np.asarray(Delta(0.5)(INPUTS[row], None))
        np.testing.assert_array_equal(got[: LENGTHS[row], index], alone)
    stretched = bucket(INPUTS, [0] * 8, batch_size=2, lengths=(4,), encoder=lambda x, key: jnp.repeat(x, 2, 0))
    with pytest.raises(
        ValueError, match="makes 8 time steps of 4; sequences of several lengths need an encoder that keeps"
    ):
        phases_of(Linear(), stretched.batch(0))


# ----------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("shuffle", [False, True])
def test_predictions_are_those_of_the_sequences_alone_in_their_order(shuffle, caplog):
    fit, module = jt.Fit("bptt", max_steps=1), Linear()
    expected = [fit.predict(module, [x[:, None]], batch_first=False)[:, 0] for x in INPUTS]
    got = fit.predict(module, bucket(INPUTS, batch_size=3, lengths=(2, 4), shuffle=shuffle, last="pad"))
    assert len(got) == 8
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    with caplog.at_level(logging.WARNING, "jaxtrain"):
        bare = fit.predict(module, [x[:, None] for x in INPUTS], batch_first=False)
    assert [out.shape for out in bare] == [(n, 3) for n in LENGTHS]
    for ours, theirs in zip(bare, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_warm_up_is_no_output_but_is_recorded():
    class Warm(Linear):
        def phases(self, batch):
            return jt.Phases(warmup=batch[:1], inputs=batch[1:])

    fit, module = jt.Fit("bptt", max_steps=1), Warm()
    data = bucket(INPUTS, batch_size=3, lengths=(2, 4), last="pad")
    whole = [fit.predict(Linear(), [x[:, None]], batch_first=False)[:, 0] for x in INPUTS]
    got = fit.predict(module, data)
    assert [len(out) for out in got] == [n - 1 for n in LENGTHS]
    for ours, theirs in zip(got, whole, strict=True):
        np.testing.assert_allclose(ours, theirs[1:], rtol=1e-6)
    batches = fit.predict_batches(module, data)
    lengths = {row: n for batch in batches for row, n in zip(batch.rows, batch.lengths, strict=True)}
    assert [lengths[row] for row in range(8)] == [n - 1 for n in LENGTHS]
    assert [len(each["output"]) for each in fit.record(module, data, ["output"])] == LENGTHS
