"""The benchmarks measure what they say: turns, ratios, goals, and that what is compared does the same work."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # the scripts import each other

import common  # noqa: E402
import memory  # noqa: E402
import page  # noqa: E402
import peers  # noqa: E402
import start  # noqa: E402
import step_time  # noqa: E402

SCRIPTS = ["devices.py", "memory.py", "peers.py", "seeds.py", "start.py", "step_time.py"]


def run(*argv, code=0):
    command = [sys.executable, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == code, done.stderr
    return done


# ------------------------------------------------------------------------------------------------ command lines

HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code
assert "jax" not in sys.modules, "--help waits for JAX"
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_without_jax(script):
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    command = [sys.executable, "-c", HELP, str(BENCHMARKS / script)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{script}" in done.stdout and "--json" in done.stdout


def test_help_of_overhead():
    assert "--cases" in run(BENCHMARKS / "overhead.py", "--help").stdout


@pytest.mark.parametrize(
    "script, argv, said",
    [
        ("step_time.py", ["--rounds", "0"], "--rounds must be 1 or more"),
        ("step_time.py", ["--full", "--only", "gru"], "exclude each other"),
        ("step_time.py", ["--only", "grus"], "invalid choice: 'grus'"),
        ("memory.py", ["--times", "10"], "--times must be 21 or more"),
        ("devices.py", ["--devices", "1"], "--devices must be 2 or more"),
        ("start.py", ["--repeats", "0"], "--repeats must be 1 or more"),
        ("peers.py", ["--steps", "1"], "--steps 20 or more"),
    ],
)
def test_what_a_command_line_cannot_mean(script, argv, said):
    assert said in run(BENCHMARKS / script, *argv, code=2).stderr.splitlines()[-1]


def test_make_bench_knows_every_script():
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"common.py", "contenders.py", "page.py"}
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("BENCHMARKS")]
    known = {name.removesuffix(".py") for name in scripts}
    assert set(line.partition(":=")[2].split()) == set(page.NAMES) == known


def test_make_bench_runs_each_and_then_the_page(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".ready").write_text("")

    def made(*argv):
        command = ["make", "--no-print-directory", "bench", f"VENV={tmp_path}", *argv]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if not line.startswith("==")]

    def kept(name):
        return f"--json benchmarks/results/{name}.json"

    *scripts, last = made()
    full = {name: " --full" if name == "step_time" else "" for name in page.NAMES}
    assert sorted(scripts) == sorted(f"benchmarks/{name}.py{full[name]} {kept(name)}" for name in page.NAMES)
    assert last == "benchmarks/page.py"
    only = made("BENCHMARKS=step_time", "ARGS=--only lstm")
    assert only == [f"benchmarks/step_time.py {kept('step_time')} --only lstm", last], "--full and --only exclude"


# ------------------------------------------------------------------------------------------------------- turns


class Machine:
    """A clock that contenders move on, on a machine whose speed changes from call to call of ``slower``."""

    def __init__(self):
        self.now, self.slower, self.calls = 0.0, 1.0, []

    def clock(self):
        return self.now

    def contender(self, name, seconds):
        def steps(n):
            self.calls.append((name, n))
            self.now += n * seconds * self.slower

        return steps


def test_a_turn_is_of_whole_units():
    class Chunked:
        unit = 4

        def __call__(self, n):
            calls.append(n)
            machine.now += 0.03 * n

    calls, machine = [], Machine()
    common.by_turns({"a": Chunked()}, 2, 0.2, machine.clock)
    assert calls == [1, 1, 8, 8]  # 0.2 / 0.03 are 6.7 steps


def test_contenders_take_turns_and_every_second_round_goes_backwards():
    machine = Machine()
    timing = common.by_turns(
        {"a": machine.contender("a", 0.1), "b": machine.contender("b", 0.02)}, 3, 0.2, machine.clock
    )
    warm, timed = machine.calls[:4], machine.calls[4:]
    assert warm == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert timed == [("a", 2), ("b", 10), ("b", 10), ("a", 2), ("a", 2), ("b", 10)]
    assert timing.seconds["a"] == pytest.approx([0.1] * 3) and timing.middle("b") == pytest.approx(0.02)


def test_the_processors_time_is_told_beside_the_clocks():
    machine, spent = Machine(), [0.0]

    def steps(n):
        machine.now += 0.1 * n
        spent[0] += 0.03 * n

    timing = common.by_turns({"a": steps}, 4, 0.2, machine.clock, lambda: spent[0])
    assert timing.cpu_middle("a") == pytest.approx(0.03) and timing.least("a") == pytest.approx(0.1)


def test_ratios_are_of_one_round_so_that_a_machine_that_slows_down_does_not_show():
    machine = Machine()
    plain = {"a": machine.contender("a", 0.1), "b": machine.contender("b", 0.02)}

    def a(n):
        plain["a"](n)
        if len(machine.calls) > 4:
            rounds = sum(name == "a" for name, _ in machine.calls) - 2
            machine.slower = 1.0 if rounds < 3 else 5.0

    timing = common.by_turns({"b": plain["b"], "a": a}, 9, 0.1, machine.clock)
    low, middle, high = timing.quartiles("a")
    assert high > 4 * low and middle == pytest.approx(0.5)  # what a contender took tells of the machine
    assert timing.ratio("b", "a") == pytest.approx(0.2)


def test_a_slow_contender_sits_rounds_out_and_runs_in_the_first_and_the_last():
    machine = Machine()
    made = {"slow": machine.contender("slow", 4.0), "fast": machine.contender("fast", 0.01)}
    timing = common.by_turns(made, 11, 0.1, machine.clock)
    there = [not math.isnan(value) for value in timing.seconds["slow"]]
    assert sum(there) == 3 and there[0] and there[-1]
    assert not any(map(math.isnan, timing.seconds["fast"]))
    assert timing.ratios("slow", "fast") == pytest.approx([400.0] * 3)
    assert common.by_turns(made, 2, 0.1, machine.clock).ratios("slow", "fast") == pytest.approx([400.0] * 2)
    with pytest.raises(ValueError, match="rounds=0: expected 1 or more"):
        common.by_turns(made, 0, 0.1, machine.clock)


def test_runs_that_clock_themselves():
    taken = iter([9.0, 8.0, 1.0, 2.0, 4.0, 3.0])
    timing = common.by_turns_of_runs({"a": lambda steps: next(taken), "b": lambda steps: next(taken)}, 2, 10)
    assert timing.seconds == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert timing.ratio("b", "a") == pytest.approx((2 / 1 + 4 / 3) / 2)


# -------------------------------------------------------------------------------------------- goals and tables


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
    fast = {name: 0.5 for name in step_time.DRTRL}
    base = {step_time.HAND: 100.0, step_time.BPTT_HAND: 1.0, step_time.BEST: 1.0, "bptt": 0.9}
    trace = {name: 1.0 for name in step_time.TRACE}
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


def test_memory_is_judged_where_both_lengths_are_cut_alike():
    def found(small, large, segment):
        cell = lambda size, segment: {"resident_bytes": size, "temporary_bytes": size, "segment": segment}  # noqa: E731
        return {"drtrl": {1_000: cell(small, 120), 10_000: cell(large, segment)}}

    assert [goal.met for goal in memory.goals(found(100, 104, 120))] == [True, True]
    assert [goal.met for goal in memory.goals(found(100, 106, 120))] == [False, False]
    assert memory.goals(found(100, 104, "sequence")) == [] == memory.goals({"bptt": {}})
    lines = memory.tables(found(2**20, 2**21, 120))["Temporary memory by the compiler's account, MiB"]
    assert lines[-1] == "| drtrl | 1.0 | 2.0 |"


def test_parts_of_a_start_exclude_each_other():
    machine = Machine()

    class Work:
        def outer(self):
            machine.now += 1
            self.inner()
            self.inner()
            machine.now += 2
            return "made"

        def inner(self):
            machine.now += 10

    parts = start.Parts(machine.clock)
    parts.time("outer", Work, "outer")
    parts.time("inner", Work, "inner")
    assert Work().outer() == "made"
    Work().inner()
    assert parts.seconds == {"outer": 3, "inner": 30} and parts.counted == 33


def test_peers_are_skipped_with_a_word(monkeypatch, capsys):
    monkeypatch.setattr(peers, "NEEDED", ("json", "no_such_package"))
    assert peers.missing(sys.executable) == ["no_such_package"]
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    peers.main()
    assert capsys.readouterr().out == (f"skipped: {sys.executable} has no no_such_package; pip install -e '.[bench]'\n")


# ---------------------------------------------------------------------------------------------- the documentation


def test_the_page_shows_the_last_run_of_each():
    text, kept = page.PAGE.read_text(), page.results()
    assert kept and page.filled(text, kept) == text, "python benchmarks/page.py brings it up to date"
    for name, result in kept.items():
        assert not {"--smoke", "--small"} & set(result["command"].split()), f"{name}: not a result"
    for name in set(page.NAMES) - set(kept):
        assert f"<!-- {name} -->\nNot measured yet: run `make bench BENCHMARKS={name}`." in text


def test_the_page_lists_every_line_of_its_tables_that_says_missed():
    tables, title, after = page.PAGE.read_text().partition("\n## What was missed\n")
    listed = {line for line in after.splitlines() if line.startswith("- `")}
    rows = [line.strip("| ").split(" | ") for line in tables.splitlines() if line.endswith("| **missed** |")]
    assert title and len(rows) == len(listed)
    for what, measured, goal, _ in rows:
        (line,) = [line for line in listed if f"`: {what}, " in line]
        assert line.endswith(f", {measured} where {goal} was hoped for")


def place(name, text="old\n"):
    return f"<!-- {name} -->\n{text}<!-- end -->\n"


def test_a_page_is_filled_where_there_is_a_place():
    goals = [
        {"what": "a / b", "measured": "2", "goal": "<= 1", "met": False},
        {"what": "c / b", "measured": "1", "goal": "<= 1", "met": True},
    ]
    result = {"command": "python x", "machine": "m", "sections": {"title": ["| a |"]}, "goals": goals}
    text = "before\n" + place("x") + place("y") + place("missed") + "after\n"
    told = page.filled(text, {"x": result}, ("x", "y"))
    assert told == (
        "before\n"
        + place("x", "`python x`\n\n(m)\n\n**title**\n\n| a |\n")
        + place("y", "Not measured yet: run `make bench BENCHMARKS=y`.\n")
        + place("missed", "- `x`: a / b, 2 where <= 1 was hoped for\n")
        + "after\n"
    )
    assert page.filled(told, {"x": result}, ("x", "y")) == told
    assert page.missed({"x": {**result, "goals": goals[1:]}}) == "Nothing that was judged.\n"
    with pytest.raises(ValueError, match=r"places for \['missed', 'x', 'y'\], expected \['missed', 'x'\]"):
        page.filled(text, {"x": result}, ("x",))
    with pytest.raises(ValueError, match=r"results of \['z'\], expected some of \['x', 'y'\]"):
        page.filled(text, {"x": result, "z": result}, ("x", "y"))


# --------------------------------------------------------------------------------------------------- small runs


@pytest.mark.slow
def test_step_time_compares_the_same_work(tmp_path):
    kept = tmp_path / "step_time.json"
    argv = ["--smoke", "--only", "gru", "lif", "all-scored", "--rounds", "1", "--turn", "0.001", "--json", kept]
    said = run(BENCHMARKS / "step_time.py", *argv).stdout
    numbers = json.loads(kept.read_text())["numbers"]
    assert list(numbers) == ["gru", "lif", "all-scored"]
    for point in numbers.values():
        assert len(point["apart"]) == 6 and max(point["apart"].values()) < step_time.TOLERANCE
        assert set(point["engines"].values()) == {"reverse"}
        assert len(point["seconds"]) == 11
    assert "### all-scored: gru, hidden 8, 0 + 30 time steps, batch 4" in said and "### Judged" in said


@pytest.mark.slow
def test_memory_grows_with_the_sequence_under_bptt():
    argv = ["--times", "40", "400", "--strategies", "bptt", "--hidden", "16", "--batch", "2"]
    rows = [line.split(" | ") for line in run(BENCHMARKS / "memory.py", *argv).stdout.splitlines() if "| bptt" in line]
    assert len(rows) == 2
    _, short, long = rows[1]
    assert float(long.strip(" |")) > 4 * float(short)


@pytest.mark.slow
def test_a_start_is_told_part_by_part(tmp_path):
    kept = tmp_path / "start.json"
    run(BENCHMARKS / "start.py", "--repeats", "1", "--small", "--json", kept)
    steps = json.loads(kept.read_text())["numbers"]["first step"]
    (cold,), (warm,) = steps["cold"], steps["warm"]
    assert cold["misses"] > 0 and warm["misses"] == 0 and warm["hits"] > 0
    for one in (cold, warm):
        assert sum(one["parts"].values()) == pytest.approx(one["total"], rel=0.01)
        assert all(seconds >= -0.001 for seconds in one["parts"].values())
