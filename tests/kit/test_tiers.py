"""Which tests a tier has, and which long tests run when there is time for a few."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kit import costs, tiers

ROOT = Path(__file__).parents[2]


def product(rows, columns):
    return [Test(row=row, column=column) for row in rows for column in columns]


class Test:
    __test__ = False

    def __init__(self, **params):
        self.nodeid, self.callspec = "-".join(params.values()), SimpleNamespace(params=params)


@pytest.mark.parametrize(("rows", "columns"), [("abcdefg", "xyz"), ("ab", "vwxyz"), ("abc", "xyz"), ("a", "x")])
def test_a_cover_has_every_value_and_no_more_tests_than_the_longer_axis(rows, columns):
    few = tiers.cover(product(rows, columns))
    assert len(few) == max(len(rows), len(columns))
    for axis, values in (("row", rows), ("column", columns)):
        used = [test.callspec.params[axis] for test in few]
        assert set(used) == set(values)
        counts = [used.count(value) for value in values]
        assert max(counts) - min(counts) <= 1, "evenly often"


def record(path, *entries):
    path.write_text("".join(f"{day}\t{seconds}\t{test}\n" for day, seconds, test in entries))
    return tiers.Record(path)


def test_the_tests_that_ran_longest_ago_come_first(tmp_path):
    tests = product("abcd", "x")
    known = record(tmp_path / "long.tsv", ("2026-01-03", 5, "a-x"), ("2026-01-01", 5, "b-x"), ("2026-01-02", 5, "c-x"))
    chosen = lambda budget: [test.nodeid for test in known.chosen(tests, budget, "2026-01-04")]  # noqa: E731
    assert chosen(4) == []
    assert chosen(11) == ["b-x", "c-x"], "in the order of the files; an unknown one takes a minute"
    assert chosen(65) == ["b-x", "d-x"], "an unknown one comes first"
    assert chosen(100) == ["a-x", "b-x", "c-x", "d-x"]


def test_of_the_same_day_others_are_chosen_every_day(tmp_path):
    tests = product("abcdefghij", "x")
    known = record(tmp_path / "long.tsv", *(("2026-01-01", 10, test.nodeid) for test in tests))
    days = [[test.nodeid for test in known.chosen(tests, 25, f"2026-01-{day:02}")] for day in range(2, 32)]
    assert all(len(day) == 2 for day in days)
    assert {name for day in days for name in day} == {test.nodeid for test in tests}
    assert days[0] == [test.nodeid for test in known.chosen(tests, 25, "2026-01-02")]


SUITE = """
import pytest

@pytest.mark.long
@pytest.mark.parametrize("fails", [False, True])
def test_long(fails):
    assert not fails

@pytest.mark.full
def test_full():
    pass

@pytest.mark.cover
@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.parametrize("b", [1, 2])
def test_product(a, b):
    pass
"""


@pytest.mark.parametrize(
    ("argv", "outcome"),
    [
        (["-m", "not full and not long"], "2 passed, 5 deselected"),
        (["-m", "not long"], "3 passed, 4 deselected"),
        (["-m", "long", "--long-record", "long.tsv"], "1 failed, 3 passed, 3 deselected"),
    ],
)
def test_a_suite_in_its_tiers(tmp_path, argv, outcome):
    (tmp_path / "test_it.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.kit.tiers", "-p", "no:cacheprovider", *argv]
    environ = {"PYTHONPATH": str(ROOT), "TESTS_TODAY": "2026-01-05"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert outcome in done.stdout.splitlines()[-1], done.stdout + done.stderr
    if "--long-record" in argv:
        lines = [line.split("\t") for line in (tmp_path / "long.tsv").read_text().splitlines()]
        assert len(lines) == 3 and all(day == "2026-01-05" and int(seconds) == 0 for day, seconds, _ in lines)
        assert "test_it.py::test_long[False]" in [test for *_, test in lines], "the failed one is due again"


@pytest.mark.parametrize(("marker", "seconds", "fails"), [(None, 11, True), (None, 9, False), ("full", 11, False)])
def test_the_guard_fails_an_unmarked_test_that_takes_long(monkeypatch, marker, seconds, fails):
    monkeypatch.setattr(costs, "calibrate", lambda: 1.0)
    guard = costs.Costs(None, guards=True)
    guard.scale = 1.0
    monkeypatch.setattr(guard.meter, "read", lambda: {"compile": seconds / 2, "run": seconds / 2})
    own = SimpleNamespace(user_properties=[], get_closest_marker=lambda name: name == marker)
    hook = guard.pytest_runtest_teardown(own)
    next(hook)
    with pytest.raises(pytest.fail.Exception if fails else StopIteration, match="11.0 CPU seconds" if fails else None):
        hook.send(None)


def test_costs_are_of_the_kind_that_was_spent():
    meter = costs.Meter()
    meter.start()
    meter.on_duration("/jax/core/compile/backend_compile_duration", 0.0)
    sum(range(3_000_000))
    spent = meter.read()
    assert set(spent) == {"compile", "run", "processes"} and spent["run"] > 0.01
    meter.start()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    spent = meter.read()
    assert set(spent) == {"compile", "python", "processes"} and spent["processes"] > 0.01
    meter.on_duration("/jax/core/compile/jaxpr_trace_duration", 1e-9)
    meter.on_duration("/jax/core/compile/jaxpr_trace_duration", 0.5)  # around the one before
    assert len(meter._spans) == 1
