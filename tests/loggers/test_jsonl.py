import json
import logging
import math

import numpy as np
import pytest

from jaxtrain.loggers import JSONL, read_log


def write(run, *steps):
    for step in steps:
        run.step = step
        run.callbacks("on_log", run, {"step": step, "train/loss": 1 / 3 + step})


def test_a_row_is_in_the_file_at_once_with_exact_numbers(make_run, tmp_path):
    logger = JSONL()
    run = make_run(logger)
    logger.on_fit_start(run)
    row = {"step": 10, "train/loss": 0.1 + 0.2, "lr": np.float32(0.1), "n": np.int64(3), "note": "x"}
    logger.on_log(run, row)
    (read,) = read_log(tmp_path / "metrics.jsonl")
    assert read == {"step": 10, "train/loss": 0.1 + 0.2, "lr": float(np.float32(0.1)), "n": 3, "note": "x"}


def test_a_number_that_is_not_finite_is_null_and_named(make_run, tmp_path):
    logger = JSONL()
    run = make_run(logger)
    logger.on_fit_start(run)
    logger.on_log(run, {"step": 1, "a": math.nan, "b": 2.0, "c": -math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": 2.0, "c": None, "nonfinite": ["a", "c"]}


def test_a_fresh_start_cuts_an_old_file_to_nothing_and_says_so(make_run, tmp_path, caplog):
    old = make_run(first := JSONL())
    first.on_fit_start(old)
    write(old, 10, 20)
    with caplog.at_level(logging.INFO, logger="jaxtrain"):
        run = make_run(second := JSONL())
        second.on_fit_start(run)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert "later log entries removed: 2" in caplog.text


def test_a_resume_keeps_the_very_bytes_up_to_its_step_and_goes_on(make_run, tmp_path):
    path = tmp_path / "metrics.jsonl"
    run = make_run(first := JSONL())
    first.on_fit_start(run)
    write(run, 10)
    first.on_log(run, {"step": 20, "train/loss": math.inf, "é": 1e-300})
    expected = path.read_bytes()
    write(run, 30, 40)
    with open(path, "ab") as file:
        file.write(b'{"step": 50, "train/lo')  # torn: the process died here
    again = make_run(second := JSONL(), restored=20)
    second.on_fit_start(again)
    assert len(read_log(path)) == 4, "cut before the step to restore to is known"
    second.on_restore(again)
    assert path.read_bytes() == expected
    write(again, 30)
    second.flush()
    assert [row["step"] for row in read_log(path)] == [10, 20, 30]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"], "a temporary file is left"


def test_a_complete_last_row_without_its_line_end_is_kept_apart_from_the_next(make_run, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "a": 1.5}')
    run = make_run(logger := JSONL(), restored=10)
    logger.on_fit_start(run)
    logger.on_restore(run)
    write(run, 20)
    assert [row["step"] for row in read_log(path)] == [10, 20]


def test_a_damaged_line_in_the_middle_is_named(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n\x00\x00garbage\n[1]\n{"step": 30}\n{"st')
    with caplog.at_level(logging.WARNING, logger="jaxtrain"):
        assert read_log(path) == [{"step": 10}, {"step": 30}]
    assert [record.getMessage().split(": ")[1][:6] for record in caplog.records] == ["line 2", "line 3"]


def test_a_fork_into_a_new_directory_starts_an_empty_file(make_run, tmp_path):
    run = make_run(logger := JSONL(), restored=500)
    logger.on_fit_start(run)
    logger.on_restore(run)
    write(run, 510)
    logger.on_fit_end(run, "finished")
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [510]


def test_no_run_directory_is_one_clear_line(make_run):
    with pytest.raises(ValueError, match=r"JSONL needs a run directory: Fit\(run_dir=...\)"):
        JSONL().on_fit_start(make_run(run_dir=None))


def test_a_row_after_the_end_is_refused(make_run):
    run = make_run(logger := JSONL())
    run.callbacks("on_fit_start", run)
    run.callbacks("on_fit_end", run, "finished")
    logger.flush()
    with pytest.raises(RuntimeError, match="step 10 after on_fit_end"):
        write(run, 10)
