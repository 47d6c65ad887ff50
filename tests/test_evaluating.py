"""Reading a model: validate, test and predict, without what only training needs."""

import numpy as np
import pytest

import jaxtrain as jt
from tests.small import Linear, line

FIT = jt.Fit("bptt", max_steps=1)


class Reads(jt.Module):
    """A module that is made to be read: no optimizer, no loss."""

    def build(self):
        return Linear.Net()

    def predict_step(self, forward, x):
        return forward(x)


def by_hand(x):
    """What ``Linear.Net`` with its first values gives for inputs ``(T, B, 2)``."""
    h, out = 0.0, []
    for now in x:
        h = 0.5 * h + now @ np.full((2, 3), 0.1, np.float32)
        out.append(h)
    return np.stack(out)


def test_predict_with_a_generator_gives_all_lanes():
    batches = [line(0), line(1), line(2, batch=1)]
    outputs = FIT.predict(Linear(), (batch for batch in batches))
    assert outputs.shape == (3, 5, 3)
    assert np.allclose(outputs, by_hand(np.concatenate([x for x, _ in batches], axis=1)), atol=1e-6)


def test_a_frozen_module_is_read():
    class Frozen(Linear):
        def trainable(self, name):
            return False

    assert FIT.validate(Frozen(), [line(0)]) == FIT.validate(Linear(), [line(0)])
    assert np.array_equal(FIT.predict(Frozen(), [line(0)]), FIT.predict(Linear(), [line(0)]))
    with pytest.raises(ValueError, match="nothing to train"):
        FIT.run(Frozen(), [line(0)])


def test_what_is_read_needs_no_budget():
    assert jt.Fit("bptt").validate(Linear(), [line(0)]) == FIT.validate(Linear(), [line(0)])
    with pytest.raises(ValueError, match="needs a budget: Fit\\(max_steps=...\\), max_epochs or max_time"):
        jt.Fit("bptt").run(Linear(), [line(0)])


def test_predict_needs_neither_targets_nor_an_optimizer():
    x = line(0)[0]
    outputs = FIT.predict(Reads(), (x for _ in range(2)))
    assert outputs.shape == (3, 4, 3) and np.allclose(outputs, by_hand(np.concatenate([x, x], axis=1)), atol=1e-6)


def test_validate_needs_no_optimizer():
    class NoOptimizer(Linear):
        def configure_optimizer(self):
            raise AssertionError("asked for an optimizer")

    metrics = FIT.validate(NoOptimizer(), [line(0)])
    assert metrics["val/loss"] == pytest.approx(np.square(by_hand(line(0)[0]) - line(0)[1]).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["val", "test"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_short_last_batch_counts(name, whole):
    """As much as its lanes weigh, from a DataModule and from plain batches."""
    batches = [line(0), line(1), line(2, batch=1)]
    read = FIT.validate if name == "val" else FIT.test
    data = jt.DataModule(**{name: batches}) if whole else batches
    x, y = (np.concatenate(parts, axis=1) for parts in zip(*batches, strict=True))
    assert read(Linear(), data) == {f"{name}/loss": pytest.approx(np.square(by_hand(x) - y).mean(), rel=1e-5)}
    assert read(Linear(), batches[:2]) != read(Linear(), batches)


def test_a_short_last_batch_counts_in_the_validation_of_a_run():
    batches = [line(0), line(1), line(2, batch=1)]
    module = Linear()
    result = FIT.run(module, jt.DataModule([line(5)], batches))
    assert result.metrics["val/loss"] == pytest.approx(FIT.validate(module, batches)["val/loss"], rel=1e-6)
    assert result.metrics["val/loss"] != pytest.approx(FIT.validate(module, batches[:2])["val/loss"], rel=1e-3)


def test_a_short_last_batch_counts_where_hidden_states_are_carried():
    batches = [line(0), line(1, batch=1)]
    module, strategy = Linear(), jt.TBPTT(window=2, carry="carry")
    fit = jt.Fit(strategy, max_steps=4, validate_every=2)
    result = fit.run(module, jt.DataModule([line(5), line(6)], batches))
    assert result.metrics["val/loss"] == pytest.approx(fit.validate(module, batches)["val/loss"], rel=1e-6)


def test_a_batch_unlike_the_first_is_named():
    with pytest.raises(jt.DataError, match="^val data: batch 1: .*as in the first one"):
        FIT.validate(Linear(), [line(0), line(1, time=4), line(2)])


def test_data_that_is_not_there():
    with pytest.raises(ValueError, match=r"DataModule has no test data: define test_data\(\)"):
        FIT.test(Linear(), jt.DataModule([line(0)]))
