"""A run's directory, its lock, its JSON files, and what callbacks may ask for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxtrain.callbacks.base import Callback
from jaxtrain.callbacks.dispatch import Callbacks
from jaxtrain.callbacks.recorder import Recorder
from jaxtrain.callbacks.run import Requests, Run
from jaxtrain.training.result import Result


@pytest.fixture
def run(tmp_path):
    return Run(
        own_module=None, callbacks=Callbacks([]), recorder=Recorder(10), config={}, run_dir=tmp_path, max_steps=9,
        epoch_length=None, batch_size=4, live=SimpleNamespace(params=lambda: {"w": 1}),
    )  # fmt: skip


@pytest.mark.parametrize(
    "status,saved,code",
    [("finished", True, 0), ("stopped", None, 0), ("interrupted", True, 130), ("terminated", True, 143),
     ("finished", False, 1), ("terminated", False, 1)],
)  # fmt: skip
def test_exit_codes(status, saved, code):
    assert Result(status, 3, saved=saved).exit_code == code


@pytest.mark.parametrize("reason, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 138)])
def test_a_run_that_a_signal_ended_has_the_exit_code_of_that_signal(reason, code):
    status = "interrupted" if reason == "SIGINT" else "terminated"
    assert Result(status, 3, reason, saved=True).exit_code == code
    assert Result(status, 3, reason, saved=False).exit_code == 1


def test_a_result_is_told_in_a_line():
    metrics = {"grad_norm": 1.0, "train/loss": 0.123456, "val/loss": 2.0}
    result = Result("stopped", 30, "enough", metrics, history=[metrics] * 99, report={"a": "b" * 9999})
    assert repr(result) == "<Result stopped at step 30 (enough), train/loss=0.1235, val/loss=2>"
    assert repr(Result("finished", 3, run_dir=Path("runs/a"))) == "<Result finished at step 3, in runs/a>"


def test_requests(run):
    assert not run.requests.any() and run.params() == {"w": 1}
    run.stop("first")
    run.stop("second")
    assert run.requests.stop == "first", "the first reason counts"
    run.save()
    assert run.requests.save
    run.validate()
    run.set_task(lag=3)
    run.set_task(digits=2)
    assert run.requests == Requests(save=True, validate=True, stop="first", task={"lag": 3, "digits": 2})
    assert Requests(**json.loads(json.dumps(vars(run.requests)))) == run.requests, "they survive a checkpoint"


def test_log_and_where_it_is_refused(run):
    run.log({"x": 1})
    assert run.metrics == {"x": 1.0} and run.recorder.logged == {"x": 1.0}
    with run.closed(), pytest.raises(RuntimeError, match=r"run.log\(\['x'\]\) in on_checkpoint or on_fit_end"):
        run.log({"x": 2})
    run.log({"x": 3})
    assert run.metrics == {"x": 3.0}


def test_a_figure_reaches_those_who_listen(run):
    got = []

    class Shows(Callback):
        def on_figure(self, run, tag, figure):
            got.append((run.step, tag, figure))

    run.callbacks = Callbacks([Shows()])
    run.figure("recall", "a figure")
    assert got == [(0, "recall", "a figure")]


def test_callbacks_that_are_none():
    with pytest.raises(TypeError, match="must be jaxtrain.Callback objects, got 3"):
        Callbacks([3])
    with pytest.raises(ValueError, match=r"Odd.rank is 'first'; expected one of \('produce', 'decide'"):
        Callbacks([type("Odd", (Callback,), {"rank": "first"})()])


def test_keys_of_callbacks_count_their_kind():
    class A(Callback):
        rank = "record"

    class B(Callback):
        pass

    assert list(Callbacks([A(), B(), A()]).keys()) == ["B.0", "A.0", "A.1"]
