"""Encoders against numpy: what they make of values, and from what random ones draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.objective import phases_of
from jaxtrain.datasets import ArrayDataset, Bernoulli, Delta, Latency, Pixels, Population, Repeat, Rows
from jaxtrain.datasets.encoders import Chain
from tests.small import Linear

KEY = jax.random.key(3)
X = np.random.default_rng(0).random((3, 4)).astype(np.float32)
IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_a_rate_code_spikes_as_often_as_its_values_say():
    values = np.array([0.0, 0.2, 0.7, 1.0, 3.0, -1.0], np.float32)
    spikes = np.asarray(Bernoulli(4000)(values, KEY))
    assert spikes.shape == (4000, 6) and set(np.unique(spikes)) == {0.0, 1.0}
    np.testing.assert_allclose(spikes.mean(0), [0, 0.2, 0.7, 1, 1, 0], atol=0.03)
    np.testing.assert_allclose(np.asarray(Bernoulli(4000, 0.5)(values, KEY)).mean(0)[1:4], [0.1, 0.35, 0.5], atol=0.03)
    correlation = np.corrcoef(spikes[:-1, 2], spikes[1:, 2])[0, 1]
    assert abs(correlation) < 0.05, "time steps are independent"
    assert Bernoulli(None)(X, KEY).shape == X.shape, "rates over time"


def test_bytes_are_intensities():
    np.testing.assert_allclose(Repeat(2)(np.array([0, 51, 255], np.uint8), KEY), [[0, 0.2, 1]] * 2, rtol=1e-6)
    assert Repeat(2)(np.array([3], np.int32), KEY).tolist() == [[3.0]] * 2


def test_latency_is_one_spike_the_earlier_the_larger():
    spikes = np.asarray(Latency(5)(np.array([1.0, 0.5, 0.01, 0.0, 2.0], np.float32), KEY))
    assert spikes.sum(0).tolist() == [1, 1, 1, 0, 1] and spikes.argmax(0).tolist() == [0, 2, 4, 0, 0]
    assert np.asarray(Latency(5, threshold=0.5)(np.array([0.5, 0.6]), KEY)).sum(0).tolist() == [0, 1]


def test_images_in_time():
    np.testing.assert_allclose(Rows()(IMAGE, KEY), IMAGE.reshape(2, 12).astype(np.float32) / 255, rtol=1e-6)
    np.testing.assert_allclose(Pixels(3)(IMAGE, KEY), IMAGE.reshape(8, 3).astype(np.float32) / 255, rtol=1e-6)
    np.testing.assert_allclose(
        Pixels()(IMAGE[..., 0], KEY), IMAGE[..., 0].reshape(8, 1).astype(np.float32) / 255, rtol=1e-6
    )


def test_delta_sends_when_the_level_is_left():
    def by_hand(values, threshold):
        level, rows = values[0].copy(), []
        for value in values:
            on, off = value - level >= threshold, level - value >= threshold
            level += threshold * (on.astype(np.float32) - off)
            rows.append(np.concatenate([on, off]))
        return np.array(rows, np.float32)

    values = np.cumsum(np.random.default_rng(1).normal(size=(50, 3)), 0).astype(np.float32)
    spikes = np.asarray(Delta(0.5)(values, KEY))
    np.testing.assert_array_equal(spikes, by_hand(values, 0.5))
    assert spikes.shape == (50, 6) and 10 < spikes.sum() < 290
    slow = np.asarray(Delta(0.25)(np.arange(8, dtype=np.float32)[:, None] / 16, KEY))
    assert slow[:, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0], "slow changes add up"


def test_a_population_has_tuning_curves():
    activity = np.asarray(Population(3, -1.0, 1.0, width=0.5)(np.array([0.0, 0.5], np.float32), KEY)).reshape(2, 3)
    expected = np.exp(-((np.array([[0.0], [0.5]]) - [-1, 0, 1]) ** 2) / (2 * 0.25))
    np.testing.assert_allclose(activity, expected, rtol=1e-5)
    assert Population(3)(X, KEY).shape == (3, 12), "a time axis stays"


def sequences(data, step):
    """Inputs of a batch as Module.phases receives them, by the number of the sequence in the data set."""
    batch = data.batch(step)
    inputs = phases_of(Linear(), batch).inputs
    return {int(row): np.asarray(inputs[:, index]) for index, row in enumerate(batch.row)}


def test_spikes_belong_to_the_sequence_and_the_epoch():
    images = np.random.default_rng(0).random((12, 2)).astype(np.float32)
    make = lambda size, **options: ArrayDataset(images, batch_size=size, encoder=Bernoulli(20), **options)  # noqa: E731
    large = {**sequences(make(6), 0), **sequences(make(6), 1)}
    small = {row: x for step in range(4) for row, x in sequences(make(3, shuffle=False), step).items()}
    assert large.keys() == small.keys() == set(range(12))
    for row, x in large.items():
        np.testing.assert_array_equal(x, small[row])
    assert not np.array_equal(large[0], large[1])
    second = {**sequences(make(6), 2), **sequences(make(6), 3)}
    other = {**sequences(make(6, seed=1), 0), **sequences(make(6, seed=1), 1)}
    for row in range(12):
        assert not np.array_equal(second[row], large[row]) and not np.array_equal(other[row], large[row])


def test_encoders_in_order_have_keys_of_their_own():
    images = X[:, :2]
    data = ArrayDataset(images, batch_size=3, shuffle=False, encoder=(Population(4), Bernoulli(6)))
    assert phases_of(Linear(), data.batch(0)).inputs.shape == (6, 3, 8)
    drawn = Chain((Bernoulli(None), Bernoulli(None)))(np.full((100, 9), 0.5, np.float32), KEY)
    assert not np.asarray(drawn).all() and np.isin(drawn, (0, 1)).all()
    same = Chain((lambda x, key: jax.random.key_data(key), lambda x, key: (x, jax.random.key_data(key))))
    first, second = same(0, KEY)
    assert first.tolist() != second.tolist()


def test_a_function_is_an_encoder():
    data = ArrayDataset(X, batch_size=3, shuffle=False, encoder=lambda x, key: jnp.stack([x, 2 * x]))
    inputs = np.asarray(phases_of(Linear(), data.batch(0)).inputs)
    np.testing.assert_array_equal(inputs, np.stack([X, 2 * X]))
    assert "lambda" in data.identity()["encoder"] and "0x" not in data.identity()["encoder"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Bernoulli(0), "Bernoulli: steps=0 is too small; expected an integer >= 1"),
        (lambda: Delta(0.0), "Delta: threshold=0.0; expected a number above 0"),
        (lambda: Population(1), "Population: units=1 is too small"),
        (lambda: Population(3, 1.0, 0.0), r"Population\(.*: expected low < high"),
        (lambda: Pixels(0), "Pixels: channels=0 is too small"),
        (lambda: ArrayDataset(X, batch_size=1, encoder=Bernoulli), "is not an encoder; expected a function"),
        (lambda: ArrayDataset(X, batch_size=1, encoder="rate"), "encoder='rate' is not an encoder"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_public_names():
    for name in (
        "ArrayDataset",
        "Bernoulli",
        "Latency",
        "Repeat",
        "Rows",
        "Pixels",
        "Delta",
        "Population",
        "pad",
        "bucket",
    ):
        assert hasattr(jt.datasets, name)
