"""Rows: means since the row before, the same however steps were grouped, and in a checkpoint on the way."""

import json

import numpy as np
import pytest

from jaxtrain.callbacks.recorder import Recorder, tag

LOSS = np.random.default_rng(0).normal(size=20).astype(np.float32)
WEIGHT = np.arange(1, 21, dtype=np.float32)


def iterator(recorder, first, n):
    part = slice(first, first + n)
    ones = np.ones(n, np.float32)
    metrics = {"loss": LOSS[part] * WEIGHT[part], "lr": ones, "grad_norm": 2 * ones}
    recorder.add(first, metrics, {"loss": WEIGHT[part], "lr": ones, "grad_norm": ones})


def test_names():
    assert [tag(name) for name in ("loss", "accuracy", "grad_norm", "param_norm")] == [
        "train/loss",
        "train/accuracy",
        "grad_norm",
        "param_norm",
    ]


def test_a_row_is_the_weighted_mean_since_the_row_before():
    recorder = Recorder(8)
    iterator(recorder, 0, 20)
    rows = recorder.take()
    assert [row["step"] for row in rows] == [8, 16] and recorder.take() == []
    assert set(rows[0]) == {"step", "train/loss", "grad_norm"}, "a rate is no mean over steps"
    assert rows[1]["train/loss"] == pytest.approx(np.average(LOSS[8:16], weights=WEIGHT[8:16]), rel=1e-6)
    recorder.force(20, {"val/loss": 0.5})
    assert recorder.take()[0]["train/loss"] == pytest.approx(np.average(LOSS[16:], weights=WEIGHT[16:]), rel=1e-6)


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 7, 6], [3, 5, 12]])
def test_chunks_make_no_difference(chunks):
    whole, parts = Recorder(4), Recorder(4)
    iterator(whole, 0, 20)
    first = 0
    for n in chunks:
        iterator(parts, first, n)
        first += n
        parts.load_state(json.loads(json.dumps(parts.state())))
    assert parts.take() == whole.take()


def test_force_joins_a_row_that_is_there():
    recorder = Recorder(5)
    iterator(recorder, 0, 5)
    recorder.force(5, {"val/loss": 1})
    recorder.force(5, {})
    rows = recorder.take()
    assert len(rows) == 1 and rows[0]["val/loss"] == 1.0 and "train/loss" in rows[0]


def test_what_is_logged_joins_the_row_of_its_step_or_the_next():
    recorder = Recorder(5)
    iterator(recorder, 0, 3)
    recorder.log(3, {"mine": 1})
    recorder.log(3, {"mine": 2, "other": 3})
    iterator(recorder, 3, 4)
    recorder.log(7, {"late": 4})
    rows = recorder.take()
    assert {name: rows[0].get(name) for name in ("mine", "other", "late")} == {"mine": 2.0, "other": 3.0, "late": None}
    iterator(recorder, 7, 3)
    recorder.log(10, {"now": 5})
    assert {"late": 4.0, "now": 5.0}.items() <= recorder.take()[0].items()


def test_steps_that_weigh_nothing_make_no_mean():
    recorder = Recorder(2)
    zeros = np.zeros(2, np.float32)
    recorder.add(0, {"loss": zeros, "param_norm": zeros}, {"loss": zeros, "param_norm": np.ones(2, np.float32)})
    assert recorder.take() == [{"step": 2, "param_norm": 0.0}]


def test_what_was_measured_has_a_row_of_its_own_and_takes_no_means_away():
    recorder, plain = Recorder(5), Recorder(5)
    for each in (recorder, plain):
        iterator(each, 0, 3)
    recorder.measured(3, {"probed": 1.0})
    for each in (recorder, plain):
        each.load_state(json.loads(json.dumps(each.state())))
        iterator(each, 3, 4)
    recorder.measured(7, {"probed": 2.0})
    for each in (recorder, plain):
        each.force(7, {"val/loss": 0.5})
    own, *rows = recorder.take()
    assert own == {"step": 3, "probed": 1.0}
    five, seven = plain.take()
    assert rows == [five, {**seven, "probed": 2.0}]
