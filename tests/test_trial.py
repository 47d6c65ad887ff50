"""A trial of ``jaxtrain compare``: its clock, its budget, and how it ends."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxtrain.callbacks.early_stopping import Monitor
from jaxtrain.commands.compare import trial
from jaxtrain.commands.compare.trial import Watch, run_trial
from tests.kit.tiers import longer

RECIPE = str(Path(__file__).parents[1] / "recipes/copy_lru.py")


def ask(out, give_up=None, **changes):
    """One trial in this process, as `compare` asks for it."""
    config = {"strategy": "bptt", "strategy_fields": {}, "hidden": 6, "width": 6, "time_lag": 2, "digits": 1,
              "batch_size": 8, "val_batches": 1, "validate_every": 5, "log_every": 5, "max_steps": 10, "seed": 0,
              "stop_at": None, "run_dir": str(out), "progress": False}  # fmt: skip
    wanted = {"recipe": RECIPE, "config": config, "metric": "val/accuracy", "mode": "max", "target": None,
              "seconds": None, "stop": False}  # fmt: skip
    return run_trial(wanted | changes, give_up)


@pytest.mark.full
def test_a_metric_that_there_is_not_ends_a_trial_before_its_first_step(tmp_path, capsys):
    result = ask(tmp_path / "run", metric="val/acuracy")
    assert result["failed"].startswith("ValueError") and "did you mean 'val/accuracy'?" in result["failed"]
    assert result["steps"] == 0 and "Traceback" in capsys.readouterr().err
    assert (
        "no log entry has 'train/acuracy'; their tags are" in ask(tmp_path / "other", metric="train/acuracy")["failed"]
    )


def test_a_trial_that_a_signal_ends_is_no_result(tmp_path, monkeypatch):
    real = Watch.on_chunk_end

    def stopped(self, run, metrics):
        real(self, run, metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Watch, "on_chunk_end", stopped)
    assert "the trial was terminated at step" in ask(tmp_path / "run")["failed"]


@pytest.mark.parametrize("first,budget,failed", [
    (0, 0.1, "did not fit: no val/accuracy after 0.2 s and 0 steps;"), *longer((5, 2.0, "")),
])  # fmt: skip
def test_a_dispatch_that_takes_more_than_all_of_the_budget_is_given_up(first, budget, failed, tmp_path, monkeypatch):
    """The result is what was measured until then; without any value it did not fit."""
    given_up, told = threading.Event(), []

    begin = Watch.on_chunk_start

    def hangs(self, run):
        begin(self, run)
        assert run.step < first or given_up.wait(60)

    def give_up(result):
        told.append(result)
        given_up.set()

    monkeypatch.setattr(Watch, "on_chunk_start", hangs)
    ask(tmp_path / "run", give_up, seconds=budget)
    (result,) = told
    assert result["failed"].startswith(failed) and bool(result["failed"]) is bool(failed)
    assert (result["steps"], result["status"]) == (first, "overrun")
    assert [step for step, _, _ in result["curve"]] == ([first] if first else [])


def test_the_clock_of_a_trial_runs_while_steps_are_under_way(monkeypatch):
    """Saves and compilation at a boundary do not count; a spent budget ends the run."""
    now, stopped = [0.0], []
    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    watch, run = Watch(Monitor("train/loss", "min"), None, 5.0, False), SimpleNamespace(step=0, stop=stopped.append)

    def chunk(*events):
        for event, seconds in events:
            now[0] += seconds
            watch.on_chunk_start(run) if event == "start" else watch.on_chunk_end(run, {})

    watch.on_fit_start(run)
    chunk(("start", 10.0), ("start", 2.0), ("end", 1.0))
    assert watch.mark == (0, 3.0), "one is still under way"
    chunk(("end", 0.5))
    now[0] += 100.0
    chunk(("start", 0.0), ("end", 1.4))
    assert watch.mark == (0, pytest.approx(4.9)) and not stopped
    chunk(("start", 50.0), ("end", 0.2))
    assert watch.mark == (0, pytest.approx(5.1)) and stopped == ["the budget of 5 s is spent"]
