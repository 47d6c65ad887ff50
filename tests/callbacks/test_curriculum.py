"""Curriculum: when it moves on, that a resumed run moves on at the same steps, and how often it compiles."""

import json
import logging
import math
import re

import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.callbacks import Curriculum
from jaxtrain.datasets.sequences import fitting
from tests.kit.tiers import longer
from tests.small import At, Linear, Lines, count_compiles, kill, leaves, line, rows, same

LAGS = [{"time_lag": lag} for lag in (1, 2, 3)]


def train(callback, run, values, first=1, chunk=1):
    """Give a training metric step by step, with a boundary after every chunk; the steps at which a stage began."""
    began = []
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        run.step = first - 1 + start + len(part)
        before = callback.stage
        callback.on_chunk_end(run, {"accuracy": np.array(part), "bits": np.array(part)})
        began += [run.step] * (callback.stage - before)
        if run.requests.task is not None:
            run.task.update(run.requests.task)
            run.requests.task = None
    return began


@pytest.fixture
def started(make_run):
    def start(callback, **task):
        run = make_run(callback)
        run.task = task or {"time_lag": 1}
        callback.reset()
        callback.on_fit_start(run)
        return run

    return start


def test_the_mean_over_the_last_values_of_a_stage(started):
    callback = Curriculum(LAGS, "train/accuracy", 0.9, over=3, then="stay")
    run = started(callback)
    # A stage needs three values of its own: at step 6 the last three are good, but two of them are the stage's before.
    assert train(callback, run, [1.0, 0.5, 1.0, 1.0, 0.7, 1.0, 1.0, 1.0, 0.9, 0.85, 0.94, 1.0]) == [5, 8]
    assert [step for step, _ in callback.advances] == [5, 8, 12]
    assert [score for _, score in callback.advances] == pytest.approx([0.9, 1.0, 0.93])
    assert run.task == {"time_lag": 3} and run.requests.stop is None


def test_what_is_delivered_of_the_stage_before_does_not_count(started):
    """Metrics arrive a chunk late: between the decision and the edge they are still of the old task."""
    callback = Curriculum(LAGS, "train/accuracy", 0.9, then="stay")
    run = started(callback)
    run.step = 3
    callback.on_chunk_end(run, {"accuracy": np.array([0.1, 0.95, 0.99])})
    assert callback.stage == 1 and callback.advances == [(2, 0.95)] and run.requests.task == {"time_lag": 2}
    run.step = 6
    callback.on_chunk_end(run, {"accuracy": np.array([0.99, 0.99, 0.99])})
    assert callback.stage == 1


def test_a_running_mean_as_benzing_et_al_have_it(started):
    callback = Curriculum(LAGS, "train/bits", 0.15, ema=0.9, restart=0.3, then="stay")
    run = started(callback)
    values = [0.1] * 40
    mean, expected = 0.3, []
    for step, value in enumerate(values, 1):
        mean = 0.9 * mean + 0.1 * value
        if mean <= 0.15 and len(expected) < 3:
            expected.append(step)
            mean = 0.3
    assert len(expected) >= 2
    train(callback, run, values)
    assert [step for step, _ in callback.advances] == expected


def test_a_step_that_weighs_nothing_does_not_count(started):
    callback = Curriculum(LAGS, "train/accuracy", 0.9, over=2, then="stay")
    run = started(callback)
    assert train(callback, run, [1.0, math.nan, 1.0]) == [3]


def test_validation(started):
    callback = Curriculum(LAGS, "val/accuracy", 0.9)
    run = started(callback)
    for number, value in enumerate([0.5, 0.9, 0.8, 0.95, 0.99], 1):
        run.step = 10 * number
        callback.on_validation_end(run, {"val/accuracy": value})
        run.requests.task = None
    assert run.metrics["task/passed"] == 3
    assert callback.advances == [(20, 0.9), (40, 0.95), (50, 0.99)]
    assert run.requests.stop == "val/accuracy is 0.99 at the curriculum's last stage, time_lag=3"
    run = started(Curriculum(LAGS, "val/loss", 0.1))
    with pytest.raises(ValueError, match="monitors 'val/loss', which validation does not give"):
        run.callbacks.all[0].on_validation_end(run, {"val/accuracy": 1.0})
    with pytest.raises(ValueError, match="monitors 'train/speed', but training gives"):
        Curriculum(LAGS, "train/speed", 0.1, mode="min").on_chunk_end(run, {"accuracy": np.zeros(1)})


def test_the_record_shows_the_task_of_its_steps(started):
    callback = Curriculum([{"time_lag": 1, "kind": "a"}, {"time_lag": 2, "kind": "b"}], "train/accuracy", 0.9)
    run = started(callback, time_lag=1, kind="a")
    train(callback, run, [1.0])
    assert run.metrics == {"task/time_lag": 1.0, "task/passed": 1.0}
    train(callback, run, [0.0], first=2)
    assert run.metrics == {"task/time_lag": 2.0, "task/passed": 1.0}
    train(callback, run, [1.0], first=3)
    assert run.metrics == {"task/time_lag": 2.0, "task/passed": 2.0}, "the last stage, too"


@pytest.mark.parametrize("cut", range(1, 8))
@pytest.mark.parametrize("options", [{"over": 2}, {"ema": 0.5, "restart": 0.5}], ids=["over", "ema"])
def test_a_restored_state_decides_as_if_never_interrupted(started, cut, options):
    values = [0.1 + 0.2, 0.95, 0.99, 1.0, 0.7, 1.0, 1.0, 0.97, 0.96]
    make = lambda: Curriculum(LAGS, "train/accuracy", 0.9, then="stay", **options)  # noqa: E731
    whole = make()
    train(whole, started(whole), values)
    assert len(whole.advances) >= 2
    first, second = make(), make()
    run = started(first)
    train(first, run, values[:cut])
    task, state = dict(run.task), json.loads(json.dumps(first.state(), allow_nan=False))
    run = started(second)
    second.load_state(state)
    run.task = task
    second.on_restore(run)
    assert second.state() == first.state()
    train(second, run, values[cut:], first=cut + 1)
    assert second.state() == whole.state()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([], "val/loss", 1), "expected dicts that all set the same parameters"),
        (([{"a": 1}, {"b": 1}], "val/loss", 1), "expected dicts that all set the same parameters"),
        ((LAGS, "loss", 1), "expected a tag such as 'val/accuracy' or 'train/loss'"),
        ((LAGS, "val/loss", math.nan), "threshold is nan"),
        ((LAGS, "val/loss", 1, {"mode": "down"}), "mode is 'down'"),
        ((LAGS, "val/loss", 1, {"over": 0}), "over is 0"),
        ((LAGS, "train/loss", 1, {"ema": 1.0, "restart": 1}), "ema is 1.0"),
        ((LAGS, "train/loss", 1, {"ema": 0.9}), "a moving average needs both"),
        ((LAGS, "val/loss", 1, {"ema": 0.9, "restart": 1}), "ema is for a metric of training"),
        ((LAGS, "val/loss", 1, {"then": "on"}), "then is 'on'"),
    ],
)
def test_bad_arguments(args, message):
    *args, last = args
    options, args = (last, args) if isinstance(last, dict) else ({}, [*args, last])
    with pytest.raises(ValueError, match=f"^Curriculum: .*{message}"):
        Curriculum(*args, **options)


def test_data_made_with_another_task_and_no_validation_data():
    curriculum = lambda monitor: jt.Fit("bptt", max_steps=2, callbacks=[Curriculum(LAGS, monitor, 0.5)])  # noqa: E731
    with pytest.raises(
        ValueError, match="the task of the data has {'time_lag': None}; expected {'time_lag': 1}, its fir"
    ):
        curriculum("train/loss").run(Linear(), Noise())
    with pytest.raises(ValueError, match="monitors 'val/loss', but the data has no validation data"):
        curriculum("val/loss").run(Linear(), jt.DataModule(Lines()))


# ------------------------------------------------------------------------------------------------- whole runs


class Noise(jt.DataModule):
    """Batches for ``Linear`` whose inputs grow with the task, padded to 2, 4, or 8 time steps."""

    def __init__(self):
        super().__init__()
        self.task = {"time": 1}

    def train_data(self):
        return Pieces(self, 0)

    def val_data(self):
        return Pieces(self, 100)


class Pieces:
    def __init__(self, module, first):
        self.module, self.first = module, first

    def batch(self, step):
        time = self.module.task["time"]
        x, y = line(self.first + step, time=fitting(time, (2, 4, 8), "lines: time steps"))
        weights = (np.arange(len(x)) < time).astype(np.float32)
        return jt.Phases(warmup=None, inputs=time * x, targets=y, weights=weights)

    def __len__(self):
        return 3


def curriculum(run_dir, *more, monitor, threshold, stages=(1, 2, 5), max_steps=40, **options):
    callback = Curriculum([{"time": time} for time in stages], monitor, threshold, then="stay", **options)
    fit = jt.Fit(
        "bptt", max_steps=max_steps, chunk=5, validate_every=4, log_every=2, run_dir=run_dir,
        callbacks=[callback, jt.loggers.JSONL(), jt.Checkpoint(every=5, monitor=None, keep_last=99), *more],
    )  # fmt: skip
    module = Linear()
    return fit.run(module, Noise(), resume="last"), leaves(module), callback.advances


@pytest.mark.full
@pytest.mark.parametrize("monitor", ["train/loss", *longer("val/loss")])
def test_killed_and_resumed_at_every_checkpoint_it_is_the_same_run(tmp_path, monitor):
    # Noise to be fitted: its loss is about the variance, 1, and what is averaged falls under the threshold by chance.
    options = {"monitor": monitor, "threshold": 1.0 if monitor == "train/loss" else 1.2}
    options |= {"over": 3} if monitor == "train/loss" else {}
    whole, weights, advances = curriculum(tmp_path / "whole", **options)
    assert len(advances) >= 2 and 3 < advances[1][0] < 35, advances
    record = rows(tmp_path / "whole")
    assert {row["task/time"] for row in record if "task/time" in row} == {1.0, 2.0, 5.0}
    for step in range(5, 40, 10):
        path = tmp_path / f"killed{step}"
        curriculum(path, At("on_checkpoint", step, kill), **options)
        resumed, again, found = curriculum(path, **options)
        assert resumed.digest == whole.digest and same(again, weights) and rows(path) == record
        assert found == advances


@pytest.mark.long
def test_twenty_stages_compile_a_program_a_length(no_compilation_cache, caplog):
    caplog.set_level(logging.INFO)

    def run(stages):
        callback = Curriculum([{"time": time} for time in stages], "train/loss", 1e9)
        seen, stop = count_compiles()
        try:
            result = jt.Fit("bptt", max_steps=99, chunk=1, callbacks=[callback]).run(Linear(), Noise())
        finally:
            stop()
        assert callback.passed and result.status == "stopped"
        return len(seen)

    run([1])  # what is compiled once a process
    few, many = run([1, 3, 5]), run([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4, 5, 6, 7, 7, 8, 8])
    assert 3 <= many <= few, "three lengths either way"
    assert caplog.text.count("from step") == 2 + 19 and len(re.findall(r"on: compiled in", caplog.text)) == 2 + 2


def test_another_curriculum_is_refused_and_a_longer_one_goes_on():
    state = Curriculum(LAGS, "train/loss", 1.0).state()
    with pytest.raises(ValueError, match="^Curriculum: the run was saved in another curriculum"):
        Curriculum(LAGS, "train/loss", 0.5).load_state(state)
    with pytest.raises(ValueError, match="only stages at its end may be added"):
        Curriculum(LAGS[1:], "train/loss", 1.0).load_state(state)
    longer = Curriculum([*LAGS, {"time_lag": 9}], "train/loss", 1.0)
    longer.load_state(state)
    assert longer.stage == 0


def test_a_curriculum_that_was_passed_goes_on_with_the_stages_that_are_added(tmp_path):
    """Each of them is trained, once; what was passed is not passed again."""
    options = {"monitor": "train/loss", "threshold": 1e9}
    _, _, advances = curriculum(tmp_path, stages=(1, 2), **options)
    assert len(advances) == 2
    record = rows(tmp_path)
    assert record[-1]["task/passed"] == 2 and record[-1]["task/time"] == 2
    _, _, longer = curriculum(tmp_path, stages=(1, 2, 5, 3), max_steps=60, **options)
    assert longer[:2] == advances and len(longer) == 4
    times = [row["task/time"] for row in rows(tmp_path)[len(record) :] if "task/time" in row]
    # The task changes at the first edge: until then the chunk is of the old one.
    assert list(dict.fromkeys(times)) == [2, 5, 3]


def test_stages_of_tuples_are_those_of_a_checkpoint(started):
    run = started(Curriculum([{"size": (1, 2)}, {"size": (3, 4)}], "train/loss", 1.0), size=(1, 2))
    callback = Curriculum([{"size": (1, 2)}, {"size": (3, 4)}], "train/loss", 1.0)
    callback.load_state(json.loads(json.dumps(callback.state())))
    run.restored_step, run.task = 4, {"size": [1, 2]}
    callback.on_restore(run)
