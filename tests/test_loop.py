"""The loop: the order of events, requests of callbacks, numbers that are not finite, data that fails, compiles."""

import math

import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.metrics import Pending
from tests.small import (
    At,
    CopyGRU,
    Linear,
    Lines,
    LinesOf,
    Trace,
    copies,
    count_compiles,
    leaves,
    line,
    lines,
    result_of,
    rows,
    same,
    steps_of,
)


class Probing(Trace):
    probe_every = 4

    def probe(self, module, learner, phases):
        return jnp.float32(1)


# ------------------------------------------------------------------------------------------------- order of events


def test_the_trace_of_a_run(tmp_path):
    events = []
    data = jt.DataModule(LinesOf(4), LinesOf(2))
    callbacks = [Probing(events), jt.Checkpoint(every=4, monitor=None)]
    fit = jt.Fit(
        "bptt", max_steps=6, chunk=3, validate_every=6, log_every=2, callbacks=callbacks, run_dir=tmp_path / "a"
    )
    fit.run(Linear(), data)
    assert events == [
        "fit_start 0",
        "epoch_start 0",
        "chunk_start 0",
        "chunk_start 0",
        "chunk_end 3",
        "log 3",
        "chunk_end 4",
        "probe 4",
        "epoch_end 4",
        "log 4",
        "checkpoint 4",
        "epoch_start 4",
        "chunk_start 4",
        "chunk_end 6",
        "validation_start 6",
        "validation_end 6",
        "log 6",
        "checkpoint 6",
        "fit_end 6",
    ]
    events.clear()
    callbacks = [Probing(events), jt.Checkpoint(every=4, monitor=None)]
    fit = jt.Fit(
        "bptt", max_steps=8, chunk=3, validate_every=6, log_every=2, callbacks=callbacks, run_dir=tmp_path / "a"
    )
    fit.run(Linear(), jt.DataModule(LinesOf(4), LinesOf(2)), resume="last")
    assert events == [
        "fit_start 6",
        "restore 6",
        "chunk_start 6",
        "chunk_end 8",
        "probe 8",
        "validation_start 8",
        "validation_end 8",
        "epoch_end 8",
        "log 8",
        "checkpoint 8",
        "fit_end 8",
    ]


def test_ranks_order_the_callbacks_of_an_event(tmp_path):
    events = []

    def ranked(rank, mark):
        return type("Ranked", (Trace,), {"rank": rank})(events, mark)

    kinds = [
        ("persist", "p "),
        ("record", "r "),
        ("decide", "d "),
        ("produce", "m "),
        ("record", "s "),
        ("produce", "n "),
    ]
    callbacks = [ranked(*kind) for kind in kinds]
    fit = jt.Fit("bptt", max_steps=2, callbacks=callbacks, run_dir=tmp_path)
    fit.run(Linear(), lines())
    assert len(events) == 6 * len({event[2:] for event in events}), "everyone hears everything"
    for i in range(0, len(events), 6):
        assert [event[0] for event in events[i : i + 6]] == ["m", "n", "d", "r", "s", "p"]
        assert len({event[2:] for event in events[i : i + 6]}) == 1


def test_an_exception_is_told_before_the_end(tmp_path):
    def fail(run):
        raise RuntimeError("boom")

    events = []
    fit = jt.Fit("bptt", max_steps=9, chunk=2, callbacks=[Trace(events), At("on_chunk_end", 4, fail)], run_dir=tmp_path)
    with pytest.raises(RuntimeError, match="boom"):
        fit.run(Linear(), Lines())
    assert events[-2:] == ["exception 4", "fit_end 4"]
    assert result_of(tmp_path)["status"] == "failed" and result_of(tmp_path)["digest"] is None


def test_hooks_that_nobody_overrides_are_not_called(monkeypatch):
    def never(*_):
        raise AssertionError("called")

    class Silent(jt.Callback):
        def on_chunk_end(self, run, metrics):
            self.step = run.step

    silent = Silent()
    for name in vars(jt.Callback):
        if name.startswith("on_") and name != "on_chunk_end":
            monkeypatch.setattr(jt.Callback, name, never)
    monkeypatch.setattr(jt.Callback, "flush", never)
    jt.Fit("bptt", max_steps=4, validate_every=2, callbacks=[silent]).run(
        Linear(), jt.DataModule(LinesOf(2), LinesOf(1))
    )
    assert silent.step == 4


def test_metrics_of_every_step_arrive_and_rows_are_their_means():
    got = {}

    class Keep(jt.Callback):
        def on_chunk_end(self, run, metrics):
            n = len(metrics["loss"])
            for i in range(n):
                got[run.step - n + i + 1] = {name: values[i] for name, values in metrics.items()}
            assert all(values.shape == (n,) for values in metrics.values())

    result = jt.Fit("bptt", max_steps=10, chunk=3, log_every=4, callbacks=[Keep()]).run(Linear(), Lines())
    assert list(got) == list(range(1, 11))
    assert set(got[1]) == {"loss", "grad_norm", "param_norm", "lr"}
    assert [row["step"] for row in result.history] == [4, 8, 10]
    assert result.history[0]["train/loss"] == pytest.approx(np.mean([got[s]["loss"] for s in range(1, 5)]), rel=1e-6)
    assert result.history[2]["grad_norm"] == pytest.approx(np.mean([got[s]["grad_norm"] for s in (9, 10)]), rel=1e-6)
    assert "lr" not in result.history[0]


# ---------------------------------------------------------------------------------------------- compiles, fetches


class Figure(jt.Callback):
    probe_every = 6

    def probe(self, module, learner, phases):
        return learner.predict(phases)


@pytest.mark.parametrize("strategy", ["bptt", "drtrl"])
def test_nothing_is_compiled_after_the_start(tmp_path, no_compilation_cache, strategy):
    seen, stop = count_compiles()
    marks = {}

    class Marks(jt.Callback):
        def on_fit_start(self, run):
            marks["start"] = len(seen)

        def on_fit_end(self, run, status):
            marks["end"] = len(seen)

    data = copies() if strategy == "drtrl" else lines()
    module = CopyGRU() if strategy == "drtrl" else Linear()
    before = Pending.fetches
    try:
        jt.Fit(
            strategy, max_steps=23, chunk=5, validate_every=10, log_every=4, clip=1.0, run_dir=tmp_path,
            callbacks=[Marks(), Figure(), jt.loggers.JSONL(), jt.loggers.TensorBoard(), jt.Checkpoint(every=7)],
        ).run(module, data)  # fmt: skip
    finally:
        stop()
    assert marks["start"] > 0 and marks["end"] == marks["start"]
    chunks = [5, 6, 7, 10, 12, 14, 15, 18, 20, 21, 23]  # multiples of 5 and edges: 6, 12, 18; 7, 14, 21; 10, 20; 23
    validations, probes = 3, 3  # at 10, 20 and the end; 6, 12, 18
    assert Pending.fetches - before == len(chunks) + 2 * validations + probes


def test_the_state_before_a_step_is_donated():
    from jaxtrain.engine.program import Program
    from jaxtrain.strategies.registry import make_strategy

    module = Linear()
    module.model = module.build()
    options = dict(seed=0, clip=None, accumulate=1, nonfinite="raise", chunk=2)
    program = Program(module, make_strategy("bptt"), lambda x: x, line(0), **options)
    program.prepare()
    before = list(program.values.values())
    pending = program.train([line(0), line(1)], 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert pending.fetch()["loss"].num.shape == (2,)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(program.values))


# -------------------------------------------------------------------------------------------- chunks and observers


@pytest.mark.full
@pytest.mark.parametrize("module,data", [(Linear, lines), (CopyGRU, copies)])
def test_chunks_do_not_change_the_numbers(module, data):
    results = []
    for chunk in (1, 7, 50):
        one = module()
        strategy = "drtrl" if module is CopyGRU else "bptt"
        fit = jt.Fit(strategy, max_steps=20, chunk=chunk, log_every=3, validate_every=9, clip=0.5)
        result = fit.run(one, data())
        results.append((result.digest, result.history, leaves(one)))
    for digest, history, params in results[1:]:
        assert digest == results[0][0] and history == results[0][1] and same(params, results[0][2])


@pytest.mark.full
def test_observers_change_nothing(tmp_path):
    def run(callbacks, **options):
        module = CopyGRU(noise=0.1)
        return jt.Fit("bptt", max_steps=14, clip=1.0, callbacks=callbacks, **options).run(module, copies()), leaves(
            module
        )

    plain = run([], chunk=14)
    callbacks = [
        jt.callbacks.CopyFigure(every=4, sequences=1), Figure(), jt.callbacks.LearningRateMonitor(),
        jt.callbacks.Throughput(), jt.loggers.JSONL(),
        jt.loggers.TensorBoard(), jt.callbacks.ProgressBar(), jt.EarlyStopping(patience=100),
        jt.Checkpoint(every=3, keep_best=2),
    ]  # fmt: skip
    watched = run(callbacks, run_dir=tmp_path, validate_every=5, log_every=1, chunk=4)
    assert watched[0].digest == plain[0].digest and same(plain[1], watched[1])
    assert len(list((tmp_path / "figures").iterdir())) == 3


# ---------------------------------------------------------------------------------------- numbers that are no numbers


def spoil(*steps):
    def change(step, batch):
        x, y = batch
        return (x, np.full_like(y, np.nan)) if step + 1 in steps else batch

    return change


def test_nonfinite_raise_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    callbacks = [jt.loggers.JSONL(), jt.Checkpoint(every=4, monitor=None)]
    fit = jt.Fit("bptt", max_steps=12, chunk=4, log_every=2, callbacks=callbacks, run_dir=tmp_path)
    named = r"^step 7: train/loss is not finite; train data: batch 6: leaf batch\[1\] holds 18 .*nonfinite='skip'"
    with pytest.raises(jt.errors.NonFiniteError, match=named):
        fit.run(Linear(), Lines(spoil(7)))
    assert result_of(tmp_path)["status"] == "failed" and result_of(tmp_path)["step"] == 6
    assert steps_of(tmp_path) == [4]
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6], "the steps before the bad one are on record"
    good = Linear()
    jt.load(tmp_path, good)
    reference = Linear()
    jt.Fit("bptt", max_steps=4).run(reference, Lines())
    assert same(leaves(good), leaves(reference))


def test_a_bad_gradient_is_named_by_its_parameter():
    class Bad(Linear):
        def learning_step(self, forward, x, y):
            h = forward(x)
            return jnp.where(h > 0, jnp.sqrt(jnp.abs(h - h)), 0.0).sum(-1)  # 0, its derivative is not

    with pytest.raises(jt.errors.NonFiniteError, match=r"step 1: the gradient of [bw] is not finite"):
        jt.Fit("bptt", max_steps=2).run(Bad(), Lines())


def test_nonfinite_skip_leaves_the_state_as_before(tmp_path, caplog):
    fit = jt.Fit(
        "bptt",
        max_steps=6,
        chunk=2,
        log_every=3,
        nonfinite="skip",
        callbacks=[jt.loggers.JSONL()],
        run_dir=tmp_path / "skip",
    )
    module = Linear(lambda: braintools.optim.Adam(0.01))
    result = fit.run(module, Lines(spoil(2, 3)))
    assert "step 2: train/loss is not finite; skipped" in caplog.text
    assert [row["skipped_fraction"] * 3 for row in rows(tmp_path / "skip")] == pytest.approx([2, 0])
    assert all(math.isfinite(value) for row in result.history for value in row.values())

    class Without(Lines):  # the same batches, those two left out
        def batch(self, step):
            return line(step if step < 1 else step + 2)

    reference = Linear(lambda: braintools.optim.Adam(0.01))
    jt.Fit("bptt", max_steps=4, chunk=2, nonfinite="skip").run(reference, Without())  # the same program
    assert same(leaves(module), leaves(reference)), "parameters and optimizer are as if those steps had not been"


def test_skipped_steps_are_counted_in_the_row_of_their_step():
    found = []
    for chunk in (1, 2, 6):
        fit = jt.Fit("bptt", max_steps=6, chunk=chunk, log_every=1, nonfinite="skip")
        found.append(fit.run(Linear(), Lines(spoil(2, 3))).history)
    assert found[1] == found[0] and found[2] == found[0]
    assert [row["skipped_fraction"] for row in found[0]] == [0, 1, 1, 0, 0, 0]
    assert ["train/loss" in row for row in found[0]] == [True, False, False, True, True, True]


def test_nonfinite_warn_goes_on(tmp_path, caplog):
    def change(step, batch):
        x, y = batch
        return (x, y * np.float32(1e30)) if step == 1 else batch

    fit = jt.Fit(
        "bptt", max_steps=6, chunk=2, log_every=2, nonfinite="warn", callbacks=[jt.loggers.JSONL()], run_dir=tmp_path
    )
    result = fit.run(Linear(), Lines(change))
    assert result.status == "finished" and "step 2: train/loss is not finite" in caplog.text
    assert rows(tmp_path)[0]["train/loss"] is None and "train/loss" in rows(tmp_path)[0]["nonfinite"]


def test_a_nan_validation_never_is_the_best(tmp_path):
    class Score(Linear):
        def evaluation_step(self, forward, x, y):
            forward(x)
            return jnp.where(y[0, 0] > 0, jnp.nan, 1.0)

    class Val(LinesOf):
        calls = 0

        def batch(self, step):
            if step == 0:
                type(self).calls += 1
            sign = 1.0 if self.calls in (4,) else -1.0
            x, y = line(step)
            return x, np.full_like(y, sign)

    checkpoint = jt.Checkpoint(every=2, keep_last=1)
    fit = jt.Fit("bptt", max_steps=6, validate_every=2, callbacks=[checkpoint], run_dir=tmp_path)
    result = fit.run(Score(), jt.DataModule(Lines(), Val(1)))
    assert any(math.isnan(row["val/loss"]) for row in result.history), "one of the three was NaN"
    assert result.best is not None and result.best["score"] == 1.0
    best = result.best["step"]
    assert best in steps_of(tmp_path)
    assert not math.isnan({row["step"]: row for row in result.history}[best]["val/loss"])


@pytest.mark.parametrize("leaf", [0, 1])
def test_data_that_is_not_finite_is_named(leaf):
    """Of the step that failed, and only where the data is what is wrong."""

    def spoil(step, batch):
        if step == 4:
            batch[leaf][2, 1, 1] = np.inf
        return batch

    where = rf"train data: batch 4: leaf batch\[{leaf}\] holds 1 values that are not finite, the first at \[2, 1, 1\]"
    with pytest.raises(jt.errors.NonFiniteError, match=rf"^step 5: train/loss is not finite; {where}: fix the data"):
        jt.Fit("bptt", max_steps=8, chunk=4).run(Linear(), Lines(change=spoil))


def test_classes_that_are_no_outputs_are_asked_about():
    class Classify(Linear):
        def learning_step(self, forward, x, y):
            return braintools.metric.softmax_cross_entropy_with_integer_labels(forward(x), y)

    def labelled(labels):
        x = line(0)[0]
        return [jt.Phases(None, x, np.resize(np.int32(labels), x.shape[:2]))]

    advice = r"integer targets reach from {}: check that all are below the number of outputs\. Otherwise lower the le"
    asked = f"step 1: train/loss is not finite; {advice.format('1 to 3')}"
    with pytest.raises(jt.errors.NonFiniteError, match=asked):
        jt.Fit("bptt", max_steps=2).run(Classify(), labelled([1, 2, 3]))  # three outputs
    jt.Fit("bptt", max_steps=2).run(Classify(), labelled([0, 1, 2]))
    x, asked = line(0)[0][0], f"train/loss is not finite, but x and target are; {advice.format('7 to 7')}"
    with (
        pytest.raises(jt.errors.NonFiniteError, match=asked),
        jt.Fit(jt.TBPTT(window=1, update_every=1)).online(Classify(), (x, np.zeros(len(x), np.int32))) as live,
    ):
        live.step(x, np.zeros(len(x), np.int32))
        live.step(x, np.full(len(x), 7, np.int32))


def test_a_place_in_the_data_is_that_of_the_users_layout():
    """And each advice comes once."""
    x, y = line(0, time=5, batch=4)
    x, y = x.swapaxes(0, 1).copy(), y.swapaxes(0, 1).copy()
    y[3, 4, 0] = np.nan
    with pytest.raises(
        jt.errors.NonFiniteError, match=r"holds 1 values that are not finite, the first at \[3, 4, 0\]"
    ) as told:
        jt.Fit("bptt", max_steps=1).run(Linear(), [(x, y)], batch_first=True)
    assert all(str(told.value).count(way) == 1 for way in ("fix the data", "nonfinite=", "weight 0", "lower the"))


class Weighted(Linear):
    """Batches ``(inputs, targets, weights)``."""

    def phases(self, batch):
        x, y, weights = batch
        return jt.Phases(None, x, y, weights=weights)


def weighted(*weights, targets=None):
    """A batch for each weight of all of its time steps."""
    return [
        (x, y if targets is None else y * targets, np.full(3, w, np.float32)) for w in weights for x, y in [line(0)]
    ]


@pytest.mark.full
def test_steps_without_any_weight_are_warned_of(caplog):
    module, data = Weighted(), jt.DataModule(weighted(*[0] * 5), weighted(0), batch_first=False)
    jt.Fit("bptt", max_steps=20, log_every=8).run(module, data)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(": ")[0] for line in said] == [
        "steps 1 to 8",
        "val/loss is not finite",
        "no update in all 20 steps; the parameters are unchanged",
    ]
    assert "no time step has a weight above 0" in said[0] and "all time steps of the val data have weight 0" in said[1]
    caplog.clear()
    jt.Fit("bptt", max_steps=6, log_every=8).run(Weighted(), weighted(0, 1, 0), batch_first=False)
    jt.Fit("bptt", max_steps=6, log_every=8, accumulate=4).run(Weighted(), weighted(0, 1, 0), batch_first=False)
    jt.Fit("bptt", max_steps=4, log_every=2, nonfinite="skip").run(
        Linear(), Lines(spoil(1, 2, 3, 4)), batch_first=False
    )
    assert "no time step has a weight" not in caplog.text, "a pause between weights, and steps that were skipped"


def test_a_validation_that_is_not_finite_says_why(caplog):
    good, bad = line(0), line(1)
    bad[1][2, 1, 0] = np.nan

    class Outputs(Linear):
        def evaluation_step(self, forward, x, y):
            return jnp.log(-jnp.square(forward(x))).mean(-1), {"fine": jnp.zeros(())}

    def said(module, val, **options):
        caplog.clear()
        fit, data = jt.Fit("bptt", max_steps=1), jt.DataModule(Lines(), val, val, batch_first=False)
        if options:
            data = jt.DataModule([tuple(a.swapaxes(0, 1) for a in good)], val, **options)
        result = fit.run(module, data)
        assert result.status == "finished", "what becomes of it is not changed"
        fit.test(module, data) if not options else None
        return [record.message for record in caplog.records if record.levelname == "WARNING"]

    where = "batch 1: leaf batch[1] holds 1 values that are not finite, the first at [2, 1, 0]"
    assert said(Linear(), [good, bad]) == [
        f"{name}/loss is not finite; {name} data: {where}" for name in ("val", "test")
    ]
    val = [tuple(a.swapaxes(0, 1) for a in batch) for batch in (good, bad)]
    assert said(Linear(), val, batch_first=True)[0].endswith("the first at [1, 2, 0]")
    outputs = "val/loss is not finite; val data: batch 0: all of its arrays are finite, so the model's outputs, or"
    assert said(Outputs(), [good])[0].startswith(outputs)
    assert said(Linear(), [good]) == []
    caplog.clear()
    masked = weighted(1, 0, targets=np.float32(1)) + weighted(0, targets=np.float32(np.nan))
    jt.Fit("bptt").validate(Weighted(), masked, batch_first=False)
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "a target of weight 0 may be NaN"


def test_a_time_that_runs_out_in_a_validation_ends_the_run_there(monkeypatch):
    """Not a chunk and a second validation later."""
    now, validated = [100.0], []

    class Slow(jt.Callback):
        def on_validation_start(self, run):
            now[0] += 5.0
            validated.append(run.step)

    monkeypatch.setattr("jaxtrain.training.schedule.time.monotonic", lambda: now[0])
    fit = jt.Fit("bptt", max_time="3s", max_steps=20, validate_every=4, chunk=1, callbacks=[Slow()])
    result = fit.run(Linear(), lines())
    assert (result.status, result.step, validated) == ("stopped", 4, [4])
