"""Padding changes nothing: losses, metrics and gradients are those of the sequences alone."""

import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.datasets import CopyDataModule, PaddedCopyDataModule
from jaxtrain.datasets.sequences import fitting
from tests.kit.tiers import longer
from tests.small import CopyGRU, leaves

SIZES = dict(lengths=(8, 16), digits=(2, 4))


def plain(lag=3, digits=3):
    return CopyDataModule(lag, digits, 4, val_batches=2)


def pads(lag=3, digits=3):
    return PaddedCopyDataModule(lag, digits, 4, val_batches=2, **SIZES)


def test_where_everything_is():
    batch = pads().train_data().batch(2)
    inputs, targets = plain().train_data().batch(2)
    warm, scored, batch_size = batch.sizes
    assert (warm + scored, scored, batch_size) == (16, 4, 4)
    ids = np.concatenate([batch.warmup, batch.inputs])
    np.testing.assert_array_equal(ids[7:], inputs)
    assert not ids[:7].any()
    assert batch.weights.tolist() == [[0] * 4, [1] * 4, [1] * 4, [1] * 4]
    np.testing.assert_array_equal(batch.targets[1:], targets)
    assert batch.reset[7].all() and batch.reset.sum() == 4


@pytest.mark.full
@pytest.mark.cover
@pytest.mark.parametrize("strategy", ["drtrl", *longer(jt.DRTRL(engine="trace"), "bptt", "readout_only")], ids=str)
@pytest.mark.parametrize("task", [(3, 3), *longer(((0, 4),), ((1, 1),))])
def test_a_run_is_that_of_the_sequences_alone(strategy, task):
    results = []
    for data in (plain(*task), pads(*task)):
        module = CopyGRU()
        fit = jt.Fit(strategy, max_steps=4, validate_every=2, chunk=2, log_every=1)
        result = fit.run(module, data)
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in result.history]
        results.append((rows, leaves(module)))
    for a, b in zip(*(rows for rows, _ in results), strict=True):
        assert a.keys() == b.keys() and all(a[key] == pytest.approx(b[key], rel=2e-4, abs=1e-6) for key in a)
    for name, leaf in results[0][1].items():
        np.testing.assert_allclose(leaf, results[1][1][name], rtol=1e-3, atol=1e-5)


def test_what_fits_nowhere():
    assert fitting(9, (8, 16), "copying task: time steps") == 16
    with pytest.raises(ValueError, match=r"^copying task: 17 time steps do not fit into the sizes \[8, 16\]"):
        pads(11, 3).train_data().batch(0)
    assert pads().identity() != plain().identity() and pads().identity()["lengths"] == [8, 16]
