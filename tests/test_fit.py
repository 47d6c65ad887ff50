"""Fit from outside: requests of callbacks, data that ends or fails, what a run leaves, validate, test and predict."""

import json

import jax
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.store import Store
from jaxtrain.utils.digests import digest
from jaxtrain.utils.files import RunLock
from tests.small import (
    At,
    CopyGRU,
    Linear,
    Lines,
    LinesOf,
    copies,
    kill,
    leaves,
    line,
    lines,
    result_of,
    rows,
    same,
    steps_of,
    tree_bytes,
)

# ------------------------------------------------------------------------------------------- what callbacks ask for


def asked(event, step, action, tmp_path, **options):
    options = {**dict(chunk=2, log_every=2), **options}
    fit = jt.Fit(
        "bptt",
        max_steps=20,
        callbacks=[jt.loggers.JSONL(), At(event, step, action)],
        run_dir=tmp_path / "run",
        **options,
    )
    return fit.run(Linear(), lines())


def test_stop_takes_effect_at_the_next_edge_after_a_validation_and_a_save(tmp_path):
    result = asked("on_chunk_end", 4, lambda run: run.stop("enough"), tmp_path)
    assert (result.status, result.reason, result.step) == ("stopped", "enough", 6)
    assert "val/loss" in rows(result.run_dir)[-1] and rows(result.run_dir)[-1]["step"] == 6
    assert steps_of(result.run_dir) == [6] and result.exit_code == 0


def test_a_stop_in_a_validation_takes_effect_there(tmp_path):
    result = asked("on_validation_end", 6, lambda run: run.stop("enough"), tmp_path, validate_every=3)
    assert (result.status, result.step) == ("stopped", 6) and steps_of(result.run_dir) == [6]


@pytest.mark.parametrize("validate_every", [None, 3])
def test_a_stop_in_a_row_is_not_lost(tmp_path, validate_every):
    """At an edge its row is made after the validation, so the run ends at the edge after that one."""
    result = asked("on_log", 6, lambda run: run.stop("enough"), tmp_path, validate_every=validate_every, chunk=1)
    assert (result.status, result.step) == ("stopped", 7) and "val/loss" in rows(result.run_dir)[-1]


def test_a_stop_at_the_end_of_an_epoch_still_validates(tmp_path):
    class Stops(jt.Callback):
        def on_epoch_end(self, run):
            run.stop("one epoch is enough")

    fit = jt.Fit("bptt", max_steps=20, chunk=2, callbacks=[Stops()], run_dir=tmp_path)
    result = fit.run(Linear(), jt.DataModule(LinesOf(4), LinesOf(2)))
    assert result.status == "stopped" and "val/loss" in result.history[-1] and result.step == 6


def test_save_and_validate(tmp_path):
    result = asked("on_chunk_end", 4, lambda run: run.save(), tmp_path)
    assert steps_of(result.run_dir) == [20]
    seen = []

    class Seen(jt.Callback):
        def on_checkpoint(self, run, path):
            seen.append((run.step, path.name))

        def on_validation_end(self, run, metrics):
            seen.append((run.step, sorted(metrics)))

    def both(run):
        run.save()
        run.validate()

    callbacks = [At("on_chunk_end", 4, both), Seen()]
    jt.Fit("bptt", max_steps=9, chunk=2, callbacks=callbacks, run_dir=tmp_path / "b").run(Linear(), lines())
    assert seen == [(6, ["val/loss"]), (6, "00000006"), (9, ["val/loss"]), (9, "00000009")]


@pytest.mark.full
def test_retask_recompiles_openly_and_resumes_exactly(tmp_path, caplog):
    def run(name, *more, steps=10):
        data = copies()
        grow = At("on_chunk_end", 4, lambda run: run.set_task(time_lag=5))
        callbacks = [grow, jt.loggers.JSONL(), jt.Checkpoint(every=8, monitor=None), *more]
        fit = jt.Fit(
            "bptt",
            max_steps=steps,
            chunk=2,
            validate_every=5,
            log_every=1,
            callbacks=callbacks,
            run_dir=tmp_path / name,
        )
        return fit.run(CopyGRU(noise=0.1), data, resume="last"), data

    whole, data = run("whole")
    assert data.task == {"time_lag": 5, "num_digits": 2}
    assert "task {'time_lag': 5, 'num_digits': 2} from step 5 on: compiled in" in caplog.text
    run("parts", At("on_checkpoint", 8, kill))
    caplog.clear()
    again, data = run("parts")
    assert data.task == {"time_lag": 5, "num_digits": 2}, "the task came back from the checkpoint"
    assert "5 warm-up" not in caplog.text and "7 warm-up + 2 scored time steps" in caplog.text
    assert again.digest == whole.digest and rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_log_after_the_row_is_written_is_refused(tmp_path):
    fit = jt.Fit(
        "bptt", max_steps=4, callbacks=[At("on_checkpoint", 4, lambda run: run.log({"x": 1.0}))], run_dir=tmp_path
    )
    message = r"run.log\(\['x'\]\) in on_checkpoint or on_fit_end: the log entry of step 4"
    with pytest.raises(RuntimeError, match=message):
        fit.run(Linear(), Lines())


def test_a_time_budget_stops(tmp_path):
    result = jt.Fit("bptt", max_time="0.2s", chunk=1, run_dir=tmp_path).run(Linear(), lines())
    assert (result.status, result.reason) == ("stopped", "max_time reached") and result.step > 0
    assert steps_of(tmp_path) == [result.step] and "val/loss" in result.metrics
    again = jt.Fit("bptt", max_time="0.2s", chunk=1, run_dir=tmp_path).run(Linear(), lines(), resume="last")
    assert again.step > result.step, "another 0.2 s"


# --------------------------------------------------------------------------------------------------- data that fails


def test_data_that_ends_early_keeps_the_last_whole_step(tmp_path):
    def run(n, name, **options):
        fit = jt.Fit(
            "bptt", max_steps=10, chunk=4, log_every=1, callbacks=[jt.loggers.JSONL()], run_dir=tmp_path / name
        )
        return fit.run(Linear(), (line(i) for i in range(n)), **options)

    with pytest.raises(jt.errors.DataEnded, match="ended after 7 batches"):
        run(7, "parts")
    assert steps_of(tmp_path / "parts") == [7] and result_of(tmp_path / "parts")["status"] == "failed"
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6, 7]
    again, whole = run(10, "parts", resume="last"), run(10, "whole")
    assert again.digest == whole.digest and rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_data_that_raises_names_the_batch(tmp_path):
    def change(step, batch):
        if step == 5:
            raise OSError("disk gone")
        return batch

    with pytest.raises(OSError, match="disk gone") as caught:
        jt.Fit("bptt", max_steps=9, chunk=4, run_dir=tmp_path).run(Linear(), Lines(change))
    assert any("batch 5 of the train data" in note for note in caught.value.__notes__)
    assert steps_of(tmp_path) == [5]


def test_a_changed_shape_names_the_leaf_and_both_shapes():
    data = [line(0), line(1), line(2, time=4), line(3)]
    with pytest.raises(
        jt.errors.DataError, match=r"batch 2: leaf batch\[0\] has shape \(4, 2, 2\), expected \(3, 2, 2\)"
    ):
        jt.Fit("bptt", max_steps=4).run(Linear(), data)


# ----------------------------------------------------------------------------------------------- after and beside it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    module = CopyGRU()
    callbacks = [jt.loggers.JSONL(), jt.Checkpoint(every=4, keep_best=2, keep_last=2)]
    fit = jt.Fit("drtrl", max_steps=6, validate_every=3, log_every=2, callbacks=callbacks, run_dir=path)
    return fit, module, fit.run(module, copies(), config={"lr": 0.01, "time_lag": 3})


def test_a_model_after_its_run(trained):
    fit, module, result = trained
    saved = Store(result.run_dir / "checkpoints", read_only=True).restore(6)
    assert same(leaves(module), saved.params)
    assert digest({**saved.params, **saved.train}) == result.digest
    for name, state in module.model.states().items():
        for leaf in jax.tree.leaves(state.value):
            assert np.isfinite(np.asarray(leaf, np.float64)).all(), name
    out = module.model(np.zeros((4, 10), np.float32))
    assert out.shape == (4, 10) and np.isfinite(np.asarray(out)).all()
    assert np.abs(np.asarray(module.model.rnn.layers[0].h.value)).sum() > 0


def test_load_restores_bit_for_bit(trained):
    fit, module, result = trained
    other = CopyGRU()
    assert jt.load(result.run_dir, other) is other
    assert same(leaves(other), leaves(module))
    jt.load(result.run_dir / "checkpoints" / "00000004", other)
    assert not same(leaves(other), leaves(module))
    with pytest.raises(ValueError, match="of another model"):
        jt.load(result.run_dir, CopyGRU(hidden=5))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        jt.load(result.run_dir / "nothing", CopyGRU())


def test_validate_test_and_predict(trained):
    fit, module, result = trained
    metrics = fit.validate(module, copies())
    assert metrics == {name: result.metrics[name] for name in ("val/loss", "val/accuracy")}
    assert fit.validate(CopyGRU(), copies(), checkpoint="last") == metrics
    assert fit.validate(CopyGRU(), copies(), checkpoint=3) == pytest.approx(
        {name: rows(result.run_dir)[1][name] for name in metrics}
    )
    assert set(fit.test(module, copies(test_batches=1), checkpoint="best")) == {"test/loss", "test/accuracy"}
    outputs = fit.predict(module, copies(test_batches=3))
    assert isinstance(outputs, np.ndarray) and outputs.shape == (2, 12, 10)


def test_config_and_result(trained):
    fit, module, result = trained
    config = json.loads((result.run_dir / "config.json").read_text())
    assert config["schema"] == 1 and config["config"] == {"lr": 0.01, "time_lag": 3} and config["parent"] is None
    assert config["strategy"] == {
        "name": "drtrl", "vjp": "multi-step", "window": 1, "batching": "auto", "update_every": "sequence",
        "stateful": False, "engine": "auto", "segment": "auto", "readout_memory": False,
    }  # fmt: skip
    auto = {"chunk": 50, "batching": "batched", "engine": "reverse", "segment": "sequence"}
    assert config["auto"] == auto and config["fit"]["max_steps"] == 6
    assert config["data"]["class"] == "CopyDataModule" and config["module"] == "CopyGRU"
    saved = result_of(result.run_dir)
    assert saved == json.loads(json.dumps(result.summary)) and saved["status"] == "finished" and saved["step"] == 6
    assert set(saved["val"]) == {"loss", "accuracy"} and set(saved["train"]) == {"loss", "accuracy"}
    assert saved["digest"] == result.digest and len(result.digest) == 64 and saved["params"] == 376
    assert set(saved["seconds"]) == {"compile", "train", "validate", "test", "checkpoint", "total"}
    assert result.best == saved["best"] and result.best["monitor"] == "val/loss"


def test_dry_run_writes_nothing(tmp_path, caplog):
    fit = jt.Fit("drtrl", max_steps=6, callbacks=[jt.loggers.JSONL(), jt.Checkpoint()], run_dir=tmp_path / "run")
    result = fit.run(CopyGRU(), copies(), dry_run=True)
    assert list(tmp_path.iterdir()) == [] and result.step == 0 and result.history == []
    assert result.report["parameters"]["rnn.layers.0.Wr.weight"]["trains"] == "in part"
    assert "rnn.layers.0.Wr.weight" in caplog.text and "it gets credit from " in caplog.text


def test_a_dry_run_takes_and_makes_no_lock(tmp_path):
    jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "run").run(Linear(), Lines())
    fit = jt.Fit("bptt", max_steps=4, run_dir=tmp_path / "run")
    before = tree_bytes(tmp_path)
    with RunLock(tmp_path / "run"):
        assert fit.run(Linear(), Lines(), resume="last", dry_run=True).step == 2
    assert tree_bytes(tmp_path) == before


def test_a_module_with_a_model_is_trained_from_its_values(tmp_path, caplog):
    said = "training of the model of Linear continues from its current values; use a new module to start fresh"

    def initial(name):
        return json.loads((tmp_path / name / "config.json").read_text())["initial"]

    module = Linear()
    jt.Fit("bptt", max_steps=1, run_dir=tmp_path / "a").run(module, Lines())
    assert said not in caplog.text and initial("a") == "seed"
    module.model.b.value = np.ones(3, np.float32)
    jt.Fit("bptt", max_steps=1, run_dir=tmp_path / "b").run(module, Lines())
    assert not np.allclose(leaves(module)["b"], 0) and np.allclose(leaves(module)["b"], 1, atol=0.2)
    assert caplog.text.count(said) == 1 and initial("b") == "values"
    jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "b").run(Linear(), Lines(), resume="last")
    assert caplog.text.count(said) == 1 and initial("b") == "values", "the run still began so"
    jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "a").run(module, Lines(), resume="last")
    assert caplog.text.count(said) == 1 and initial("a") == "seed"


def test_a_run_ends_in_order_whatever_fails_on_the_way(tmp_path, monkeypatch):
    ended = []

    class Ends(jt.Callback):
        def on_fit_end(self, run, status):
            ended.append(status)

    def close(store):
        raise OSError("the disk is gone")

    def fail(run):
        raise RuntimeError("boom")

    fit = jt.Fit("bptt", max_steps=9, chunk=2, callbacks=[At("on_chunk_end", 4, fail), Ends()], run_dir=tmp_path)
    monkeypatch.setattr(Store, "close", close)
    module = Linear()
    with pytest.raises(RuntimeError, match="boom") as caught:
        fit.run(module, Lines())
    assert caught.value.__notes__ == ["jaxtrain: closing the store failed, too: OSError: the disk is gone"]
    assert ended == ["failed"]
    assert result_of(tmp_path)["status"] == "failed" and np.abs(leaves(module)["b"]).sum() > 0


def test_set_up_is_called_once():
    class Counts(jt.DataModule):
        times = 0

        def setup(self):
            self.times += 1

    data = Counts(Lines(), LinesOf(2), predict=LinesOf(2))
    module, fit = Linear(), jt.Fit("bptt", max_steps=1)
    fit.run(module, data)
    fit.validate(module, data)
    jt.Fit("bptt", max_steps=2).predict(module, data)
    assert data.times == 1


@pytest.mark.full
def test_the_seed_decides_the_initial_values_and_leaves_the_callers_alone():
    import brainstate

    found = []
    for seed in (0, 0, 1):
        before = np.asarray(jax.random.key_data(brainstate.random.DEFAULT.value))
        module = CopyGRU()
        jt.Fit("bptt", max_steps=1, seed=seed).run(module, copies())
        found.append(leaves(module)["readout.weight.weight"])
        assert (np.asarray(jax.random.key_data(brainstate.random.DEFAULT.value)) == before).all()
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()


@pytest.mark.full
def test_batches_that_make_no_update_are_named_before_and_after(tmp_path, caplog):
    def run(steps, **options):
        caplog.clear()
        module = Linear()
        options = {"accumulate": 4, "max_steps": steps, "run_dir": tmp_path / f"{steps}", **options}
        fit = jt.Fit("bptt", **options)
        return fit.run(module, [line(i) for i in range(10)], batch_first=False), module.model.w.value

    result, values = run(10)
    said = "accumulate=4: the last 2 of 10 batches make no update; choose max_steps=8 or max_steps=12"
    assert result.report["notes"] == [said] and f"note       {said}" in caplog.text
    assert caplog.messages[-1] == "the last 2 batches made no update: accumulate=4"
    assert result.summary["unused_batches"] == result_of(tmp_path / "10")["unused_batches"] == 2
    for steps in (8, 12):  # as advised
        advised, others = run(steps)
        assert advised.summary["unused_batches"] == 0 and advised.report["notes"] == []
        assert "no update" not in caplog.text and np.array_equal(values, others) == (steps == 8)
    epochs, _ = run(None, max_epochs=1, run_dir=None)
    assert epochs.report["notes"] == [f"{said} in place of max_epochs"] and epochs.summary["unused_batches"] == 2
    with pytest.raises(ValueError, match=r"^Fit\(accumulate=16\): a run of 10 batches would make no update; give more"):
        run(None, max_epochs=1, accumulate=16)
