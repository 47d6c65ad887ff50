"""Goals, their tables, and the checks that contenders do the same work."""

import json
import math
from types import SimpleNamespace

import common
import memory
import numpy as np
import online
import pytest
import step_time


def test_quartiles():
    assert common.quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert common.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("at_least, measured, met", [(False, 0.9, True), (False, 1.1, False), (True, 0.9, False)])
def test_a_goal_is_met_or_missed(at_least, measured, met):
    goal = common.Goal("x", measured, 1.0, at_least)
    assert goal.met is met and goal.row()[-1] == ("met" if met else "**missed**")
    assert not common.Goal("x", math.nan, 1.0, at_least).met


def test_every_row_of_a_table_has_a_cell_per_column():
    assert common.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        common.table(["a", "b"], [["1"]])


def test_a_saved_result_can_be_read(tmp_path):
    path = tmp_path / "new" / "x.json"
    goals = [common.Goal("a / b", 1.00004, 1.0), common.Goal("c", 12.0, 10.0, at_least=True)]
    common.save("x", {"title": ["| a |"]}, {"a": {10: [1.23456, math.nan]}}, path, goals)
    saved = json.loads(path.read_text())
    assert saved["goals"] == [
        {"what": "a / b", "measured": "1", "goal": "<= 1", "met": False},
        {"what": "c", "measured": "12", "goal": ">= 10", "met": True},
    ]
    assert saved["sections"] == {"title": ["| a |"]} and saved["numbers"] == {"a": {"10": [1.235, None]}}
    assert "jax" in saved["machine"]


def timings(**changed):
    """Timings of a point that meets every goal, in milliseconds."""
    fast = dict.fromkeys(step_time.DRTRL, 0.5)
    base = {step_time.HAND: 100.0, step_time.BPTT_HAND: 1.0, step_time.BEST: 1.0, "bptt": 0.9}
    trace = dict.fromkeys(step_time.TRACE, 1.0)
    seconds = {name: [value] for name, value in {**base, **fast, **trace, **changed}.items()}
    return common.Timing(seconds, seconds)


def test_step_time_checks_every_goal_of_its_points():
    goals = step_time.make_goals({point: timings() for point in step_time.POINTS})
    assert all(goal.met for goal in goals)
    assert len(goals) == 9 + 1 + 3 * 3 + 4 * 3 + 3 * len(step_time.POINTS)
    slow = timings(**{"drtrl window 1": 1.2})
    missed = {goal.what for goal in step_time.make_goals({"gru": slow, "lru": slow, "time-220": slow}) if not goal.met}
    assert missed == {
        "gru: drtrl window 1 / tutorial BPTT",
        "gru: drtrl window 1 / braintrace's best",
        "gru: drtrl window 1 / trace window 1",
        "lru: drtrl window 1 / tutorial BPTT",
        "lru: drtrl window 1 / trace window 1",
        "time-220: drtrl window 1 / trace window 1",
    }
    (bound,) = [
        goal.bound
        for goal in step_time.make_goals({"lstm": slow})
        if goal.what.endswith("window 10 / " + step_time.HAND)
    ]
    assert bound == 0.03


def test_sections_list_skipped_points_and_chosen_traces():
    setting = SimpleNamespace(cell="gru", hidden=1, warm=2, scored=3, batch=4)
    engines = {"drtrl window 10": "reverse", "drtrl window 1": "trace", "drtrl single-step": "reverse"}
    measured = {"gru": {"seconds": timings().seconds, "cpu": timings().cpu, "engines": engines}}
    sections = step_time.make_sections({"gru": setting}, measured, ["lstm"])
    assert (
        'engine="auto" chose a trace for drtrl window 1.' in sections["gru: gru, hidden 1, 2 + 3 time steps, batch 4"]
    )
    assert sections["Goals"][-1] == "Skipped because the time budget was used up: lstm."


def contender(gradient):
    class Contender:
        def __call__(self, steps):
            assert steps == 1

        def first_moment(self):
            return gradient

    return Contender()


def test_contenders_with_different_gradients_are_rejected():
    names = {*step_time.SAME, *(name for names in step_time.SAME.values() for name in names)}
    same = {"w": np.array([3.0, 4.0]), "idle": np.zeros(2)}
    contenders = {name: contender(same) for name in names}
    contenders["bptt"] = contender({"w": np.array([3.0, 4.0])})  # parameters that are not trained may be missing
    assert set(step_time.check_gradients(contenders).values()) == {0.0}
    contenders["bptt"] = contender({"w": np.array([3.0, 4.101])})
    with pytest.raises(RuntimeError, match=r"gradients differ .* at most 0\.001\): {'bptt / tutorial BPTT': 0.02"):
        step_time.check_gradients(contenders)


def test_contenders_with_different_updates_are_rejected():
    contenders = {name: contender({"w": np.array([3.0, 4.0])}) for name in (online.HAND, *online.SAME)}
    assert online.check_updates(contenders) == {"drtrl": 0.0, "trace": 0.0}
    contenders["trace"] = contender({"w": np.array([3.0, 4.101])})
    with pytest.raises(RuntimeError, match="the updates differ from those of 'by hand' .*'trace': 0.02"):
        online.check_updates(contenders)


def test_memory_has_goals_if_both_lengths_have_segments_of_one_size():
    def measured(small, large, segment):
        cell = lambda size, segment: {"resident_bytes": size, "temporary_bytes": size, "segment": segment}  # noqa: E731
        return {"drtrl": {1_000: cell(small, 120), 10_000: cell(large, segment)}}

    assert [goal.met for goal in memory.make_goals(measured(100, 104, 120))] == [True, True]
    assert [goal.met for goal in memory.make_goals(measured(100, 106, 120))] == [False, False]
    assert memory.make_goals(measured(100, 104, "sequence")) == [] == memory.make_goals({"bptt": {}})
    lines = memory.make_sections(measured(2**20, 2**21, 120))["Temporary memory reported by the compiler, MiB"]
    assert lines[-1] == "| drtrl | 1.0 | 2.0 |"
