import json
import math

import braintools
import pytest

import jaxtrain as jt
import jaxtrain.callbacks.checkpoint as module
from jaxtrain.callbacks import Checkpoint
from jaxtrain.period import Period
from tests.small import Linear, lines, steps_of


def validate(callback, run, step, score, tag="val/loss"):
    """Whether this validation asked for a save."""
    run.step, run.requests.save, run.score = step, False, None
    callback.on_validation_end(run, {tag: score})
    return run.requests.save


def chunk(callback, run, step):
    run.step, run.requests.save = step, False
    callback.on_chunk_end(run, {})
    return run.requests.save


def test_every_counts_steps_and_asks_for_edges_there(make_run):
    callback = Checkpoint(every=20)
    run = make_run(callback)
    assert [step for step in range(10, 70, 10) if chunk(callback, run, step)] == [20, 40, 60]
    assert list(callback.boundaries()) == [Period(20, "step")]
    assert run.score is None, "a save without a validation carries no score"


def test_every_counts_epochs(make_run):
    callback = Checkpoint(every="1ep")
    run = make_run(callback, epoch_length=30)
    assert [step for step in range(10, 70, 10) if chunk(callback, run, step)] == [30, 60]


def test_a_time_period_runs_from_the_last_save(make_run, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    callback = Checkpoint(every="10min")
    run = make_run(callback)
    callback.on_fit_start(run)
    assert list(callback.boundaries()) == []
    saves = []
    for minute in (5, 11, 12, 20, 22):
        now[0] = 1000.0 + 60 * minute
        saves.append(chunk(callback, run, minute))
        if minute == 12:  # the edge at which the request of minute 11 took effect
            callback.on_checkpoint(run, run.run_dir)
    assert saves == [False, True, True, False, True]


def test_entering_the_best_k_saves_with_its_score(make_run):
    callback = Checkpoint(keep_best=2)
    run = make_run(callback)
    scores = [(10, 0.5), (20, 0.7), (30, 0.6), (40, 0.65), (50, 0.6), (60, 0.1)]
    assert [step for step, score in scores if validate(callback, run, step, score)] == [10, 20, 30, 60]
    assert callback.scores == [[0.1, 60], [0.5, 10]]
    assert not validate(callback, run, 70, 9.0)
    assert run.score == 9.0, "a save that is due here for another reason carries the score too"


def test_nan_enters_only_while_there_is_room(make_run):
    callback = Checkpoint(keep_best=2)
    run = make_run(callback)
    scores = [(10, math.nan), (20, math.inf), (30, math.nan), (40, 0.5), (50, 0.4), (60, math.nan)]
    assert [step for step, score in scores if validate(callback, run, step, score)] == [10, 20, 40, 50]
    assert callback.scores == [[0.4, 50], [0.5, 40]]


@pytest.mark.parametrize(
    ("tag", "mode", "expected"),
    [("val/accuracy", None, "max"), ("val/acc", None, "max"), ("val/r2", None, "max"), ("val/loss", None, "min"),
     ("val/accuracy", "min", "min"), ("val/loss", "max", "max")],
)  # fmt: skip
def test_the_mode_follows_the_name_unless_given(make_run, tag, mode, expected):
    callback = Checkpoint(monitor=tag, mode=mode)
    run = make_run(callback)
    validate(callback, run, 10, 0.5, tag)
    assert callback.mode == expected
    assert validate(callback, run, 20, 0.6, tag) == (expected == "max")


def test_a_validation_that_is_run_again_at_its_step_counts_once(make_run):
    callback = Checkpoint(keep_best=2)
    run = make_run(callback)
    validate(callback, run, 10, 0.5)
    assert validate(callback, run, 10, 0.5)
    assert callback.scores == [[0.5, 10]]


def test_state_is_exact_through_strict_json(make_run):
    callback = Checkpoint(keep_best=3)
    run = make_run(callback)
    for step, score in ((10, 0.1 + 0.2), (20, math.nan), (30, math.inf)):
        validate(callback, run, step, score)
    text = json.dumps(callback.state(), allow_nan=False)
    again = Checkpoint(keep_best=3)
    again.load_state(json.loads(text))
    assert again.scores[:2] == [[0.1 + 0.2, 10], [math.inf, 30]]
    assert math.isnan(again.scores[2][0]) and again.scores[2][1] == 20
    assert json.dumps(again.state()) == text
    fewer = Checkpoint()
    fewer.load_state(json.loads(text))
    assert fewer.scores == [[0.1 + 0.2, 10]]


def test_another_monitor_starts_anew_and_says_so(make_run, caplog):
    callback = Checkpoint()
    validate(callback, make_run(callback), 10, 0.5)
    again = Checkpoint(monitor="val/accuracy")
    again.load_state(callback.state())
    assert again.scores == []
    assert "Checkpoint monitored val/loss (min) and now val/accuracy (max)" in caplog.text


def test_a_fresh_run_forgets_the_scores_of_the_run_before(make_run):
    callback = Checkpoint()
    run = make_run(callback)
    validate(callback, run, 10, 0.5)
    callback.on_fit_start(make_run(callback, restored=10))
    assert callback.scores == [[0.5, 10]]
    callback.reset()
    assert callback.scores == []


def test_a_fork_drops_its_parents_scores_and_counts_its_own(make_run):
    parent = Checkpoint()
    validate(parent, make_run(parent), 10, 0.5)
    for forked, kept in ((False, [[0.5, 10]]), (True, [])):
        callback = Checkpoint()
        run = make_run(callback, restored=20)
        run.forked = forked
        callback.load_state(parent.state())
        callback.on_restore(run)
        assert callback.scores == kept
    assert validate(callback, run, 30, 0.7) and callback.scores == [[0.7, 30]]


def test_a_monitor_that_was_asked_for_needs_validation_data(make_run):
    run = make_run()
    run.has_validation = False
    Checkpoint().on_fit_start(run)
    Checkpoint(every=5, keep_last=3).on_fit_start(run)
    Checkpoint(monitor=None).on_fit_start(run)
    for asked in (dict(keep_best=2), dict(mode="min"), dict(monitor="val/accuracy")):
        with pytest.raises(
            ValueError, match="Checkpoint monitors 'val/.*', but the data has no validation data: .*None"
        ):
            Checkpoint(**asked).on_fit_start(run)


def test_without_a_monitor_there_are_no_scores(make_run):
    callback = Checkpoint(every=5, monitor=None)
    run = make_run(callback)
    assert not validate(callback, run, 10, 0.5)
    assert run.score is None and callback.state() == {} and callback.mode == "min"


def test_a_missing_monitor_names_the_tags_there_are(make_run):
    callback = Checkpoint(monitor="val/acc")
    with pytest.raises(ValueError, match="Checkpoint monitors 'val/acc', which validation does not give; expected"):
        callback.on_validation_end(make_run(callback), {"val/loss": 1.0, "val/accuracy": 0.5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_best": 0}, "keep_best is 0"),
        ({"keep_best": "val/loss"}, "keep_best is 'val/loss'"),
        ({"monitor": 3}, "monitor is 3"),
        ({"keep_last": 0}, "keep_last is 0"),
        ({"keep_last": True}, "keep_last is True"),
        ({"mode": "least"}, "mode is 'least'"),
        ({"monitor": None, "mode": "min"}, "monitor is None"),
        ({"monitor": None, "keep_best": 2}, "monitor is None"),
        ({"every": "soon"}, r"Checkpoint\(every='soon'\): period: 'soon' is not understood"),
        ({"every": 0}, r"Checkpoint\(every=0\): period: 0 is not positive"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint(**arguments)


def train(run_dir, lr, steps, kept=None, resume="never", data=None, more=()):
    kept = kept or Checkpoint(every=3, keep_last=1)
    fit = jt.Fit(
        "bptt", max_steps=steps, validate_every=3, nonfinite="warn", callbacks=[kept, *more], run_dir=run_dir, chunk=3
    )
    return fit.run(Linear(lambda: braintools.optim.SGD(lr)), data or lines(), resume=resume)


def test_the_best_of_a_fork_is_one_of_its_own(tmp_path):
    parent = train(tmp_path / "run", lr=20.0, steps=9)
    assert parent.best is not None and parent.best["step"] == 3, "it diverges"
    fork = train(tmp_path / "run", lr=20.0, steps=12, resume="best")
    assert fork.run_dir == tmp_path / "run-from-3"
    assert fork.best is not None and fork.best["step"] == 6 and fork.best["score"] > parent.best["score"]
    assert steps_of(fork.run_dir) == [6, 12], "the best is saved"


def test_an_object_that_serves_a_second_run_starts_anew(tmp_path):
    callbacks = [
        Checkpoint(every=3),
        jt.EarlyStopping(patience=2),
        jt.callbacks.LearningRateMonitor(),
    ]
    shared = [train(tmp_path / name, 0.1, 6, callbacks[0], more=callbacks[1:]) for name in ("a", "b")]
    alone = train(tmp_path / "c", 0.1, 6)
    assert shared[1].best == shared[0].best == alone.best
    assert [result.status for result in shared] == ["finished", "finished"]
