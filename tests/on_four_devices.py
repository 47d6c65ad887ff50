"""Run by test_devices.py in a process with four CPU devices: one device is the truth for two and four."""

import re
from typing import Any

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxtrain as jt
from jaxtrain.checkpoint.load import build_each
from jaxtrain.core.state import is_key
from jaxtrain.engine import auto_devices
from jaxtrain.engine.collectives import Collectives
from jaxtrain.engine.program import Program
from jaxtrain.engine.sharding import as_devices
from jaxtrain.engine.steps import ALL_FINITE, NONFINITE_INDEX
from tests import test_metrics_of_sequences as metrics_of
from tests.small import CopyGRU, Linear, copies, leaves, line, lines

STEPS = 20
STREAM = jt.DRTRL(update_every=2, stateful=True)
STRATEGIES = {
    "bptt": jt.BPTT(),
    "tbptt": jt.TBPTT(window=2),
    "drtrl": jt.DRTRL(),
    "drtrl trace": jt.DRTRL(engine="trace"),
    "pp_prop": jt.strategies.PPProp(),
    "stream": STREAM,
}


def stream_batch(step: int, time: int = 5, batch: int = 4) -> jt.Phases:
    """A batch of a stream, in which each sequence has resets and weights of its own."""
    rng = np.random.default_rng((3, step))
    return jt.Phases(
        warmup=None,
        inputs=rng.integers(0, 10, (time, batch)).astype(np.int8),
        targets=rng.integers(0, 10, (time, batch)).astype(np.int32),
        weights=(rng.random((time, batch)) * np.arange(batch)).astype(np.float32),
        reset=rng.random((time, batch)) < 0.3,
    )


def program(module: Any, strategy: Any, batch: Any, devices: int, *, seed: Any = 0, **options: Any) -> Program:
    several = isinstance(seed, tuple)
    models = build_each(module, seed if several else (seed,), several=several, resumed=False)
    options = {"clip": 0.5, "accumulate": 1, "nonfinite": "raise", "chunk": STEPS, **options}
    made = Program(module, strategy, copies().encode if isinstance(module, CopyGRU) else lambda x: x, batch, seed=seed,
                   models=models, devices=devices, **options)  # fmt: skip
    made.prepare()
    return made


def trained(made: Program, batches: list[Any]) -> np.ndarray:
    """Losses of all steps in one dispatch."""
    found = made.train(batches, 0).fetch()
    assert (found[NONFINITE_INDEX][: len(batches)] == ALL_FINITE).all()
    return found["loss"].num[: len(batches)] / found["loss"].weight[: len(batches)]


def alike(made: Program) -> None:
    """Replicated values are equal on all devices, bit for bit."""
    for name, value in made.values.items():
        for leaf in jax.tree.leaves(value):
            if not is_key(leaf) and leaf.sharding.is_fully_replicated:
                for shard in leaf.addressable_shards:
                    np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data, err_msg=name)


def collectives(text: str) -> list[tuple[str, int]]:
    """Each collective of a compiled program, and the number of loops around it."""
    within: dict[str, tuple[str, int]] = {}
    found, block = [], ""
    for row in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", row):
            block = opened[1]
        for kind, names in re.findall(r"(\w+)=\{?((?:%[\w.-]+(?:, )?)+)", row):
            for name in re.findall(r"%([\w.-]+)", names):
                if kind in ("body", "to_apply", "calls", "branch_computations", "true_computation",
                            "false_computation", "called_computations"):  # fmt: skip
                    within[name] = block, int(kind == "body")
        if made := re.search(r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", row):
            found.append((made[1], block))

    def depth(name: str) -> int:
        if name not in within:
            return 0
        outer, loop = within[name]
        return loop + depth(outer)

    return [(kind, depth(block)) for kind, block in found]


def test_the_reader_of_programs_sees_loops():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def steps(x):
        body = lambda _, x: x + jax.lax.psum(jnp.sin(x), "d")  # noqa: E731
        once = jax.lax.psum(x, "d")
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.fori_loop(0, 1000, body, x) + 1, once)

    spread = jax.shard_map(steps, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    text = str(jax.jit(spread).lower(jnp.ones(3)).compile().as_text())
    assert sorted(collectives(text)) == [("all-reduce", 0), ("all-reduce", 2)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_are_those_of_one_device_by_one_all_reduce_an_update(name):
    carried = name.startswith("stream")
    batches = [stream_batch(i) if carried else copies().train_data().batch(i) for i in range(STEPS)]
    truth = trained(program(CopyGRU(), STRATEGIES[name], batches[0], 1), batches)
    assert truth[-1] != truth[0]
    for devices in (2, 4):
        made = program(CopyGRU(), STRATEGIES[name], batches[0], devices)
        # The loop over the steps of a chunk is one; of a stream, the one over updates is another. The last update of
        # five time steps by twos stands behind it.
        expected = [("all-reduce", 1), ("all-reduce", 2)] if carried else [("all-reduce", 1)]
        assert sorted(collectives(made._train.as_text())) == expected
        np.testing.assert_allclose(trained(made, batches), truth, rtol=1e-5)
        alike(made)


def test_shares_that_weigh_differently_count_by_their_weight():
    def weighted(step, lanes=slice(None)):
        x, y = line(step, batch=4)
        weights = np.ones((3, 4), np.float32)
        weights[:, :2] = 0.01
        return jt.Phases(None, x[:, lanes], y[:, lanes], weights[:, lanes])

    run = lambda devices, *lanes: trained(  # noqa: E731
        program(Linear(), jt.BPTT(), weighted(0, *lanes), devices), [weighted(0, *lanes)]
    )[0]
    whole, halves = run(1), [run(1, slice(2)), run(1, slice(2, 4))]
    assert abs(np.mean(halves) - whole) > 0.005  # a mean of means is something else
    np.testing.assert_allclose(run(2), whole, rtol=1e-5)


class Noisy(Linear):
    """Draws one number per sequence from the step's random numbers, and one from the model's own random state."""

    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.rng = brainstate.random.RandomState(5)

    def learning_step(self, forward, x, y):
        drawn, own = brainstate.random.randn(x.shape[0]), self.model.rng.randn(x.shape[0])
        squares = {"drawn2": drawn**2, "own2": own**2}
        return super().learning_step(forward, x, y), {"drawn": drawn, "own": own, **squares}


@pytest.mark.parametrize("folded", [True, False])
def test_random_numbers_differ_between_devices(folded, monkeypatch):
    if not folded:  # without the mechanism the test would see it
        monkeypatch.setattr(Collectives, "fold", lambda self, key: key)
    batch = line(0, time=1)
    made = program(Noisy(), jt.BPTT(), batch, 2)
    metrics = made.train([batch] * 2, 0).fetch()
    of = lambda name: metrics[name].num[:2] / metrics[name].weight[:2]  # noqa: E731
    for name in ("drawn", "own"):
        spread = of(f"{name}2") - of(name) ** 2  # of the two devices' one number each
        assert (spread > 1e-3).all() if folded else (np.abs(spread) < 1e-6).all(), name
    alike(made)
    assert of("own")[0] != of("own")[1]


class Running(Linear):
    """A running mean of the inputs, a count of time steps, and the largest input so far in thousandths."""

    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.mean, self.count = brainstate.LongTermState(jnp.zeros(2)), brainstate.LongTermState(jnp.int32(0))
            self.most = brainstate.LongTermState(jnp.int32(-(2**20)))

        def update(self, x):
            self.mean.value = 0.5 * self.mean.value + 0.5 * x.mean(0)
            self.count.value = self.count.value + 1
            self.most.value = jnp.maximum(self.most.value, (1000 * x.max()).astype(jnp.int32) - 2**20)
            return super().update(x)


def test_running_statistics_are_averaged():
    batches = [line(i, batch=4) for i in range(3)]
    one, four = (program(Running(), jt.BPTT(), batches[0], n, chunk=3) for n in (1, 4))
    for made in (one, four):
        trained(made, batches)
    np.testing.assert_allclose(four.values["model/mean"], one.values["model/mean"], rtol=1e-5, atol=1e-6)
    assert int(four.values["model/count"]) == int(one.values["model/count"]) == 9
    first = max(int(1000 * x[:, 0].max()) for x, _ in batches) - 2**20
    assert int(four.values["model/most"]) == first  # integers: the first device's
    alike(four)


def test_what_is_not_finite_in_one_share_is_skipped_by_all():
    batches = [line(i, batch=4) for i in range(4)]
    batches[2][0][0, 3] = np.nan
    one, four = (program(Linear(), jt.BPTT(), batches[0], n, nonfinite="skip") for n in (1, 4))
    for made in (one, four):
        bad = made.train(batches, 0).fetch()[NONFINITE_INDEX][:4, 0]
        assert [flag == ALL_FINITE for flag in bad] == [True, True, False, True]
        assert made.bad_name(int(bad[2])) == "train/loss"
    np.testing.assert_allclose(four.values["w"], one.values["w"], rtol=1e-5)
    alike(four)


def test_what_weighs_nothing_may_be_anything_in_every_share():
    """One share has a weight in one of its two sequences, the other in neither."""
    weights = np.zeros((3, 4), np.float32)
    weights[:2, 1] = 1
    x, y = line(0, batch=4)
    clean = jt.Phases(None, x, y, weights=weights)
    keep, nan = weights[..., None] != 0, np.float32(np.nan)
    spoiled = jt.Phases(None, np.where(keep, x, nan), np.where(keep, y, nan), weights=weights)
    found = []
    for batch, devices in ((clean, 1), (spoiled, 1), (clean, 2), (spoiled, 2)):
        made = program(Linear(), jt.BPTT(), batch, devices)
        found.append((trained(made, [batch]), np.array(made.values["w"])))
        alike(made)
    for one, other in ((found[0], found[1]), (found[2], found[3])):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(found[2][1], found[0][1], rtol=1e-5)


def test_accumulated_batches():
    batches = [copies().train_data().batch(i) for i in range(4)]
    one, two = (program(CopyGRU(), jt.BPTT(), batches[0], n, accumulate=2) for n in (1, 2))
    np.testing.assert_allclose(trained(two, batches), trained(one, batches), rtol=1e-5)
    assert collectives(two._train.as_text()) == [("all-reduce", 1)]


def test_encoders_draw_the_same_spikes_on_any_number_of_devices():
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 2)).astype(np.float32), rng.random((8, 5, 3)).astype(np.float32)
    data = jt.datasets.ArrayDataset(x, y, batch_size=4, encoder=jt.datasets.Bernoulli(5))
    batches = [data.batch(i) for i in range(4)]
    found = [trained(program(Linear(), jt.BPTT(), batches[0], n), batches) for n in (1, 2, 4)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)
    again = trained(program(Linear(), jt.BPTT(), batches[0], 1), [data.batch(i) for i in range(2, 6)])
    assert not np.allclose(again, found[0], rtol=1e-2)  # other spikes give another loss


def test_several_lengths():
    rng, found = np.random.default_rng(0), []
    x = [rng.normal(size=(n, 2)).astype(np.float32) for n in (1, 2, 3, 4) * 4]
    y = [rng.normal(size=(len(one), 3)).astype(np.float32) for one in x]
    for devices in (1, 2):
        module = Linear()
        data = jt.datasets.bucket(x, y, batch_size=4, lengths=(2, 4))
        jt.Fit("bptt", max_epochs=2, devices=devices).run(module, data)
        found.append(leaves(module))
    for name, leaf in found[0].items():
        np.testing.assert_allclose(found[1][name], leaf, rtol=1e-5)


def test_validation_is_split_where_it_divides():
    batches = [copies().train_data().batch(0), copies(batch_size=3).train_data().batch(0)]
    made = [program(CopyGRU(), STREAM, stream_batch(0), n) for n in (1, 4)]
    for batch in batches:
        one, four = (p.evaluate(batch, 0).fetch()["loss"] for p in made)
        np.testing.assert_allclose(four.num / four.weight, one.num / one.weight, rtol=1e-5)
    split, alone = (executable.program.as_text() for executable in made[1]._executables.values())
    assert [kind for kind, _ in collectives(split)] == ["all-reduce"] and not collectives(alone)


def test_metrics_that_are_no_means_are_exact():
    """Each device contributes a part of its own; of the last batch, which does not divide, one device has all."""
    sets = metrics_of.batches(metrics_of.X, metrics_of.Y, 8)
    found = jt.Fit("bptt", max_steps=2, accumulate=2, devices=4).run(metrics_of.OfSeed(), jt.DataModule(sets[:2], sets))
    metrics_of.equal(found.metrics, jt.Fit("bptt").validate(metrics_of.OfSeed(), sets), rtol=1e-5)


def test_the_loss_of_a_sequence_weighs_each_share():
    """Sequences of other weights: the shares of the devices have other sums of weights."""

    class Weighted(Linear):
        def learning_step(self, forward, x, y):
            return jt.metrics.SequenceLoss(forward(x), y, lambda out, y, w: jnp.square(out.sum(0) - y[-1]).mean(-1))

    x, y = line(0, batch=4)
    batch = jt.Phases(None, x, y, weights=np.tile(np.float32([1, 2, 0, 5]), (3, 1)))
    modules = [Weighted() for _ in range(2)]
    for module, n in zip(modules, (1, 4), strict=True):
        jt.Fit("bptt", max_steps=2, devices=n).run(module, [batch] * 2)
    for name, value in leaves(modules[0]).items():
        np.testing.assert_allclose(leaves(modules[1])[name], value, rtol=1e-5, atol=1e-7)


def test_phases_see_the_modules_environment(tmp_path):
    """Also where batches of a validation and of a probe are split."""

    class Timed(CopyGRU):
        environ = {"dt": 0.5}

        def phases(self, batch):
            assert brainstate.environ.get("dt") == 0.5
            return super().phases(batch)

    probe = jt.GradientFidelity(every=2)
    fit = jt.Fit("drtrl", devices=2, max_steps=2, validate_every=2, callbacks=[probe])
    result = fit.run(Timed(), copies())
    assert {"val/loss", "fidelity/cosine"} <= set(result.metrics)


def test_a_checkpoint_goes_on_on_other_devices(tmp_path, caplog):
    def run(devices, steps, where):
        fit = jt.Fit(jt.strategies.PPProp(update_every=1, stateful=True), max_steps=steps, log_every=2, devices=devices,
                     validate_every=4, chunk=2, run_dir=tmp_path / where)  # fmt: skip
        return fit.run(CopyGRU(), copies(), resume="last")

    whole = run(2, 8, "whole")
    rows = [row for row in whole.history if row["step"] > 4]
    for devices in (2, 1, 4):
        run(2, 4, f"to{devices}")
        caplog.clear()
        again = run(devices, 8, f"to{devices}")
        assert ("to rounding, not bit for bit" in caplog.text) == (devices != 2)
        if devices == 2:
            assert again.digest == whole.digest and again.history == rows
        for ours, theirs in zip(again.history, rows, strict=True):
            for tag in ("train/loss", "grad_norm", "val/loss"):
                if tag in theirs:
                    assert ours[tag] == pytest.approx(theirs[tag], rel=1e-5), (devices, tag)


def test_a_probe_sees_the_first_share():
    class Watch(jt.Callback):
        probe_every = 2

        def probe(self, module, learner, phases):
            learner.learn(phases, lambda grads, weight, metrics: metrics)  # the rule itself runs
            return {"inputs": phases.inputs, "w": module.model.w.value}

        def on_probe(self, run, values):
            self.seen = values, run.params()

    watch = Watch()
    jt.Fit("bptt", devices=2, max_steps=4, callbacks=[watch]).run(Linear(), lines())
    values, params = watch.seen
    np.testing.assert_array_equal(values["inputs"], line(0)[0][:, :1])
    np.testing.assert_array_equal(values["w"], params["w"])


@pytest.mark.parametrize("options", [{}, {"seeds": 2}])
def test_callbacks_read_the_model(options):
    """In every event, with the values of the step; and training is bitwise the same."""
    seen = []

    class Reads(jt.Callback):
        reads_model = True

        def read(self, run):
            params = jax.tree.map(lambda leaf: leaf[0], run.params()) if options else run.params()
            np.testing.assert_array_equal(run.module.model.w.value, params["w"])
            x, y = line(50, batch=3)  # which does not divide
            h, out = np.zeros((3, 3)), []
            for step in x:
                h = 0.5 * h + step @ params["w"] + params["b"]
                out.append(h)
            np.testing.assert_allclose(run.predict([x]), out, rtol=1e-4, atol=1e-6)
            if not options:
                loss = np.square(np.stack(out) - y).mean()
                assert run.validate([(x, y)])["val/loss"] == pytest.approx(loss, rel=1e-4)
            run.validate([line(50)])
            seen.append((run.step, params["w"][0, 0]))

        def on_chunk_end(self, run, metrics):
            self.read(run)

        def on_validation_end(self, run, metrics):
            self.read(run)

    def run(*callbacks):
        fit = jt.Fit("drtrl", devices=2, max_steps=6, chunk=2, validate_every=3, callbacks=callbacks, **options)
        return fit.run(Linear(), lines())

    assert run(Reads()).digest == run().digest
    assert [step for step, _ in seen] == [2, 3, 3, 4, 6, 6] and len({value for _, value in seen}) == 4


def test_a_rate_changed_on_resume(tmp_path):
    def run(devices, steps, lr):
        module = Linear(lambda: braintools.optim.SGD(lr))
        fit = jt.Fit("bptt", max_steps=steps, log_every=1, devices=devices, run_dir=tmp_path / str(devices))
        return fit.run(module, lines(), resume="last").history[-1]["train/loss"]

    losses = [run(n, 2, 0.05) and run(n, 6, 0.01) for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_seeds_are_spread_and_nothing_is_sent():
    batches = [line(i) for i in range(4)]
    made = [program(Noisy(), jt.BPTT(), batches[0], n, seed=(0, 1, 2, 3)) for n in (1, 4)]
    one, four = (p.train(batches, 0).fetch()["seeds/loss"].num[:4] for p in made)
    assert one.shape == (4, 4)
    np.testing.assert_allclose(four, one, rtol=1e-5)
    assert not collectives(made[1]._train.as_text())
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(made[1].values)} == {4}


def test_seeds_of_a_fit():
    runs = [jt.Fit("bptt", seeds=2, devices=n, max_steps=4, validate_every=2, log_every=1,
                   callbacks=[jt.GradientFidelity(every=2)]).run(Linear(), lines()) for n in (1, 2)]  # fmt: skip
    for ours, theirs in zip(runs[1].history, runs[0].history, strict=True):
        np.testing.assert_allclose(ours["seeds/train/loss"], theirs["seeds/train/loss"], rtol=1e-5)
    assert runs[1].metrics["val/loss"] == pytest.approx(runs[0].metrics["val/loss"], rel=1e-5)


def test_a_batch_of_vectors():
    """A vector of sequences is split, a vector of as many time steps is not."""

    class Timed(Linear):
        def phases(self, batch):
            x, y, scale, weights = batch
            return jt.Phases(None, x * scale[:, None], y, weights)

    x, y = line(0, time=4, batch=4)
    batch = x, y, np.arange(1, 5, dtype=np.float32), np.array([0, 1, 2, 3], np.float32)
    with pytest.raises(ValueError, match="devices=2.*Timed.phases of a share.*depends on its own data only"):
        program(Timed(), jt.BPTT(), batch, 2)  # one is over sequences, the other over time steps
    x, y = line(0, time=3, batch=4)
    batch = x, y, batch[2], batch[3][1:]
    one, two = (trained(program(Timed(), jt.BPTT(), batch, n), [batch]) for n in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-5)


class Coupled(Linear):
    """Weights that depend on the whole batch."""

    def phases(self, batch):
        x, y = batch
        w = jnp.abs(x).sum(-1)
        return jt.Phases(None, x, y, w / w.max())


def test_refusals():
    def run(module: Any, strategy: Any = "bptt", data: Any = None, **options: Any) -> None:
        jt.Fit(strategy, max_steps=1, **options).run(module, data or lines())

    with pytest.raises(ValueError, match=r"devices=4\): a batch of 2 sequences does not divide over 4 devices"):
        run(Linear(), devices=4)
    with pytest.raises(ValueError, match=r"devices=2\): 3 seeds do not divide over 2 devices"):
        run(Linear(), devices=2, seeds=3)
    with pytest.raises(ValueError, match=r"devices=5\): JAX has 4 on cpu; ask for at most 4"):
        run(Linear(), devices=5)
    with pytest.raises(ValueError, match=r"Coupled.phases of a share of the batch.*weights has other values"):
        run(Coupled(), devices=2)
    with pytest.raises(ValueError, match="'uoro' keeps one etrace_.* for all sequences"):
        run(CopyGRU(), jt.strategies.UORO(update_every=1, stateful=True), copies(), devices=2)
    assert as_devices("all") == 4


def test_refusals_of_the_users_choice_are_one_device_under_auto(monkeypatch):
    """What cannot be split trains as on one device."""
    monkeypatch.setattr(auto_devices, "LEAST_WORK", 1)
    monkeypatch.setattr(auto_devices, "cores", lambda: 2)

    def run(module: Any, devices: Any, strategy: Any = "bptt", data: Any = None) -> Any:
        return jt.Fit(strategy, max_steps=3, devices=devices).run(module, data or lines())

    result = run(Linear(), "auto")
    assert result.report["devices"] == 2 and result.digest == run(Linear(), 2).digest
    result = run(Coupled(), "auto")
    assert result.report["devices"] == 1 and result.digest == run(Coupled(), 1).digest
    assert any("auto uses one. Fit(devices=2): Coupled.phases" in note for note in result.report["notes"])
    uoro = jt.strategies.UORO(update_every=1, stateful=True)
    result = run(CopyGRU(), "auto", uoro, copies())
    assert result.report["devices"] == 1 and result.digest == run(CopyGRU(), 1, uoro, copies()).digest
    assert any("'uoro' keeps one etrace_" in note for note in result.report["notes"])


class OfOneSign(CopyGRU):
    """All weights of the gates stay positive, and the readout within a norm."""

    def project(self, name, value):
        change = jt.projections.max_norm(0.5) if name.startswith("readout") else jt.projections.non_negative()
        return {**value, "weight": change(value["weight"])}


@pytest.mark.parametrize("strategy", [jt.DRTRL(), jt.strategies.PPProp(update_every=1)], ids=lambda s: s.name)
def test_projected_parameters_are_the_same_on_all_devices(strategy):
    batches = [copies().train_data().batch(step) for step in range(4)]
    one, two = (program(OfOneSign(), strategy, batches[0], count) for count in (1, 2))
    for made in (one, two):
        trained(made, batches)
    alike(two)
    for name in one.parameters:
        weight = np.asarray(two.values[name]["weight"])
        np.testing.assert_allclose(weight, one.values[name]["weight"], rtol=1e-4, atol=1e-6, err_msg=name)
        readout = name.startswith("readout")
        assert (np.linalg.norm(weight, axis=0) < 0.5001).all() if readout else (weight >= 0).all()
        assert readout or (weight == 0).any()
