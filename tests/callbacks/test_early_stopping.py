import json
import math
import re

import pytest

import jaxtrain as jt
from jaxtrain.callbacks import Checkpoint, EarlyStopping
from jaxtrain.callbacks.early_stopping import direction
from tests.small import Linear, lines


def iterator(callback, run, scores, tag="val/loss", first=1):
    """The number of the validation that stopped the run, counted from ``first``."""
    for number, score in enumerate(scores, first):
        run.step = 10 * number
        callback.on_validation_end(run, {tag: score})
        if run.requests.stop:
            return number
    return None


def test_stops_after_patience_validations_without_a_better_one(make_run):
    run = make_run()
    assert iterator(EarlyStopping(patience=2), run, [5.0, 4.0, 4.0, 3.0, 3.5, 3.0, 1.0]) == 6
    assert run.requests.stop == "val/loss is 3 and has not improved for 2 validations (mode min; best 3 at step 40)"


def test_more_is_better_for_an_accuracy(make_run):
    run = make_run()
    assert iterator(EarlyStopping("val/accuracy", patience=2), run, [0.1, 0.2, 0.3, 0.3, 0.2], "val/accuracy") == 5


def test_an_improvement_must_exceed_min_delta(make_run):
    assert iterator(EarlyStopping(patience=2, min_delta=0.5), make_run(), [5.0, 4.5, 4.4, 4.6]) is None
    assert iterator(EarlyStopping(patience=2, min_delta=0.5), make_run(), [5.0, 4.5, 4.6]) == 3


def test_nan_is_never_better_and_any_number_is_better_than_it(make_run):
    run = make_run()
    assert iterator(EarlyStopping(patience=2), run, [math.nan, math.nan]) == 2
    assert "it was NaN at every validation" in run.requests.stop
    assert iterator(EarlyStopping(patience=2), make_run(), [math.nan, math.inf, 5.0, math.nan, 4.0]) is None


@pytest.mark.parametrize(("tag", "threshold", "scores"), [("val/loss", 0.1, [0.5, 0.1]), ("val/acc", 0.9, [0.5, 0.95])])
def test_stops_as_soon_as_the_threshold_is_reached(make_run, tag, threshold, scores):
    run = make_run()
    assert iterator(EarlyStopping(tag, threshold=threshold), run, scores, tag) == 2
    assert f"has reached {threshold}" in run.requests.stop


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_restored_state_decides_as_if_never_interrupted(make_run, cut):
    scores = [math.nan, 0.1 + 0.2, 0.3, math.inf, 0.29, 0.3, 0.3]
    whole = iterator(EarlyStopping(patience=2), make_run(), scores)
    assert whole == 7
    first = EarlyStopping(patience=2)
    iterator(first, make_run(), scores[:cut])
    second = EarlyStopping(patience=2)
    second.on_fit_start(make_run(restored=10 * cut))
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert second.state() == first.state()
    assert iterator(second, make_run(), scores[cut:], first=cut + 1) == whole


def test_a_fresh_run_starts_to_count_again(make_run):
    callback = EarlyStopping(patience=2)
    iterator(callback, make_run(), [1.0, 2.0])
    callback.reset()
    assert iterator(callback, make_run(), [3.0, 4.0, 5.0]) == 3


def test_without_validation_data_it_refuses(make_run):
    run = make_run()
    EarlyStopping().on_fit_start(run)
    run.has_validation = False
    with pytest.raises(ValueError, match="EarlyStopping monitors 'val/loss', but the data has no validation data"):
        EarlyStopping().on_fit_start(run)


def test_scores_of_another_monitor_are_not_compared(caplog):
    saved = EarlyStopping("val/loss")
    saved.best, saved.waited = 0.1, 2
    callback = EarlyStopping("val/accuracy")
    callback.load_state(saved.state())
    assert callback.best is None and callback.waited == 0
    assert "EarlyStopping monitored val/loss" in caplog.text


def test_a_missing_monitor_names_the_tags_there_are(make_run):
    with pytest.raises(ValueError, match="EarlyStopping monitors 'val/f1', which validation does not give; expected"):
        iterator(EarlyStopping("val/f1"), make_run(), [1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"patience": 0}, "patience is 0"), ({"patience": 1.5}, "patience is 1.5"), ({"min_delta": -1}, "min_delta is -1"),
     ({"mode": "up"}, "mode is 'up'"), ({"threshold": math.nan}, "threshold is nan"),
     ({"monitor": ""}, "monitor is ''"),
     ({"monitor": "seeds/val/loss"}, "has one number per seed; expected one number, such as their mean 'val/loss'")],
)  # fmt: skip
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**arguments)


@pytest.mark.parametrize(
    ("tag", "mode"),
    [("val/hard/auc", "max"), ("val/hard/recall/1", "max"), ("val/AUROC", "max"), ("val/balanced_accuracy", "max"),
     ("val/f1_score", "max"), ("val/loss", "min"), ("val/hard/dice_loss", "min"), ("val/mae/0", "min"),
     ("val/brier_score", "min"), ("val/relative-error", "min"), ("train/bits", "min")],
)  # fmt: skip
def test_the_mode_of_a_known_name(tag, mode):
    assert direction(tag) == EarlyStopping(tag).monitor.mode == Checkpoint(monitor=tag).mode == mode
    opposite = "min" if mode == "max" else "max"
    assert EarlyStopping(tag, mode=opposite).monitor.mode == opposite


@pytest.mark.parametrize(
    "tag",
    ["val/kappa2", "val/neg_mse", "val/error_correlation", "val/rate", "val/accuracy_gap", "val/p/1"],
)
def test_a_name_that_does_not_say_what_is_better_needs_a_mode(tag):
    advice = re.escape(f'(monitor={tag!r}): state mode="min" or mode="max"') + "$"
    with pytest.raises(ValueError, match=f"^EarlyStopping{advice}"):
        EarlyStopping(tag)
    with pytest.raises(ValueError, match=f"^Checkpoint{advice}"):
        Checkpoint(monitor=tag)
    with pytest.raises(ValueError, match=f"^Curriculum{advice}"):
        jt.callbacks.Curriculum([{"size": 1}], tag, 0.1)
    assert Checkpoint(monitor=tag, mode="max").mode == "max"


def test_a_run_that_validates_at_its_end_alone_is_warned_of(caplog):
    fit = jt.Fit("bptt", max_steps=2, callbacks=[jt.EarlyStopping()])
    fit.run(Linear(), lines())
    assert "EarlyStopping reads validations" in caplog.text
    caplog.clear()
    jt.Fit("bptt", max_steps=2, validate_every=1, callbacks=[jt.EarlyStopping()]).run(Linear(), lines())
    assert "EarlyStopping looks" not in caplog.text


@pytest.mark.parametrize(
    "callback",
    [
        jt.EarlyStopping("val/los", mode="min"),
        jt.Checkpoint(monitor="val/los", mode="min"),
        jt.callbacks.Curriculum([{"size": 1}], "val/los", 0.1, mode="min"),
        jt.EarlyStopping("train/los", mode="min"),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_a_monitor_that_validation_does_not_give_is_found_before_the_first_step(callback, tmp_path):
    advice = "^.*monitors '.*/los', which validation does not give; expected val/loss(; did you mean 'val/loss'.)?$"
    fit = jt.Fit("bptt", max_steps=2, callbacks=[callback], run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=advice):
        fit.run(Linear(), lines())
    assert not (tmp_path / "run").exists()
    jt.Fit("bptt", max_steps=2, callbacks=[jt.EarlyStopping("val/loss")]).run(Linear(), lines())
