"""The copying task: what its batches hold, and that they hang on (seed, split, step) alone."""

import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrain.data.datamodule import DataModule
from jaxtrain.data.iterator import DataIterator
from jaxtrain.datasets import CopyDataModule, CopyDataset


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**40), st.integers(0, 2**40))
@settings(deadline=None, max_examples=40)
def test_batch_is_the_task(time_lag, num_digits, batch_size, seed, step):
    inputs, targets = CopyDataset(time_lag, num_digits, batch_size, seed).batch(step)
    assert inputs.dtype == targets.dtype == np.int8
    assert inputs.shape == (time_lag + 2 * num_digits, batch_size)
    np.testing.assert_array_equal(inputs[:num_digits], targets)
    assert targets.min() >= 1 and targets.max() <= 8
    assert not inputs[num_digits : num_digits + time_lag].any()
    assert (inputs[num_digits + time_lag :] == 9).all()


def test_all_symbols_are_drawn():
    _, targets = CopyDataset(1, 20, 50).batch(0)
    counts = np.bincount(targets.ravel(), minlength=10)
    assert counts[0] == counts[9] == 0
    assert (counts[1:9] > 80).all()  # 125 expected of each


def test_pure_function_of_seed_split_step():
    def make(seed=0, split="train", step=3):
        return CopyDataset(3, 8, 4, seed=seed, split=split).batch(step)[1]

    np.testing.assert_array_equal(make(), make())
    for other in (make(seed=1), make(split="val"), make(split="test"), make(step=4)):
        assert (make() != other).any()


def test_iterates_batch_major_one_hot():
    data = CopyDataset(3, 2, 4, length=2)
    assert len(data) == 2
    batches = list(data)
    assert len(batches) == 2
    for step, (x, y) in enumerate(batches):
        inputs, targets = data.batch(step)
        assert x.shape == (4, 7, 10) and x.dtype == np.float32
        assert y.shape == (4, 2) and y.dtype == np.int32
        np.testing.assert_array_equal(x.argmax(-1), inputs.T)
        assert (x.sum(-1) == 1).all()
        np.testing.assert_array_equal(y, targets.T)


def test_endless_without_a_length():
    data = CopyDataset(3, 2, 4)
    with pytest.raises(TypeError, match="no len"):
        len(data)
    assert data
    assert len(list(itertools.islice(data, 3))) == 3
    data.batch(10**9)


def test_encode_is_one_hot():
    data = CopyDataset(3, 2, 4)
    encoded = jax.jit(data.encode)(np.array([0, 9, 3], np.int8))
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.eye(10)[[0, 9, 3]])


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in ("time_lag", "num_digits", "batch_size", "length") for v in (0, -1, 2.5, "3", True)][1:],
)  # a blank of no time steps is one
def test_refuses_sizes(name, value):
    with pytest.raises(ValueError, match=f"^copying task: {name}={value!r} is .*expected") as error:
        CopyDataset(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["time_lag", "num_digits", "batch_size", "val_batches", "test_batches"])
def test_module_refuses_sizes(name):
    with pytest.raises(ValueError, match=f"{name}=-1 is too small"):
        CopyDataModule(**{name: -1})


def test_no_blank_at_all():
    inputs, targets = CopyDataset(0, 2, 4).batch(0)
    np.testing.assert_array_equal(inputs, np.concatenate([targets, np.full((2, 4), 9)]))


def test_refuses_split_seed_step():
    with pytest.raises(ValueError, match="split='dev' is unknown; expected one of train, val, test"):
        CopyDataset(split="dev")
    for seed in (-1, 1.5, None):
        with pytest.raises(ValueError, match=f"seed={seed}"):
            CopyDataset(seed=seed)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="step=-1 is too small"):
        CopyDataset().batch(-1)
    assert CopyDataset(time_lag=np.int64(3)).time_lag == 3  # pyright: ignore[reportArgumentType]


def test_module_splits():
    module = CopyDataModule(3, 2, 4, seed=5, val_batches=2, test_batches=3)
    assert isinstance(module, DataModule)
    module.setup()
    assert DataIterator(module.train_data()).length is None
    assert DataIterator(module.val_data()).length == 2
    assert DataIterator(module.test_data()).length == 3
    for split, data in [("train", module.train_data()), ("val", module.val_data()), ("test", module.predict_data())]:
        want = CopyDataset(3, 2, 4, seed=5, split=split).batch(1)
        jax.tree.map(np.testing.assert_array_equal, data.batch(1), want)
    np.testing.assert_array_equal(module.encode(np.array([1], np.int8)), np.eye(10)[[1]])


def test_module_identity():
    module = CopyDataModule(3, 2, 4)
    identity = module.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["class"] == "CopyDataModule"
    assert {"time_lag": 3, "num_digits": 2, "batch_size": 4, "seed": 0}.items() <= identity.items()
    assert identity != CopyDataModule(3, 2, 4, seed=1).identity()
    module.task["time_lag"] = 5  # the same data, further on in its curriculum
    assert module.identity() == identity


def test_module_follows_its_task():
    module = CopyDataModule(3, 2, 4)
    assert module.task == {"time_lag": 3, "num_digits": 2}
    iterator = DataIterator(module.train_data())
    iterator.take(2)
    iterator.prefetch(3)
    module.task = {"time_lag": 6, "num_digits": 2}
    iterator.clear()
    (inputs, _) = iterator.take(1)[0]
    np.testing.assert_array_equal(inputs, CopyDataset(6, 2, 4).batch(2)[0])
    assert CopyDataModule().task["time_lag"] == 50
    assert len(module.val_data().batch(0)[0]) == 10


@pytest.mark.parametrize("task", [{"lag": 3}, {"time_lag": -1, "num_digits": 1}, {"time_lag": 3}])
def test_module_refuses_a_task(task):
    module = CopyDataModule(3, 2, 4)
    train = module.train_data()
    module.task = task
    with pytest.raises(ValueError, match="copying task: (task|time_lag)="):
        train.batch(0)
