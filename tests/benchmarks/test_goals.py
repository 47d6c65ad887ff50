"""Goals that are met or missed, the tables that say so, and that what is compared does the same work."""

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


@pytest.mark.parametrize("least, measured, met", [(False, 0.9, True), (False, 1.1, False), (True, 0.9, False)])
def test_a_goal_is_met_or_missed(least, measured, met):
    goal = common.Goal("x", measured, 1.0, least)
    assert goal.met is met and goal.row()[-1] == ("met" if met else "**missed**")
    assert not common.Goal("x", math.nan, 1.0, least).met


def test_a_table_has_as_many_cells_a_row_as_columns():
    assert common.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        common.table(["a", "b"], [["1"]])


def test_what_is_kept_can_be_read_back(tmp_path):
    path = tmp_path / "new" / "x.json"
    goals = [common.Goal("a / b", 1.00004, 1.0), common.Goal("c", 12.0, 10.0, least=True)]
    common.keep("x", {"title": ["| a |"]}, {"a": {10: [1.23456, math.nan]}}, path, goals)
    kept = json.loads(path.read_text())
    assert kept["goals"] == [
        {"what": "a / b", "measured": "1", "goal": "<= 1", "met": False},
        {"what": "c", "measured": "12", "goal": ">= 10", "met": True},
    ]
    assert kept["sections"] == {"title": ["| a |"]} and kept["numbers"] == {"a": {"10": [1.235, None]}}
    assert "jax" in kept["machine"]


def timings(**changed):
    """Of a point where everything meets its goal, in milliseconds."""
    fast = dict.fromkeys(step_time.DRTRL, 0.5)
    base = {step_time.HAND: 100.0, step_time.BPTT_HAND: 1.0, step_time.BEST: 1.0, "bptt": 0.9}
    trace = dict.fromkeys(step_time.TRACE, 1.0)
    seconds = {name: [value] for name, value in {**base, **fast, **trace, **changed}.items()}
    return common.Timing(seconds, seconds)


def test_step_time_judges_every_goal_of_its_points():
    goals = step_time.goals({point: timings() for point in step_time.POINTS})
    assert all(goal.met for goal in goals)
    assert len(goals) == 9 + 1 + 3 * 3 + 4 * 3 + 3 * len(step_time.POINTS)
    slow = timings(**{"drtrl window 1": 1.2})
    missed = {goal.what for goal in step_time.goals({"gru": slow, "lru": slow, "time-220": slow}) if not goal.met}
    assert missed == {
        "gru: drtrl window 1 / tutorial BPTT",
        "gru: drtrl window 1 / braintrace's best",
        "gru: drtrl window 1 / trace window 1",
        "lru: drtrl window 1 / tutorial BPTT",
        "lru: drtrl window 1 / trace window 1",
        "time-220: drtrl window 1 / trace window 1",
    }
    (bound,) = [
        goal.bound for goal in step_time.goals({"lstm": slow}) if goal.what.endswith("window 10 / " + step_time.HAND)
    ]
    assert bound == 0.03


def test_what_was_skipped_and_where_auto_chose_a_trace_is_said():
    setting = SimpleNamespace(cell="gru", hidden=1, warm=2, scored=3, batch=4)
    engines = {"drtrl window 10": "reverse", "drtrl window 1": "trace", "drtrl single-step": "reverse"}
    measured = {"gru": {"seconds": timings().seconds, "cpu": timings().cpu, "engines": engines}}
    told = step_time.sections({"gru": setting}, measured, ["lstm"])
    assert 'engine="auto" chose a trace for drtrl window 1.' in told["gru: gru, hidden 1, 2 + 3 time steps, batch 4"]
    assert told["Judged"][-1] == "Skipped, since the budget was spent: lstm."


def contender(gradient):
    class Contender:
        def __call__(self, steps):
            assert steps == 1

        def first_moment(self):
            return gradient

    return Contender()


def test_contenders_that_make_another_gradient_are_not_compared():
    names = {*step_time.SAME, *(name for names in step_time.SAME.values() for name in names)}
    same = {"w": np.array([3.0, 4.0]), "idle": np.zeros(2)}
    made = {name: contender(same) for name in names}
    made["bptt"] = contender({"w": np.array([3.0, 4.0])})  # what is not trained may be left out
    assert set(step_time.same_work(made).values()) == {0.0}
    made["bptt"] = contender({"w": np.array([3.0, 4.101])})
    with pytest.raises(RuntimeError, match="not the same gradient, relative distance: {'bptt / tutorial BPTT': 0.02"):
        step_time.same_work(made)


def test_updates_that_differ_are_not_compared():
    made = {name: contender({"w": np.array([3.0, 4.0])}) for name in (online.HAND, *online.SAME)}
    assert online.same_work(made) == {"drtrl": 0.0, "trace": 0.0}
    made["trace"] = contender({"w": np.array([3.0, 4.101])})
    with pytest.raises(RuntimeError, match="not the same updates as by hand, .*'trace': 0.02"):
        online.same_work(made)


def test_memory_is_judged_where_both_lengths_are_cut_alike():
    def found(small, large, segment):
        cell = lambda size, segment: {"resident_bytes": size, "temporary_bytes": size, "segment": segment}  # noqa: E731
        return {"drtrl": {1_000: cell(small, 120), 10_000: cell(large, segment)}}

    assert [goal.met for goal in memory.goals(found(100, 104, 120))] == [True, True]
    assert [goal.met for goal in memory.goals(found(100, 106, 120))] == [False, False]
    assert memory.goals(found(100, 104, "sequence")) == [] == memory.goals({"bptt": {}})
    lines = memory.tables(found(2**20, 2**21, 120))["Temporary memory by the compiler's account, MiB"]
    assert lines[-1] == "| drtrl | 1.0 | 2.0 |"
