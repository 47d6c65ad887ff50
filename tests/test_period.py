"""Period: what it reads, when it is due, and what it refuses."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrain.period import Period

READS = [
    (200, 200, "step"),
    (200.0, 200, "step"),
    ("200", 200, "step"),
    (" 200 st ", 200, "step"),
    ("1ep", 1, "epoch"),
    ("0.5ep", 0.5, "epoch"),
    ("30s", 30, "time"),
    ("10min", 600, "time"),
    ("2h", 7200, "time"),
    ("1.5H", 5400, "time"),
]


@pytest.mark.parametrize(("value", "n", "unit"), READS)
def test_reads(value, n, unit):
    assert Period.of(value) == Period(n, unit)


def test_none_and_period_stay():
    period = Period(3, "epoch")
    assert Period.of(None) is None
    assert Period.of(period) is period


@pytest.mark.parametrize(
    "value",
    ["", "ep", "10 parsecs", "-5", "1e", "1.2.3s", "2.5", "0", "0ep", 0, -1, 2.5, True, float("nan"), [1], "1e999s"],
)
def test_refuses_in_one_line(value):
    with pytest.raises(ValueError, match="^period: .*expected a number of steps") as error:
        Period.of(value)
    assert "\n" not in str(error.value)


def test_refuses_an_unknown_unit():
    with pytest.raises(ValueError, match="'day' is unknown"):
        Period(1, "day")  # pyright: ignore[reportArgumentType]


def test_steps():
    assert Period(7, "step").steps(None) == 7
    assert Period(2, "epoch").steps(50) == 100
    assert Period(0.29, "epoch").steps(100) == 29  # not 28, though 0.29 * 100 < 29
    assert Period(0.5, "epoch").steps(5) == 2
    assert Period(0.01, "epoch").steps(5) == 1
    assert Period(60, "time").steps(50) is None


def test_epochs_need_a_length():
    for ask in (lambda p: p.steps(None), lambda p: p.next(3, None), lambda p: p.due(3, None)):
        with pytest.raises(ValueError, match='"1ep" counts epochs, but the train data has no length'):
            ask(Period(1, "epoch"))


def test_time_is_never_due():
    assert Period(60, "time").next(10, 5) is None
    assert not Period(60, "time").due(10, 5)


@given(n=st.integers(1, 50), step=st.integers(0, 500))
@settings(deadline=None)
def test_next_is_the_first_due_after(n, step):
    period = Period(n, "step")
    due = period.next(step, None)
    assert due is not None and due > step
    assert [s for s in range(step + 1, due + 1) if period.due(s, None)] == [due]
    assert not period.due(0, None)


PERIODS = st.one_of(
    st.builds(Period, st.integers(1, 10**15), st.just("step")),
    st.builds(Period, st.floats(1e-12, 1e12), st.sampled_from(["epoch", "time"])),
)


@given(PERIODS)
@settings(deadline=None)
def test_text_reads_back(period):
    assert Period.of(str(period)) == period


def test_needs_no_jax():
    code = "import sys, jaxtrain.period; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
