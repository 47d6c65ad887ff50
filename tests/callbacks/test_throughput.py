import pytest

import jaxtrain.callbacks.throughput as module
from jaxtrain.callbacks import Throughput


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def row(callback, run):
    made = {"step": run.step}
    callback.on_log(run, made)
    return made


def chunk(callback, run, step):
    run.step = step
    callback.on_chunk_end(run, {})


def test_speed_is_that_since_the_row_before(make_run, clock):
    callback = Throughput()
    run = make_run(callback)
    callback.on_fit_start(run)
    for clock[0], step in ((101.0, 10), (102.0, 20)):
        chunk(callback, run, step)
    first = row(callback, run)
    assert first["throughput/steps_per_s"] == 10 and first["throughput/sequences_per_s"] == 40
    assert first["time/step_ms"] == 100
    clock[0] = 102.5
    chunk(callback, run, 30)
    assert row(callback, run)["throughput/steps_per_s"] == 20
    assert 1 < first["memory/peak_rss_mb"] < 1e6


def test_validation_does_not_count(make_run, clock):
    callback = Throughput()
    run = make_run(callback)
    callback.on_fit_start(run)
    clock[0] += 1
    chunk(callback, run, 10)
    callback.on_validation_start(run)
    clock[0] += 50
    callback.on_validation_end(run, {})
    row(callback, run)
    clock[0] += 1
    chunk(callback, run, 20)
    assert row(callback, run)["throughput/steps_per_s"] == 10


def test_rows_of_one_chunk_share_their_speed(make_run, clock):
    callback = Throughput()
    run = make_run(callback)
    callback.on_fit_start(run)
    clock[0] += 2
    chunk(callback, run, 10)
    assert row(callback, run)["time/step_ms"] == row(callback, run)["time/step_ms"] == 200


def test_a_resumed_run_counts_from_the_restored_step(make_run, clock):
    callback = Throughput()
    run = make_run(callback)
    callback.on_fit_start(run)
    run.step = 1000
    callback.on_restore(run)
    clock[0] += 1
    chunk(callback, run, 1010)
    assert row(callback, run)["throughput/steps_per_s"] == 10
