"""Arrays and map-style data sets as batches: the order, layouts, last batches, and exactness."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.objective import phases_of
from jaxtrain.data.iterator import DataIterator
from jaxtrain.datasets import ArrayDataset, Bernoulli, Repeat
from tests.small import At, Linear, kill, leaves, rows, same

RNG = np.random.default_rng(0)
X = RNG.random((10, 3, 2)).astype(np.float32)
Y = RNG.random((10, 3, 3)).astype(np.float32)
LABELS = np.arange(10) % 3


class Classes(Linear):
    """One label per sequence."""

    def learning_step(self, forward, x, y):
        loss = jnp.square(forward(x).sum(-1) - y)
        return loss, {"label": y}


def arrays(**options):
    options = {"batch_size": 4, "batch_first": True, **options}
    return ArrayDataset(X, Y, **options)


def rates(**options):
    return ArrayDataset(X[:, 0], LABELS, **{"batch_size": 4, "encoder": Bernoulli(5), **options})


def phases(data, step=0, module=None):
    return phases_of(module or Linear(), data.batch(step))


# --------------------------------------------------------------------------------------------- order and content


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch():
    data, again = arrays(batch_size=2), arrays(batch_size=2)
    order = [np.concatenate([data.batch(5 * epoch + i).row for i in range(5)]).tolist() for epoch in range(3)]
    assert len(data) == 5 and all(sorted(rows) == [*range(10)] for rows in order)
    assert order[0] != order[1] != order[2] != [*range(10)]
    for step in (13, 2, 7):  # in any order
        np.testing.assert_array_equal(again.batch(step).row, data.batch(step).row)
    assert [arrays(batch_size=2, seed=1).batch(i).row.tolist() for i in range(5)] != [
        data.batch(i).row.tolist() for i in range(5)
    ]
    assert np.concatenate([arrays(batch_size=2, shuffle=False).batch(7).row]).tolist() == [4, 5]


class MapStyle:
    """As a data set of torch or grain: a length and items."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        assert type(index) is int
        return X[index], Y[index]


@pytest.mark.parametrize("layout", ["batch first", "time first", "items", "pairs", "map style", "dict"])
def test_every_layout_gives_the_same_batches(layout):
    data = {
        "batch first": lambda: arrays(),
        "time first": lambda: ArrayDataset(X.swapaxes(0, 1), Y.swapaxes(0, 1), batch_size=4, batch_first=False),
        "items": lambda: ArrayDataset(list(X), list(Y), batch_size=4),
        "pairs": lambda: ArrayDataset([*zip(X, Y, strict=True)], batch_size=4),
        "map style": lambda: ArrayDataset(MapStyle(), batch_size=4),
        "dict": lambda: ArrayDataset(
            [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], batch_size=4, item=lambda d: (d["x"], d["y"])
        ),
    }[layout]()
    iterator = DataIterator(data)
    batch = iterator.take(3)[2]  # of the second epoch
    got = phases_of(Linear(), batch)
    order = np.random.default_rng((0, 1)).permutation(10)[:4]
    np.testing.assert_array_equal(got.inputs, X[order].swapaxes(0, 1))
    np.testing.assert_array_equal(got.targets, Y[order].swapaxes(0, 1))
    assert got.weights is None and got.warmup is None


def test_a_label_is_the_target_of_every_scored_time_step():
    data = ArrayDataset(X, LABELS, batch_size=4, batch_first=True, shuffle=False, last="drop")
    np.testing.assert_array_equal(phases(data).targets, np.tile(LABELS[:4], (3, 1)))
    last = phases(ArrayDataset(X, LABELS, batch_size=4, batch_first=True, scored=1, shuffle=False))
    assert last.sizes == (2, 1, 4) and last.targets.tolist() == [LABELS[:4].tolist()]
    with pytest.raises(ValueError, match="scored=4, but a sequence has 3 time steps"):
        phases(ArrayDataset(X, LABELS, batch_size=4, batch_first=True, scored=4))
    with pytest.raises(jt.errors.DataError, match="scored= needs one target per sequence"):
        arrays(scored=1).batch(0)


def test_dicts_of_arrays_and_arrays_of_other_libraries():
    class Stored:  # as h5py: rows in increasing order, without repetition
        shape, dtype = X.shape, X.dtype

        def __getitem__(self, at):
            assert (np.diff(at) > 0).all()
            return X[at]

    data = ArrayDataset({"a": jnp.asarray(X), "b": Stored()}, {"c": Y, "d": LABELS}, batch_size=3,
                        batch_first=True, last="pad")  # fmt: skip
    for step in range(4):
        batch = data.batch(step)
        np.testing.assert_array_equal(batch.inputs["a"], X[batch.row].swapaxes(0, 1))
        np.testing.assert_array_equal(batch.inputs["b"], batch.inputs["a"])
        np.testing.assert_array_equal(batch.targets["d"], LABELS[batch.row])


def test_a_memory_map_is_not_read_as_a_whole(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4000, 10, 100), np.float32))  # 16 MB
    stored = np.load(path, mmap_mode="r")
    tracemalloc.start()
    data = ArrayDataset(stored, batch_size=8, batch_first=True)
    iterator = DataIterator(data)
    iterator.take(5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, peak


# ---------------------------------------------------------------------------------------------- the last batch


def test_the_last_batch():
    assert (len(arrays()), len(arrays(last="pad")), len(arrays(shuffle=False)), len(arrays(batch_size=5))) == (
        2,
        3,
        3,
        2,
    )
    padded = [phases(arrays(shuffle=False), step) for step in range(3)]
    assert [np.asarray(p.weights).tolist() for p in padded] == [
        [[1.0] * 4] * 3,
        [[1.0] * 4] * 3,
        [[1.0, 1.0, 0.0, 0.0]] * 3,
    ]
    np.testing.assert_array_equal(padded[2].inputs[:, :2], X[8:].swapaxes(0, 1))
    assert phases(arrays(batch_size=5, last="pad")).weights is None, "full batches need no weights"
    with pytest.raises(
        jt.errors.DataError, match="10 sequences do not fill batches of 4, 2 are left over; choose another"
    ):
        arrays(last="refuse")
    assert len(arrays(batch_size=2, last="refuse")) == 5
    with pytest.raises(
        jt.errors.DataError, match="10 sequences do not fill a batch of 11; choose a smaller batch_size"
    ):
        arrays(batch_size=11)


def test_weights_of_the_module_and_of_the_padding_multiply():
    class Halves(Linear):
        def phases(self, batch):
            x, y = batch
            return jt.Phases(None, x, y, weights=jnp.array([0.5, 0.0, 2.0]))

    got = phases(arrays(shuffle=False), 2, Halves())
    assert np.asarray(got.weights).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 0], [2, 2, 0, 0]]


def test_a_padded_validation_is_that_of_the_sequences():
    module, fit = Linear(), jt.Fit("bptt", max_steps=1)
    expected = fit.validate(module, [(X, Y)], batch_first=True)
    padded = fit.validate(module, arrays(shuffle=False))
    assert padded.keys() == expected.keys() and padded["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-6)
    assert fit.validate(module, arrays(last="drop"))["val/loss"] != pytest.approx(expected["val/loss"], rel=1e-4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_predictions_are_in_the_order_of_the_data(shuffle):
    module, fit = Linear(), jt.Fit("bptt", max_steps=1)
    expected = fit.predict(module, [X], batch_first=True)
    got = fit.predict(module, ArrayDataset(X, batch_size=4, batch_first=True, shuffle=shuffle, last="pad"))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    time_first = ArrayDataset(X.swapaxes(0, 1), batch_size=4, batch_first=False, shuffle=shuffle, last="pad")
    np.testing.assert_allclose(fit.predict(module, time_first), expected.swapaxes(0, 1), rtol=1e-6)
    with pytest.raises(jt.errors.DataError, match="predict data: its batches leave out 2 sequences; give ArrayDataset"):
        fit.predict(module, arrays(shuffle=shuffle, last="drop"))


# --------------------------------------------------------------------------------------------------- exactness


SOURCES = {
    "arrays": (Linear, arrays),
    "time first": (Linear, lambda: ArrayDataset(X.swapaxes(0, 1), Y.swapaxes(0, 1), batch_size=4, batch_first=False)),
    "padded": (Linear, lambda: arrays(last="pad")),
    "rate code": (Classes, rates),
    "items": (Classes, lambda: ArrayDataset([*zip(X[:, 0], LABELS, strict=True)], batch_size=3, encoder=Bernoulli(4))),
    "bucket": (
        Linear,
        lambda: jt.datasets.bucket([x[: 1 + i % 3] for i, x in enumerate(X)], [y[: 1 + i % 3] for i, y in enumerate(Y)],
                                   batch_size=2, lengths=(2, 3), last="pad"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_a_killed_and_resumed_run_is_bit_for_bit_that_of_one_go(kind, tmp_path):
    module, make = SOURCES[kind]

    def run(name, *callbacks, resume="never"):
        own = module()
        fit = jt.Fit(
            "bptt",
            max_steps=7,
            chunk=2,
            log_every=1,
            callbacks=callbacks,
            run_dir=tmp_path / name,
            loggers=[jt.loggers.JSONL()],
        )
        return fit.run(own, make(), resume=resume), own

    result, whole = run("whole")
    assert result.step == 7
    cut, _ = run("cut", At("on_chunk_end", 4, lambda run: kill()))
    assert cut.status != "finished" and 0 < cut.step < 7
    result, resumed = run("cut", resume="last")
    assert (
        result.step == 7 and same(leaves(whole), leaves(resumed)) and rows(tmp_path / "whole") == rows(tmp_path / "cut")
    )


def test_other_data_is_refused_on_resume(tmp_path):
    fit = jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "run", loggers=())
    fit.run(Classes(), rates())
    for other in (rates(encoder=Bernoulli(6)), rates(seed=1), rates(encoder=Repeat(5)), rates(last="pad")):
        with pytest.raises(ValueError, match="data"):
            jt.Fit("bptt", max_steps=3, run_dir=tmp_path / "run", loggers=()).run(Classes(), other, resume="last")
    assert (
        jt.Fit("bptt", max_steps=3, run_dir=tmp_path / "run", loggers=()).run(Classes(), rates(), resume="last").step
        == 3
    )


def test_accumulated_batches_draw_as_one_large_batch():
    after = {}
    for size, accumulate in ((2, 2), (4, 1)):
        module = Classes()
        data = ArrayDataset(X[:8, 0], LABELS[:8], batch_size=size, encoder=Bernoulli(5))
        jt.Fit("bptt", max_steps=4 * accumulate, accumulate=accumulate).run(module, data)
        after[size] = leaves(module)
    for name, leaf in after[4].items():
        np.testing.assert_allclose(after[2][name], leaf, rtol=1e-5, atol=1e-7)


def test_a_run_learns_and_validates_from_arrays(caplog):
    data = jt.DataModule(rates(), val=rates(shuffle=False))
    result = jt.Fit("drtrl", max_epochs=4).run(Classes(), data)
    assert result.step == 8 and result.metrics["val/label"] == pytest.approx(LABELS.mean())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ArrayDataset(X, Y, batch_size=2), "state the layout of the arrays: batch_first=True if they are"),
        (lambda: rates(batch_first=False), "batch_first=False, but with an encoder, axis 0 counts the sequences"),
        (lambda: ArrayDataset([*X], batch_size=2, batch_first=False), "items are counted by index; leave it out"),
        (lambda: arrays(last="keep"), "last='keep'; expected 'drop', 'pad' or 'refuse'"),
        (lambda: arrays(batch_size=0), "ArrayDataset: batch_size=0 is too small"),
        (lambda: arrays(item=lambda i: i), "item= is for a data set with __len__"),
        (lambda: arrays(batch_first="yes"), "batch_first='yes'; expected True or False"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ArrayDataset(X, Y[:9], batch_size=2, batch_first=True), "axis 0, targets 9; .* number$"),
        (lambda: ArrayDataset(X, Y[:, :2], batch_size=2, batch_first=False), "; is axis 0 the batch\\? Then bat"),
        (lambda: ArrayDataset({"a": X, "b": X[:3]}, batch_size=2, batch_first=True), r"hold \[3, 10\] sequences"),
        (lambda: ArrayDataset(np.float32(1), batch_size=2, batch_first=True), r"holds an array of shape \(\)"),
        (lambda: ArrayDataset({"a": "x"}, batch_size=2, batch_first=True), "inputs holds a str; expected arrays"),
        (lambda: ArrayDataset(None, batch_size=2, batch_first=True), "NoneType without arrays"),
        (lambda: ArrayDataset([*X], [*Y[:3]], batch_size=2), "10 inputs, but 3 targets"),
        (lambda: ArrayDataset([{"x": x} for x in X], batch_size=2).batch(0), r"a dict with the keys \['x'\]; pass"),
        (lambda: ArrayDataset([(x, x, x) for x in X], batch_size=2).batch(0), "has 3 parts; expected"),
        (lambda: ArrayDataset([x[: 1 + i % 2] for i, x in enumerate(X)], batch_size=8).batch(0), "use .*bucket"),
    ],
)  # fmt: skip
def test_bad_data(make, message):
    with pytest.raises(jt.errors.DataError, match=message):
        make()


def test_hidden_states_cannot_continue_in_the_next_batch():
    with pytest.raises(ValueError, match="batches of an ArrayDataset hold independent sequences: use stateful=False"):
        jt.Fit(jt.DRTRL(update_every=1, stateful=True), max_steps=1).run(Linear(), arrays())
    assert jt.Fit(jt.DRTRL(update_every=1), max_steps=1).run(Linear(), arrays()).step == 1


def test_a_contradiction_with_the_data_module_is_refused():
    with pytest.raises(jt.errors.DataError, match="batch_first=False, but ArrayDataset states batch_first=True"):
        jt.Fit("bptt", max_steps=1).run(Linear(), arrays(), batch_first=False)
