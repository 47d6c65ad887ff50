import io
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import jaxtrain.callbacks.progress as module
from jaxtrain.callbacks import ProgressBar


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def chunk(run, step, loss=0.5):
    run.step = step
    run.callbacks("on_chunk_end", run, {"loss": np.full(2, loss)})


@pytest.fixture
def stderr(monkeypatch):
    """Called in the test itself, because pytest puts its own stream back after the fixtures."""

    def replace(*, terminal):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_bar_on_a_terminal_starts_at_the_restored_step_and_ends_at_the_last(make_run, stderr):
    terminal = stderr(terminal=True)
    run = make_run(ProgressBar(), restored=40)
    run.callbacks("on_fit_start", run)
    assert "40/100" in terminal.getvalue()
    chunk(run, 60)
    run.callbacks("on_validation_end", run, {"val/loss": 0.25, "val/accuracy": 0.875})
    chunk(run, 100, loss=0.125)
    run.callbacks("on_fit_end", run, "finished")
    last = terminal.getvalue().split("\r")[-1]
    assert "100/100" in last and "loss 0.125, val/loss 0.25, val/accuracy 0.875" in last and last.endswith("\n")


def test_a_bar_without_max_steps_counts_up(make_run, stderr):
    terminal = stderr(terminal=True)
    run = make_run(ProgressBar(), max_steps=None)
    run.callbacks("on_fit_start", run)
    chunk(run, 7)
    run.callbacks("on_fit_end", run, "stopped")
    assert "7step" in terminal.getvalue().split("\r")[-1]


def test_an_exception_closes_the_bar_before_its_message_is_printed(make_run, stderr):
    terminal = stderr(terminal=True)
    run = make_run(ProgressBar())
    run.callbacks("on_fit_start", run)
    run.callbacks("on_exception", run, RuntimeError())
    closed = terminal.getvalue()
    assert closed.endswith("\n")
    run.callbacks("on_fit_end", run, "stopped")
    assert terminal.getvalue() == closed


def test_lines_without_a_terminal_come_every_so_often_and_at_the_end(make_run, stderr, clock, caplog):
    stderr(terminal=False)
    run = make_run(ProgressBar(every_seconds=30), restored=20)
    with caplog.at_level(logging.INFO, logger="jaxtrain"):
        run.callbacks("on_fit_start", run)
        for clock[0], step in ((10, 30), (30, 40), (50, 50)):
            chunk(run, step)
        run.callbacks("on_validation_end", run, {"val/loss": 0.25})
        clock[0] = 60
        chunk(run, 100, loss=0.1)
        run.callbacks("on_fit_end", run, "finished")
    assert [record.getMessage() for record in caplog.records] == [
        "step 40/100, 0.6667 steps/s, loss 0.5, ETA 0:01:30",
        "step 100/100, 1.333 steps/s, loss 0.1, val/loss 0.25, ETA 0:00:00",
        "step 100/100, 1.333 steps/s, loss 0.1, val/loss 0.25, after 0:01:00, finished",
    ]


def test_a_run_that_ends_at_once_has_its_last_line(make_run, stderr, clock, caplog):
    stderr(terminal=False)
    run = make_run(ProgressBar(), max_steps=None)
    with caplog.at_level(logging.INFO, logger="jaxtrain"):
        run.callbacks("on_fit_start", run)
        run.callbacks("on_fit_end", run, "interrupted")
    assert [record.getMessage() for record in caplog.records] == ["step 0, 0 steps/s, after 0:00:00, interrupted"]


def test_a_bad_period_is_one_clear_line():
    with pytest.raises(ValueError, match="every_seconds is 0"):
        ProgressBar(every_seconds=0)


def test_a_notebook_without_widgets_has_a_bar_of_text_and_no_warning(make_run, stderr, monkeypatch, caplog):
    page = stderr(terminal=False)
    shell = SimpleNamespace(kernel="a kernel of IPython")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    run = make_run(ProgressBar(every_seconds=None))
    run.callbacks("on_fit_start", run)
    run.step = 50
    metrics = {"grad_norm": 2.0, "lr/rest": 0.1, "accuracy": 0.75, "loss": 0.5, "seeds/loss": 0.5}
    run.callbacks("on_chunk_end", run, {name: np.full(2, value) for name, value in metrics.items()})
    run.callbacks("on_validation_end", run, {"val/loss": 0.25})
    run.callbacks("on_fit_end", run, "finished")
    last = page.getvalue().split("\r")[-1]
    assert "50/100" in last and "loss 0.5, accuracy 0.75, val/loss 0.25]" in last
    assert "grad_norm" not in last and "lr" not in last and not caplog.records


def test_a_shell_of_ipython_is_no_notebook(make_run, stderr, monkeypatch):
    pipe = stderr(terminal=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    run = make_run(ProgressBar(every_seconds=None))
    run.callbacks("on_fit_start", run)
    chunk(run, 50)
    assert not pipe.getvalue()
