"""Seeds side by side: each equals the run of its seed alone, and nonfinite numbers stay within their seed."""

import json
import math
from typing import Any

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.state import flatten, parameters
from jaxtrain.engine.seeds import SeedAxis, as_seeds
from jaxtrain.loggers.jsonl import read_log
from tests.kit.tiers import longer
from tests.small import CopyGRU, Linear, copies, lines

pytestmark = pytest.mark.full

STREAM = jt.DRTRL(update_every=1, stateful=True)
STRATEGIES = [STREAM, *longer("drtrl", "bptt", jt.DRTRL(engine="trace"), "pp_prop", "uoro")]


class Random(Linear):
    """``Linear`` with initial values that depend on the seed."""

    def build(self):
        net = super().build()
        net.w.value = brainstate.random.randn(2, 3)
        return net


class Fragile(Random):
    """The loss is NaN where the first weight is above ``limit``."""

    limit = jnp.inf

    def learning_step(self, forward, x, y):
        bad = self.model.w.value[0, 0] > self.limit
        return super().learning_step(forward, x, y) + jnp.where(bad, jnp.nan, 0.0)


def close(a, b, rtol=1e-5):
    for name, leaf in a.items():
        np.testing.assert_allclose(leaf, b[name], rtol=rtol, atol=rtol * np.abs(b[name]).max(), err_msg=name)


def params(path, module, seed=None):
    model = jt.load(path, module, seed=seed).model
    return flatten({name: state.value for name, state in parameters(model).items()})


@pytest.fixture(params=[True, False], ids=["one by one", "vmap"])
def mapped(request, monkeypatch):
    make = SeedAxis.__init__

    def init(self, seeds):
        make(self, seeds)
        assert self.one_by_one  # the default on CPU
        self.one_by_one = request.param

    monkeypatch.setattr(SeedAxis, "__init__", init)


@pytest.mark.cover
@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s if isinstance(s, str) else f"{s.engine} {s.stateful}")
def test_a_lane_is_the_run_of_its_seed(strategy, tmp_path):
    common: dict[str, Any] = dict(max_steps=6, log_every=2, validate_every=3, clip=0.5)
    make = lambda: CopyGRU(lambda: braintools.optim.Adam(braintools.optim.StepLR(0.01, 2)), noise=0.1)  # noqa: E731
    result = jt.Fit(strategy, seeds=[3, 0], run_dir=tmp_path / "both", **common).run(make(), copies())
    for lane, seed in enumerate((3, 0)):
        alone = jt.Fit(strategy, seed=seed, run_dir=tmp_path / f"{seed}", **common).run(make(), copies())
        for row, own in zip(result.history, alone.history, strict=True):
            assert row["step"] == own["step"]
            for tag in ("train/loss", "grad_norm", "val/loss", "val/accuracy"):
                if tag in own:
                    assert row[f"seeds/{tag}"][lane] == pytest.approx(own[tag], rel=1e-4), (tag, row["step"])
        close(params(tmp_path / "both", make(), seed), params(tmp_path / f"{seed}", make()), rtol=1e-4)
    for row in result.history:
        for tag, values in row.items():
            if tag.startswith("seeds/"):
                assert row[tag.removeprefix("seeds/")] == pytest.approx(np.mean(values), rel=1e-6)


def test_the_module_ends_with_the_first_seed_and_probes_see_it(tmp_path):
    class Watch(jt.Callback):
        probe_every = 2

        def probe(self, module, learner, phases):
            return {"w": module.model.w.value}

        def on_probe(self, run, values):
            self.seen, self.params = values["w"], run.params()["w"]

    watch, module = Watch(), Random()
    jt.Fit("bptt", seeds=3, max_steps=4, callbacks=[watch], run_dir=tmp_path).run(module, lines())
    assert watch.params.shape == (3, 2, 3)
    np.testing.assert_array_equal(watch.seen, watch.params[0])
    np.testing.assert_array_equal(module.model.w.value, watch.params[0])
    np.testing.assert_array_equal(params(tmp_path, Random(), 2)["w"], watch.params[2])


def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path):
    rate = lambda lr: Random(lambda: braintools.optim.Adam(lr))  # noqa: E731
    whole = jt.Fit("bptt", seeds=2, max_steps=8, log_every=3, run_dir=tmp_path / "whole", validate_every=4, loggers=())
    whole = whole.run(rate(0.01), lines())
    for steps in (4, 8):
        fit = jt.Fit(
            "bptt", seeds=2, max_steps=steps, log_every=3, run_dir=tmp_path / "cut", validate_every=4, loggers=()
        )
        cut = fit.run(rate(0.01), lines(), resume="last")
    assert cut.digest == whole.digest
    assert cut.history == [row for row in whole.history if row["step"] > 4]
    with pytest.raises(ValueError, match="another seed: fit.seeds: .0, 1. in the checkpoint, .0, 1, 2. now"):
        jt.Fit("bptt", seeds=3, max_steps=9, run_dir=tmp_path / "cut").run(rate(0.01), lines(), resume="last")
    with pytest.raises(ValueError, match=r"another seed: fit.seeds: \[0, 1\].*None"):
        jt.Fit("bptt", max_steps=9, run_dir=tmp_path / "cut").run(rate(0.01), lines(), resume="last")


def test_a_learning_rate_changed_on_resume_reaches_every_lane(tmp_path):
    name = lambda seeds: "-".join(map(str, np.ravel([*seeds.values()])))  # noqa: E731

    def fit(steps, lr, **seeds):
        module = Random(lambda: braintools.optim.SGD(lr))
        run = jt.Fit("bptt", max_steps=steps, run_dir=tmp_path / name(seeds), **seeds)
        return run.run(module, lines(), resume="last")

    for seeds in ({"seeds": [1, 2]}, {"seed": 1}, {"seed": 2}):
        fit(2, 0.05, **seeds)
        fit(4, 0.01, **seeds)
    for seed in (1, 2):
        both, alone = tmp_path / name({"seeds": [1, 2]}), tmp_path / name({"seed": seed})
        close(params(both, Random(), seed), params(alone, Random()))


def frozen_run(tmp_path, limit, seeds=4, **options):
    module = Fragile(lambda: braintools.optim.SGD(0.2))
    module.limit = limit
    fit = jt.Fit("bptt", seeds=seeds, max_steps=6, log_every=1, validate_every=3, run_dir=tmp_path, chunk=3,
                 callbacks=[jt.loggers.JSONL(), jt.loggers.TensorBoard()], **options)  # fmt: skip
    return fit.run(module, lines())


def weights(seed):
    """The first weight of one seed's run before each of its steps."""
    seen = []

    class Watch(jt.Callback):
        probe_every = 1

        def on_fit_start(self, run):
            seen.append(float(run.params()["w"][0, 0]))

        def probe(self, module, learner, phases):
            return module.model.w.value[0, 0]

        def on_probe(self, run, value):
            seen.append(float(value))

    module = Random(lambda: braintools.optim.SGD(0.2))
    jt.Fit("bptt", seed=seed, max_steps=6, callbacks=[Watch()]).run(module, lines())
    return seen[:-1]


@pytest.mark.usefixtures("mapped")
def test_a_lane_that_is_not_finite_is_frozen_and_named(tmp_path, caplog):
    paths = [weights(seed) for seed in range(4)]
    # Between the largest first weight of some seeds and that of the others, so that these alone fail.
    tops = sorted(max(path) for path in paths)
    limit = (tops[1] + tops[2]) / 2
    fails = {seed: next(i for i, w in enumerate(path) if w > limit) + 1 for seed, path in enumerate(paths)
             if max(path) > limit}  # fmt: skip
    result = frozen_run(tmp_path, limit)
    assert result.summary["frozen"] == sorted(fails) and len(fails) == 2
    for seed, step in fails.items():
        assert f"step {step}: seed {seed}: train/loss is not finite" in caplog.text
        assert params(tmp_path, Random(), seed)["w"][0, 0] == pytest.approx(paths[seed][step - 1], rel=1e-5)
    for row in read_log(tmp_path / "metrics.jsonl"):
        for seed, loss in enumerate(row["seeds/train/loss"]):
            assert (loss is None) == (row["step"] >= fails.get(seed, math.inf))
        assert row["train/loss"] == pytest.approx(np.mean([x for x in row["seeds/train/loss"] if x is not None]))
    last: dict[str, Any] = read_log(tmp_path / "metrics.jsonl")[-1]
    val = last["seeds/val/loss"]
    assert [x is None for x in val] == [seed in fails for seed in range(4)]
    assert last["val/loss"] == pytest.approx(np.mean([x for x in val if x is not None]))
    caplog.clear()
    again = jt.Fit("bptt", seeds=4, max_steps=8, log_every=1, validate_every=3, run_dir=tmp_path,
                   callbacks=[jt.loggers.JSONL()])  # fmt: skip
    module = Fragile(lambda: braintools.optim.SGD(0.2))
    module.limit = limit
    assert set(again.run(module, lines(), resume="last").summary["frozen"]) >= set(fails)
    assert not any(f"seed {seed}: " in caplog.text for seed in fails)


def test_all_lanes_not_finite_is_an_error(tmp_path):
    with pytest.raises(FloatingPointError, match="step 1: seed 3: train/loss is not finite, and no seed is left"):
        frozen_run(tmp_path, -jnp.inf)


def test_skip_skips_in_one_lane_and_freezes_none(tmp_path):
    low, high = sorted(range(2), key=lambda seed: weights(seed)[0])
    limit = (weights(low)[0] + weights(high)[0]) / 2
    result = frozen_run(tmp_path, limit, seeds=2, nonfinite="skip")
    assert result.summary["frozen"] == []
    last: dict[str, Any] = result.metrics
    assert last["seeds/skipped_fraction"][high] == 1.0
    assert result.history[0]["seeds/skipped_fraction"][low] == 0.0


def test_curves_show_the_spread(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = frozen_run(tmp_path, jnp.inf)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for row, low, high in zip(result.history, events.Scalars("seeds/train/loss/min"),
                              events.Scalars("seeds/train/loss/max"), strict=True):  # fmt: skip
        assert low.step == high.step == row["step"]
        assert low.value == pytest.approx(min(row["seeds/train/loss"]))
        assert high.value == pytest.approx(max(row["seeds/train/loss"]))
    summary = json.loads((tmp_path / "result.json").read_text())
    assert summary["seeds"] == [0, 1, 2, 3] and len(summary["per_seed"]["val/loss"]) == 4


class Masked(Random):
    """A matrix drawn at random that is a plain attribute of the model."""

    def build(self):
        net = super().build()
        mask = brainstate.random.randn(2, 2)
        update = net.update
        net.update = lambda x: update(x @ mask)
        return net


class MaskedInside(Random):
    """The same, inside a function that is compiled by itself."""

    def build(self):
        net = super().build()
        mask, update = brainstate.random.randn(2, 2), net.update
        product = jax.jit(lambda x: x @ mask)
        net.update = lambda x: update(product(x))
        return net


class Scaled(Random):
    """The same, on the module."""

    def build(self):
        self.scale = float(brainstate.random.rand())
        return super().build()

    def learning_step(self, forward, x, y):
        return super().learning_step(forward, self.scale * x, y)


class ScaledToo(Scaled):
    """The same, where it is evaluated alone."""

    learning_step = Random.learning_step

    def evaluation_step(self, forward, x, y):
        return super().learning_step(forward, self.scale * x, y)


@pytest.mark.parametrize("kind", [Masked, MaskedInside, Scaled, ScaledToo])
def test_what_is_drawn_at_random_outside_of_states_is_refused(kind):
    with pytest.raises(ValueError, match="under seed 1 differs from that of seed 0.*Make it a brainstate.State"):
        jt.Fit("bptt", seeds=2, max_steps=1).run(kind(), lines())


def test_attributes_that_build_sets_are_those_of_the_first_seed():
    class Counts(Random):
        built = 0

        def build(self):
            self.built += 1
            self.notes = f"made {self.built}"
            return super().build()

    module = Counts()
    jt.Fit("bptt", seeds=3, max_steps=1).run(module, lines())
    assert module.notes == "made 1"


class Guarded(dict):
    """The attributes of a module, which may be set one by one but not replaced as a whole."""

    def clear(self):
        raise AssertionError("cleared")

    def update(self, *args, **kwargs):
        raise AssertionError("updated")


def test_the_attributes_of_the_users_module_are_never_swapped():
    class Watch(jt.Callback):
        reads_model = True

        def see(self, module):
            assert vars(module) is attributes and module.kept is kept
            assert {*attributes} == {"optimizer", "kept", "model"}

        def on_fit_start(self, run):
            self.see(run.module)

        def on_chunk_end(self, run, metrics):
            self.see(run.module)

        def on_fit_end(self, run, status):
            self.see(run.module)

    class Records(Random):
        def build(self):
            built_in.append(self)
            return super().build()

    module, kept, built_in, watch = Records(), object(), [], Watch()
    module.kept = kept
    attributes = module.__dict__ = Guarded(vars(module))
    jt.Fit("bptt", seeds=3, max_steps=2, chunk=1, callbacks=[watch]).run(module, lines())
    watch.see(module)
    assert built_in[0] is module and len({id(each) for each in built_in}) == 3
    assert isinstance(module.model, brainstate.nn.Module)


def test_a_frozen_seed_stays_frozen_under_another_policy(tmp_path):
    tops = [max(weights(seed)) for seed in range(2)]
    high, limit = int(np.argmax(tops)), sum(tops) / 2
    assert frozen_run(tmp_path, limit, seeds=2).summary["frozen"] == [high]
    held = params(tmp_path, Random(), high)["w"]
    policies: Any = ("warn", 8), ("skip", 10)
    for policy, steps in policies:
        module = Fragile(lambda: braintools.optim.SGD(0.2))  # nothing is too large any more
        fit = jt.Fit("bptt", seeds=2, max_steps=steps, log_every=1, run_dir=tmp_path, nonfinite=policy)
        result = fit.run(module, lines(), resume="last")
        assert result.summary["frozen"] == [high]
        assert np.isnan(result.history[-1]["seeds/train/loss"][high])
        np.testing.assert_array_equal(params(tmp_path, Random(), high)["w"], held)
    assert result.metrics["skipped_fraction"] == 0


def test_a_validation_draws_as_the_seed_does_that_the_module_holds():
    make = lambda: CopyGRU(noise=0.5)  # noqa: E731
    fit, module, data = jt.Fit("bptt", seeds=[3, 0], max_steps=2), make(), copies()
    result: Any = fit.run(module, data).metrics
    assert fit.validate(module, data)["val/loss"] == pytest.approx(result["seeds/val/loss"][0], rel=1e-5)


def test_an_error_inside_a_step_is_told_as_it_is(tmp_path):
    def fails(x):
        raise RuntimeError("the lab burnt down")

    class Burns(Random):
        def learning_step(self, forward, x, y):
            jax.debug.callback(fails, x)
            return super().learning_step(forward, x, y)

        def evaluation_step(self, forward, x, y):
            return super().learning_step(forward, x, y)

    with pytest.raises(Exception, match="the lab burnt down"):
        jt.Fit("bptt", seeds=2, max_steps=4, run_dir=tmp_path).run(Burns(), lines())
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


def test_the_error_names_the_step_that_was_the_last_ones(tmp_path):
    class Doomed(Random):
        """Seed 0 fails at step 5, seed 1 at step 3."""

        def build(self):
            net: Any = super().build()
            net.left = brainstate.LongTermState(jnp.where(net.w.value[0, 0] > cut, 3.0, 5.0))
            return net

        def learning_step(self, forward, x, y):
            left = self.model.left
            left.value = left.value - 1 / 3  # three time steps a step
            return super().learning_step(forward, x, y) + jnp.where(left.value < 0.5, jnp.nan, 0.0)

    first = [weights(seed)[0] for seed in range(2)]
    cut, early = sum(first) / 2, int(np.argmax(first))
    with pytest.raises(FloatingPointError, match=f"step 5: seed {1 - early}: .* no seed is left"):
        jt.Fit("bptt", seeds=2, max_steps=9, chunk=9).run(Doomed(), lines())


def test_a_model_that_is_there_already_is_refused():
    module = Random()
    jt.Fit("bptt", max_steps=1).run(module, lines())
    with pytest.raises(ValueError, match="has a model already"):
        jt.Fit("bptt", seeds=2, max_steps=1).run(module, lines())


def test_a_checkpoint_of_several_seeds_is_read_one_by_one(tmp_path):
    fit, module = jt.Fit("bptt", seeds=2, max_steps=2, run_dir=tmp_path), Random()
    fit.run(module, lines())
    with pytest.raises(ValueError, match=r"holds the seeds \[0, 1\]: load one with jaxtrain.load"):
        fit.validate(module, lines(), checkpoint="last")
    with pytest.raises(ValueError, match=r"holds the seeds \[0, 1\]: load one with jaxtrain.load"):
        jt.load(tmp_path, Random())
    with pytest.raises(ValueError, match=r"seed=5: .* holds \[0, 1\]"):
        jt.load(tmp_path, Random(), seed=5)
    assert fit.validate(jt.load(tmp_path, Random(), seed=1), lines())["val/loss"] > 0


@pytest.mark.parametrize("seeds", [0, -1, True, 1.5, [], [1, 1], [-1], ["a"], "8", [0.0], [2**32], 2**32 + 1])
def test_bad_seeds(seeds):
    with pytest.raises(ValueError, match="Fit\\(seeds="):
        jt.Fit("bptt", seeds=seeds, max_steps=1)


def test_seeds_are_counted_from_seed():
    assert as_seeds(3, 5) == (5, 6, 7) and as_seeds(range(2), 0) == (0, 1) and as_seeds(None, 4) is None
    assert as_seeds(1, 2**32 - 1) == (2**32 - 1,)
    with pytest.raises(ValueError, match="counted from seed=4294967295"):
        as_seeds(2, 2**32 - 1)
    with pytest.raises(ValueError, match="do not also pass seed"):
        as_seeds([1, 2], 5)
