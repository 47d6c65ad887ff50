import json
import logging
import math

import numpy as np

from jaxtrain.callbacks import LearningRateMonitor


def row(callback, run, step):
    made = {"step": step}
    callback.on_log(run, made)
    return made


def test_a_row_gets_the_rate_of_its_own_step_wherever_it_lies_in_a_chunk(make_run):
    callback = LearningRateMonitor()
    run = make_run(callback)
    rates = np.arange(1, 13, dtype=np.float32) / 8  # step s used rate s / 8
    seen = {}
    for end, steps in ((5, (2, 4)), (10, ()), (12, (8, 12))):  # chunks of 5, 5 and 2; rows may come a chunk late
        run.step = end
        first = 5 * ((end - 1) // 5)
        callback.on_chunk_end(run, {"loss": rates[first:end], "lr": rates[first:end]})
        seen.update({step: row(callback, run, step)["lr"] for step in steps})
    assert seen == {step: step / 8 for step in (2, 4, 8, 12)}


def test_every_optimizer_has_its_own_tag(make_run):
    callback = LearningRateMonitor()
    run = make_run(callback)
    run.step = 1
    callback.on_chunk_end(run, {"lr/readout": np.array([0.5]), "lr/rnn": np.array([0.25])})
    assert row(callback, run, 1) == {"step": 1, "lr/readout": 0.5, "lr/rnn": 0.25}


def test_the_row_of_a_skipped_step_has_no_rate(make_run):
    first, run = LearningRateMonitor(), make_run()
    run.step = 3
    first.on_chunk_end(run, {"lr": np.array([0.5, math.nan, 0.25])})
    text = json.dumps(first.state(), allow_nan=False)
    again = LearningRateMonitor()
    again.load_state(json.loads(text))
    assert json.dumps(again.state()) == text
    for callback in (first, again):
        assert [row(callback, run, step).get("lr") for step in (1, 2, 3)] == [0.5, None, 0.25]
        assert "lr" not in row(callback, run, 2)


def test_another_run_starts_without_the_rates_of_the_one_before(make_run):
    callback, run = LearningRateMonitor(), make_run()
    run.step = 5
    callback.on_chunk_end(run, {"lr": np.full(5, 0.5)})
    callback.reset()
    assert row(callback, run, 3) == {"step": 3}


def test_no_rate_is_said_once(make_run, caplog):
    callback = LearningRateMonitor()
    run = make_run(callback)
    with caplog.at_level(logging.INFO, logger="jaxtrain"):
        for run.step in (1, 2):
            callback.on_chunk_end(run, {"loss": np.zeros(1)})
            assert row(callback, run, run.step) == {"step": run.step}
    assert len(caplog.records) == 1
