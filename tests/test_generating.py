"""Predictions batch by batch, and networks that run freely on their own outputs."""

import gc
import weakref

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from tests.small import CopyGRU, Linear, Lines, LinesOf, count_compiles, line

X = line(0, time=4)[0]


class Closed(Linear):
    """Outputs have the size of inputs, so that the network can run on them."""

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.array([[0.3, -0.5], [0.8, 0.4]], jnp.float32))

        def init_state(self, batch_size=None, **_):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, 2) if batch_size else (2,), jnp.float32))

        def update(self, x):
            self.h.value = jnp.tanh(0.5 * self.h.value + x @ self.w.value)
            return 2 * self.h.value


def freely(module, prompt, steps, sample=lambda output, i: output, reset=None):
    """A loop over ``model(x)``."""
    model, made = module.model, []
    brainstate.nn.init_all_states(model, batch_size=prompt.shape[1])
    for t, x in enumerate(prompt):
        if reset is not None:
            model.h.value = jnp.where(reset[t][:, None], 0.0, model.h.value)
        output = model(x)
    for i in range(steps):
        made.append(sample(output, i))
        output = model(made[-1])
    return np.stack(made)


@pytest.fixture(scope="module")
def closed():
    fit, module = jt.Fit("bptt", max_steps=1), Closed()
    fit.predict(module, [X])
    return fit, module


@pytest.fixture
def compiles():
    seen, stop = count_compiles()
    yield seen
    stop()


# ---------------------------------------------------------------------------------------------- batch by batch


def test_outputs_come_batch_by_batch_in_the_layout_of_the_data(closed):
    fit, module = closed
    batches = [line(i, time=4, batch=size)[0] for i, size in enumerate((2, 2, 1))]
    whole, seen = fit.predict(module, batches), list(fit.predict_batches(module, batches, batch_first=False))
    assert [list(each.rows) for each in seen] == [[0, 1], [2, 3], [4]] and list(seen[0].lengths) == [4, 4]
    np.testing.assert_array_equal(np.concatenate([each.values for each in seen], axis=1), whole)
    swapped = [x.swapaxes(0, 1) for x in batches]
    for each, truth in zip(fit.predict_batches(module, swapped, batch_first=True), seen, strict=True):
        np.testing.assert_array_equal(each.values.swapaxes(0, 1), truth.values)


def test_rows_say_where_the_outputs_of_a_data_set_belong():
    x = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    fit, module = jt.Fit("bptt", max_steps=1), Linear()
    data = jt.datasets.ArrayDataset(x, batch_size=2, batch_first=True, shuffle=True, last="pad")
    found = np.zeros((5, 3, 3), np.float32)
    for batch in fit.predict_batches(module, data):
        found[batch.rows] = batch.values
    np.testing.assert_array_equal(found, fit.predict(module, data))
    assert sorted(row for batch in fit.predict_batches(module, data) for row in batch.rows) == [*range(5)]


def test_memory_does_not_grow_with_the_number_of_batches(closed, compiles):
    fit, module = closed
    inputs, outputs, most, arrays = [], [], [], []

    def source():
        for i in range(30):
            x = line(i, time=4)[0]
            inputs.append(weakref.ref(x))
            yield x

    before = len(compiles)
    for batch in fit.predict_batches(module, source(), batch_first=False):
        outputs.append(weakref.ref(batch.values))
        most.append(max(sum(ref() is not None for ref in refs) for refs in (inputs, outputs)))
        arrays.append(len(jax.live_arrays()))
    del batch
    gc.collect()
    assert len(outputs) == 30 and max(most) <= 3 and max(arrays[3:]) <= max(arrays[:3])
    assert not any(ref() for ref in outputs) and len(compiles) == before


def test_the_next_batch_is_dispatched_before_the_outputs_are_handed_over(closed):
    fit, module = closed
    read = []

    def source():
        for i in range(4):
            read.append(i)
            yield line(i, time=4)[0]

    assert [len(read) for _ in fit.predict_batches(module, source(), batch_first=False)] == [2, 3, 4, 4]


def test_the_values_are_those_of_the_call():
    fit, module = jt.Fit("bptt", max_steps=1), Closed()
    first = fit.predict(module, [X])
    batches = fit.predict_batches(module, [X, X, X], batch_first=False)
    module.model.w.value = jnp.zeros((2, 2))
    for batch in batches:
        np.testing.assert_array_equal(batch.values, first)


def test_an_iterator_that_outlives_its_event_is_refused():
    kept = []

    class Keep(jt.Callback):
        def on_validation_end(self, run, metrics):
            if kept:
                with pytest.raises(RuntimeError, match="the run has trained on since this prediction began: read all"):
                    list(kept[0])
            kept.append(fit.predict_batches(run.module, [X[:3]] * 3))
            next(kept[-1])

    fit = jt.Fit("bptt", max_steps=2, validate_every=1, callbacks=[Keep()])
    fit.run(Linear(), jt.DataModule(Lines(), LinesOf(1)))
    assert len(kept) == 2


# ---------------------------------------------------------------------------------------------- on its own outputs


def test_a_network_runs_on_its_own_outputs(closed):
    fit, module = closed
    truth = freely(module, X, 6)
    found = fit.generate(module, X, 6, batch_first=False)
    assert found.shape == (6, 2, 2)
    np.testing.assert_allclose(found, truth, atol=1e-6)
    np.testing.assert_allclose(fit.generate(module, X.swapaxes(0, 1), 6, batch_first=True).swapaxes(0, 1), truth,
                               atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(fit.generate(module, X, 1), fit.predict(module, [X])[-1:], atol=1e-6)
    np.testing.assert_allclose(fit.generate(module, (X, X[:2]), 6), truth, atol=1e-6)  # two time steps of warm-up


def test_samples_are_reproducible_and_compiled_once(closed, compiles):
    fit, module = closed
    scale = 0.1

    def call(seed=None, steps=5):
        return fit.generate(module, X, steps, sample=lambda out, key: out + scale * jax.random.normal(key, out.shape),
                            seed=seed)  # fmt: skip

    first = call()
    before = len(compiles)
    np.testing.assert_array_equal(call(), first)
    np.testing.assert_array_equal(call(seed=0), first)
    assert (call(seed=1) != first).all() and len(compiles) == before, "one program, though the lambda is another"
    np.testing.assert_allclose(call(steps=3), first[:3], atol=1e-6)
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 4), 0)
    noise = [0.1 * jax.random.normal(jax.random.fold_in(root, i), (2, 2)) for i in range(5)]
    np.testing.assert_allclose(first, freely(module, X, 5, lambda output, i: output + noise[i]), atol=1e-6)
    scale = 0.0
    np.testing.assert_allclose(call(), freely(module, X, 5), atol=1e-6)


SCALE = 0.0


def test_a_sample_function_reads_the_current_value_of_a_global(closed, monkeypatch):
    fit, module = closed
    call = lambda: fit.generate(module, X, 2, sample=lambda out, key: jax.tree.map(lambda o: o + SCALE, out))  # noqa: E731
    np.testing.assert_allclose(call(), freely(module, X, 2), atol=1e-6)
    monkeypatch.setitem(globals(), "SCALE", 0.5)
    np.testing.assert_allclose(call(), freely(module, X, 2, lambda output, i: output + 0.5), atol=1e-6)


def test_classes_are_sampled_with_their_probability():
    class Fixed(CopyGRU):
        def predict_step(self, forward, x):
            forward(x)
            return jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.8] + [1e-9] * 8)), (len(x), 10))

    prompt = np.zeros((2, 40, 10), np.float32)
    found = jt.Fit("drtrl", max_steps=1).generate(
        Fixed(), prompt, 50, sample=lambda logits, key: jax.nn.one_hot(jax.random.categorical(key, logits), 10)
    )
    assert found.shape == (50, 40, 10) and (found.sum(-1) == 1).all()
    assert found[..., 1].mean() == pytest.approx(0.8, abs=0.03) and len({*found[..., 1].sum(0)}) > 1


def test_resets_of_the_prompt_apply_to_the_prompt():
    class Resets(Closed):
        def phases(self, batch):
            return jt.Phases(warmup=None, inputs=batch["x"], reset=batch["reset"])

    module, reset = Resets(), np.zeros((4, 2), bool)
    reset[2, 0] = True
    found = jt.Fit(jt.BPTT(batching="vmap"), max_steps=1).generate(module, {"x": X, "reset": reset}, 3)
    np.testing.assert_allclose(found, freely(module, X, 3, reset=reset), atol=1e-6)


def test_made_inputs_are_encoded_as_those_of_the_prompt():
    class Halved(jt.DataModule):
        def encode(self, x):
            return 0.5 * x

    fit, module = jt.Fit("bptt", max_steps=1), Closed()
    found = fit.generate(module, Halved(predict=[X, 2 * X], batch_first=False), 3)
    truth = [freely(module, 0.5 * x, 3, lambda output, i: output * 0.5) * 2 for x in (X, 2 * X)]
    np.testing.assert_allclose(found, np.concatenate(truth, axis=1), atol=1e-6)


@pytest.mark.full
def test_a_callback_generates_with_the_values_of_the_step():
    seen = []

    class Speak(jt.Callback):
        def on_validation_end(self, run, metrics):
            made = run.generate(X, 3)
            np.testing.assert_allclose(made, freely(run.module, X, 3), atol=1e-6)
            noisy = [run.generate(X, 3, sample=noise, seed=seed) for seed in (0, 1, 1)]
            assert (noisy[0] != noisy[1]).all() and (noisy[1] == noisy[2]).all()
            seen.append(made)

    def noise(output, key):
        return output + jax.random.normal(key, output.shape)

    batches = [(line(i)[0], line(i)[0]) for i in range(2)]
    data = jt.DataModule(batches, batches, batch_first=False)
    for seeds in (None, 2):
        jt.Fit("bptt", max_steps=2, seeds=seeds, validate_every=1, callbacks=[Speak()]).run(Closed(), data)
    assert len(seen) == 4 and (seen[0] != seen[1]).any()


def test_the_environment_and_a_checkpoint_are_used(tmp_path):
    class Timed(Closed):
        environ = {"dt": 0.5}

        def predict_step(self, forward, x):
            return forward(x) * brainstate.environ.get("dt")

    batches = [(line(i)[0], line(i)[0]) for i in range(2)]
    fit, module = jt.Fit("bptt", max_steps=2, run_dir=tmp_path, loggers=()), Timed()
    fit.run(module, jt.DataModule(batches, batch_first=False))
    truth = freely(module, X, 4, lambda output, i: 0.5 * output)
    np.testing.assert_allclose(fit.generate(module, X, 4), truth, atol=1e-6)
    np.testing.assert_allclose(fit.generate(Timed(), X, 4, checkpoint="last"), truth, atol=1e-6)


def test_what_cannot_be_generated_is_refused_and_the_advice_works(closed):
    fit, module = closed
    said = r"generate: sample\(output, key\) returns \(2, 3\) float32; expected \(2, 2\) float32, like an input of one"
    with pytest.raises(ValueError, match=said):
        fit.generate(Linear(), X, 2)
    assert fit.generate(Linear(), X, 2, sample=lambda output, key: output[:, :2]).shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"returns \(2, 2\) int32; expected \(2, 2\) float32"):
        fit.generate(module, X, 2, sample=lambda output, key: output.astype(int))
    with pytest.raises(ValueError, match=r"Fit.generate: steps is 0; expected a whole number, 1 or more"):
        fit.generate(module, X, 0)
    with pytest.raises(ValueError, match=r"Fit.generate: seed is -1; expected a whole number from 0 to 2\*\*32 - 1"):
        fit.generate(module, X, 1, seed=-1)
    with pytest.raises(TypeError, match=r"Fit.generate\(sample=1\): expected a function sample\(output, key\)"):
        fit.generate(module, X, 1, sample=1)
    with pytest.raises(TypeError, match=r"expected a function sample\(output, key\); got one with too many positional"):
        fit.generate(module, X, 1, sample=lambda o: o)
    with pytest.raises(ValueError, match=r"has no predict data: define predict_data\(\), or pass data.val_data\(\)$"):
        fit.generate(module, jt.DataModule([X]), 1)
    with pytest.raises(TypeError, match=r"Module defines neither build\(\) nor a model"):
        fit.generate(jt.Module(), X, 1)
    ragged = jt.DataModule(predict=jt.datasets.bucket([X[:, 0], X[:3, 0]], batch_size=2, lengths=(4,)))
    with pytest.raises(jt.errors.DataError, match="the prompts differ in length; give prompts of one length in each"):
        fit.generate(module, ragged, 1)
