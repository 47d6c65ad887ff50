"""The callbacks that Fit adds to those given by hand."""

import io
import json
import sys

import optax
import pytest

import jaxtrain as jt
from jaxtrain.callbacks import LearningRateMonitor, ProgressBar, Throughput
from jaxtrain.loggers import JSONL, TensorBoard
from tests.small import Linear, Lines, lines, result_of, rows, scalars, steps_of, tree_bytes


def kinds(run_dir, **options):
    fit = jt.Fit("bptt", max_steps=4, run_dir=run_dir, **options)
    return [type(callback).__name__ for callback in fit.callbacks]


LOGGED = ["LearningRateMonitor", "Throughput"]


def test_what_a_run_has_by_default(tmp_path):
    assert kinds(None) == ["ProgressBar"]
    assert kinds(None, progress=False) == []
    assert kinds(tmp_path) == [*LOGGED, "JSONL", "TensorBoard", "ProgressBar", "Checkpoint"]
    assert kinds(tmp_path, loggers=(), progress=False) == ["Checkpoint"]
    assert kinds(tmp_path, loggers=[JSONL()], progress=True) == [*LOGGED, "ProgressBar", "JSONL", "Checkpoint"]


def test_a_callback_given_by_hand_replaces_the_default_of_its_class(tmp_path):
    class Mine(jt.Callback):
        pass

    class MyBoard(TensorBoard):
        pass

    given = [Mine(), board := MyBoard(), kept := jt.Checkpoint(every=3), bar := ProgressBar(60), speed := Throughput()]
    fit = jt.Fit("bptt", max_steps=4, run_dir=tmp_path, callbacks=given, progress=False)
    assert [type(callback).__name__ for callback in fit.callbacks] == [
        "LearningRateMonitor", "Throughput", "Mine", "JSONL", "MyBoard", "ProgressBar", "Checkpoint",
    ]  # fmt: skip
    assert {id(one) for one in (board, kept, bar, speed)} < {id(one) for one in fit.callbacks}
    assert kinds(tmp_path, loggers=(), callbacks=[JSONL()], progress=False) == ["JSONL", "Checkpoint"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(loggers="jsonl"), ValueError, r"Fit\(loggers='jsonl'\): expected 'default', or a list of loggers"),
        (dict(loggers=None), ValueError, r"Fit\(loggers=None\): expected 'default'"),
        (dict(loggers=[JSONL]), TypeError, r"did you mean JSONL\(\)\?"),
        (dict(progress="yes"), ValueError, r"Fit\(progress='yes'\): expected 'auto', True or False"),
        (dict(progress=1), ValueError, r"Fit\(progress=1\): expected 'auto', True or False"),
    ],
)
def test_bad_options_are_one_clear_line(options, error, message):
    with pytest.raises(error, match=message):
        jt.Fit("bptt", max_steps=4, **options)


def test_a_run_without_callbacks_writes_logs_and_checkpoints(tmp_path, caplog):
    module = Linear(lambda: optax.inject_hyperparams(optax.sgd)(0.05))
    fit = jt.Fit("bptt", max_steps=8, validate_every=4, log_every=4, chunk=2, run_dir=tmp_path)
    result = fit.run(module, lines())
    assert {"lr", "train/loss", "val/loss"} < set(rows(tmp_path)[0])
    assert "throughput/steps_per_s" in result.history[0]
    assert [step for step, _ in scalars(tmp_path)["val/loss"]] == [4, 8]
    assert result.best["monitor"] == "val/loss" and 8 in steps_of(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["fit"]["checkpoint"] == {
        "keep_last": 1, "keep_best": 1, "mode": "min", "monitor": "val/loss",
    }  # fmt: skip
    caplog.clear()
    with caplog.at_level("INFO", logger="jaxtrain"):
        again = jt.Fit("bptt", max_steps=12, validate_every=4, log_every=4, chunk=2, run_dir=tmp_path)
        assert again.run(module, lines(), resume="last").step == 12
    changes = [record.getMessage() for record in caplog.records if " changes from " in record.getMessage()]
    assert changes == ["resume: fit.max_steps changes from 8 to 12"]


def test_defaults_that_have_nothing_to_report_are_quiet(tmp_path, caplog):
    with caplog.at_level("INFO", logger="jaxtrain"):
        jt.Fit("bptt", max_steps=4, run_dir=tmp_path / "a").run(Linear(lambda: optax.sgd(0.05)), jt.DataModule(Lines()))
        assert "learning rate" not in caplog.text and result_of(tmp_path / "a")["best"] is None
        fit = jt.Fit("bptt", max_steps=4, run_dir=tmp_path / "b", callbacks=[LearningRateMonitor()])
        fit.run(Linear(lambda: optax.sgd(0.05)), jt.DataModule(Lines()))
        assert caplog.text.count("exposes no learning rate") == 1


def test_without_a_run_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = jt.Fit("bptt", max_steps=4, log_every=2).run(Linear(), lines())
    assert tree_bytes(tmp_path) == {} and set(result.history[0]) == {"step", "train/loss", "grad_norm", "param_norm"}


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_shown_on_a_terminal(monkeypatch, caplog, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with caplog.at_level("INFO", logger="jaxtrain"):
        jt.Fit("bptt", max_steps=4, chunk=2).run(Linear(), lines())
    assert ("4/4" in stream.getvalue()) is terminal
    assert "finished" not in caplog.text, "no lines elsewhere, unless progress=True"
