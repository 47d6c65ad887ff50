"""Reading a model: validate, test and predict, without what only training needs."""

import gc
import weakref

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.snapshots import snapshot
from jaxtrain.strategies import UORO, OSTLRecurrent
from jaxtrain.training.reader import batching_of
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


def test_predict_with_a_generator_gives_all_sequences():
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
    """A batch counts by the weight of its sequences, from a DataModule and from plain batches."""
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
    module, strategy = Linear(), jt.TBPTT(window=2, stateful=True)
    fit = jt.Fit(strategy, max_steps=4, validate_every=2)
    result = fit.run(module, jt.DataModule([line(5), line(6)], batches))
    assert result.metrics["val/loss"] == pytest.approx(fit.validate(module, batches)["val/loss"], rel=1e-6)


def test_a_batch_unlike_the_first_is_named():
    with pytest.raises(jt.errors.DataError, match="^val data: batch 1: .*as in the first one"):
        FIT.validate(Linear(), [line(0), line(1, time=4), line(2)])


def test_data_that_is_not_there():
    with pytest.raises(ValueError, match=r"DataModule has no test data: define test_data\(\)"):
        FIT.test(Linear(), jt.DataModule([line(0)]))


# --------------------------------------------------------------------------------------------- programs that are kept


@pytest.fixture
def compiles():
    """Counts the programs that are compiled, also those that JAX has on disk."""
    from jax._src import monitoring

    counted = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    monitoring.unregister_event_duration_listener(listen)


class Scaled(Linear):
    """A module with attributes that a trace reads."""

    def __init__(self):
        super().__init__()
        self.scale, self.more = 2.0, {"shift": [0.5]}
        self.mask = np.ones(3, np.float32)

    def predict_step(self, forward, x):
        return self.scale * forward(x) * self.mask + self.more["shift"][0]


def test_a_second_call_compiles_nothing(compiles):
    fit, module, data = jt.Fit("bptt", max_steps=2), Linear(), [line(0), line(1)]
    first = fit.predict(module, data)
    metrics = fit.validate(module, data)
    before = len(compiles)
    assert before
    for _ in range(2):
        np.testing.assert_array_equal(fit.predict(module, data), first)
        assert fit.validate(module, data) == metrics
        np.testing.assert_array_equal(fit.predict(module, data[:1]), first[:, :2])
    assert len(compiles) == before
    fit.predict(module, [line(0, time=5)])
    assert len(compiles) > before, "another length"


def test_parameters_are_read_anew(compiles):
    fit, module, data = jt.Fit("bptt", max_steps=2), Linear(), [line(0)]
    untrained = fit.predict(module, data)
    fit.run(module, data)
    trained, before = fit.predict(module, data), len(compiles)
    assert (trained != untrained).any()
    module.model.w.value = jnp.zeros((2, 3))
    module.model.b.value = jnp.ones(3)
    np.testing.assert_allclose(fit.predict(module, data)[:, 0, 0], [1, 1.5, 1.75])
    assert len(compiles) == before


def test_a_program_is_not_used_for_a_module_that_has_changed():
    fit, module, data = jt.Fit("bptt", max_steps=1), Scaled(), [line(0)]
    raw = by_hand(line(0)[0])
    np.testing.assert_allclose(fit.predict(module, data), 2 * raw + 0.5, atol=1e-6)
    module.scale = 3.0
    np.testing.assert_allclose(fit.predict(module, data), 3 * raw + 0.5, atol=1e-6)
    module.more["shift"][0] = 1.5
    np.testing.assert_allclose(fit.predict(module, data), 3 * raw + 1.5, atol=1e-6)
    module.mask[:] = 0
    np.testing.assert_allclose(fit.predict(module, data), 0 * raw + 1.5, atol=1e-6)
    module.mask[:] = 1
    module.model.b.value = jnp.ones(1)
    one = by_hand(line(0)[0]) + np.array([1, 1.5, 1.75])[:, None, None]
    np.testing.assert_allclose(fit.predict(module, data), 3 * one + 1.5, atol=1e-5)
    module.model = Linear.Net()
    module.model.w.value = jnp.zeros((2, 3))
    np.testing.assert_allclose(fit.predict(module, data), 0 * raw + 1.5, atol=1e-6)


def test_an_encoding_and_an_environment_belong_to_the_program():
    class Encoded(jt.DataModule):
        factor = 1.0

        def encode(self, x):
            return self.factor * x

    fit, module, data = jt.Fit("bptt", max_steps=1), Linear(), Encoded(predict=[line(0)[0]], batch_first=False)
    raw = by_hand(line(0)[0])
    np.testing.assert_allclose(fit.predict(module, data), raw, atol=1e-6)
    data.factor = 2.0
    np.testing.assert_allclose(fit.predict(module, data), 2 * raw, atol=1e-6)
    np.testing.assert_allclose(fit.predict(module, [line(0)]), raw, atol=1e-6)

    class Timed(Linear):
        def predict_step(self, forward, x):
            return forward(x) * brainstate.environ.get("gain")

    timed = Timed()
    for gain in (1.0, 4.0):
        timed.environ = {"gain": gain}
        np.testing.assert_allclose(fit.predict(timed, [line(0)]), gain * raw, atol=1e-6)


def test_a_module_is_not_kept_alive():
    fit = jt.Fit("bptt", max_steps=1)
    module = Linear()
    fit.run(module, jt.DataModule([line(0)], batch_first=False))
    fit.predict(module, [line(0)])
    fit.validate(module, [line(0)])
    gone = weakref.ref(module)
    assert fit._readers._modules
    del module
    gc.collect()
    assert gone() is None and not fit._readers._modules


def test_snapshots():
    class Thing:
        pass

    thing = Thing()
    thing.own, thing.list, thing.array, thing.state = thing, [1, (2.0, "a")], np.arange(3), brainstate.ParamState(1.0)
    first = snapshot(thing)
    assert first == snapshot(thing)
    thing.state.value = 2.0
    thing.hidden = brainstate.HiddenState(jnp.zeros(1))
    second = snapshot(thing)
    thing.hidden = brainstate.HiddenState(jnp.ones(1))
    assert first != second == snapshot(thing)
    for change in (
        lambda: thing.list.append(3), lambda: thing.array.__setitem__(0, 9), lambda: setattr(thing, "new", None),
        lambda: setattr(thing, "state", brainstate.ParamState(2.0)), lambda: setattr(thing, "f", lambda: 0),
    ):  # fmt: skip
        before = snapshot(thing)
        change()
        assert snapshot(thing) != before
    assert snapshot(Thing()) != snapshot(Thing()), "another object"


# ------------------------------------------------------------------------------------- what predictions cannot be


def test_batches_of_several_lengths_give_one_output_for_each_sequence():
    fit, module, data = jt.Fit("bptt", max_steps=1), Linear(), [line(0), line(1, time=5), line(2)]
    found = fit.predict(module, data)
    assert [out.shape for out in found] == [(3, 3), (3, 3), (5, 3), (5, 3), (3, 3), (3, 3)]
    alone = [fit.predict(module, [batch]) for batch in data]
    assert [out.shape for out in alone] == [(3, 2, 3), (5, 2, 3), (3, 2, 3)]
    for index, out in enumerate(found):
        np.testing.assert_array_equal(out, alone[index // 2][:, index % 2])
    assert fit.predict(module, data[::2]).shape == (3, 4, 3)


def test_a_shorter_batch_of_unstated_layout_is_refused_and_the_advice_works():
    fit, module, data = jt.Fit("bptt", max_steps=1), Linear(), [line(0, time=4), line(1)]
    said = (
        "^predict data: batch 1 has outputs over 3 time steps, batch 0 over 4: pass batch_first=True if axis 0 is the"
    )
    with pytest.raises(jt.errors.DataError, match=said):
        fit.predict(module, data)
    assert [len(out) for out in fit.predict(module, data, batch_first=False)] == [4, 4, 3, 3]


def test_an_output_without_a_batch_axis_is_refused_and_the_advice_works():
    class Mean(Linear):
        def predict_step(self, forward, x):
            return {"mean": forward(x).mean()}

    class Means(Linear):
        def predict_step(self, forward, x):
            return {"mean": forward(x).mean(-1)}

    fit = jt.Fit("bptt", max_steps=1)
    said = r"^predict_step returned an array of shape \(\) in a time step; expected \(B, ...\)"
    for data in ([line(0)], [line(0), line(1)]):
        with pytest.raises(jt.errors.DataError, match=said):
            fit.predict(Mean(), data)
    assert fit.predict(Means(), [line(0), line(1)])["mean"].shape == (3, 4)

    class Silent(Linear):
        def predict_step(self, forward, x):
            forward(x)

    with pytest.raises(jt.errors.DataError, match=r"^predict_step returned no array; expected \(B, ...\)"):
        fit.predict(Silent(), [line(0)])


def test_bare_batches_of_an_encoding_are_warned_of_and_the_advice_works(caplog):
    class Own(jt.DataModule):
        def encode(self, x):
            return 2 * x

    fit, module, plain = jt.Fit("bptt", max_steps=1), Linear(), jt.DataModule([line(0)], batch_first=False)
    data = Own([line(0)], predict=[line(1)], batch_first=False)
    fit.run(module, data)
    encoded = [2 * line(1)[0]]
    caplog.clear()
    outputs = fit.predict(module, encoded, batch_first=False)
    assert caplog.messages == [
        "predict data: bare batches are passed to the model without encoding, but Linear was trained on inputs that "
        "Own.encode encodes: pass a data module of this class with predict_data(), or encode the batches"
    ]
    caplog.clear()
    np.testing.assert_array_equal(fit.predict(module, data), outputs)
    fit.predict(Linear(), encoded, batch_first=False)
    assert not caplog.messages, "as advised, and of a module that was not trained here"
    fit.run(module, plain)
    caplog.clear()
    fit.predict(module, encoded, batch_first=False)
    assert not caplog.messages


def test_a_module_is_read_in_the_batching_of_its_rule():
    strategies = (jt.BPTT(), jt.BPTT(batching="vmap"), UORO(), OSTLRecurrent(engine="trace"))
    assert [batching_of(strategy) for strategy in strategies] == ["auto", "vmap", "batched", "vmap"]
