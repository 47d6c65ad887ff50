"""Timing in turns, so that a slow machine does not affect ratios; parts of a start."""

import math

import common
import pytest
import start


class Machine:
    """A clock that contenders advance. A step takes ``slower`` times as long."""

    def __init__(self):
        self.now, self.slower, self.calls = 0.0, 1.0, []

    def clock(self):
        return self.now

    def contender(self, name, seconds):
        def steps(n):
            self.calls.append((name, n))
            self.now += n * seconds * self.slower

        return steps


def test_a_turn_consists_of_whole_units():
    class Chunked:
        unit = 4

        def __call__(self, n):
            calls.append(n)
            machine.now += 0.03 * n

    calls, machine = [], Machine()
    common.by_turns({"a": Chunked()}, 2, 0.2, machine.clock)
    assert calls == [1, 1, 8, 8]  # 0.2 / 0.03 are 6.7 steps


def test_contenders_take_turns_and_every_second_round_is_reversed():
    machine = Machine()
    timing = common.by_turns(
        {"a": machine.contender("a", 0.1), "b": machine.contender("b", 0.02)}, 3, 0.2, machine.clock
    )
    warm, timed = machine.calls[:4], machine.calls[4:]
    assert warm == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert timed == [("a", 2), ("b", 10), ("b", 10), ("a", 2), ("a", 2), ("b", 10)]
    assert timing.seconds["a"] == pytest.approx([0.1] * 3) and timing.median("b") == pytest.approx(0.02)


def test_cpu_time_is_measured_too():
    machine, spent = Machine(), [0.0]

    def steps(n):
        machine.now += 0.1 * n
        spent[0] += 0.03 * n

    timing = common.by_turns({"a": steps}, 4, 0.2, machine.clock, lambda: spent[0])
    assert timing.cpu_median("a") == pytest.approx(0.03) and timing.minimum("a") == pytest.approx(0.1)


def test_ratios_within_a_round_do_not_depend_on_a_machine_that_slows_down():
    machine = Machine()
    plain = {"a": machine.contender("a", 0.1), "b": machine.contender("b", 0.02)}

    def a(n):
        plain["a"](n)
        if len(machine.calls) > 4:
            rounds = sum(name == "a" for name, _ in machine.calls) - 2
            machine.slower = 1.0 if rounds < 3 else 5.0

    timing = common.by_turns({"b": plain["b"], "a": a}, 9, 0.1, machine.clock)
    low, median, high = timing.quartiles("a")
    assert high > 4 * low and median == pytest.approx(0.5)  # absolute times depend on the machine
    assert timing.ratio("b", "a") == pytest.approx(0.2)


def test_a_slow_contender_skips_rounds_but_runs_in_the_first_and_the_last():
    machine = Machine()
    contenders = {"slow": machine.contender("slow", 4.0), "fast": machine.contender("fast", 0.01)}
    timing = common.by_turns(contenders, 11, 0.1, machine.clock)
    measured = [not math.isnan(value) for value in timing.seconds["slow"]]
    assert sum(measured) == 3 and measured[0] and measured[-1]
    assert not any(map(math.isnan, timing.seconds["fast"]))
    assert timing.ratios("slow", "fast") == pytest.approx([400.0] * 3)
    assert common.by_turns(contenders, 2, 0.1, machine.clock).ratios("slow", "fast") == pytest.approx([400.0] * 2)
    with pytest.raises(ValueError, match="rounds=0: expected 1 or more"):
        common.by_turns(contenders, 0, 0.1, machine.clock)


def test_runs_that_measure_their_own_time():
    seconds = iter([9.0, 8.0, 1.0, 2.0, 4.0, 3.0])
    timing = common.by_turns_of_runs({"a": lambda steps: next(seconds), "b": lambda steps: next(seconds)}, 2, 10)
    assert timing.seconds == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert timing.ratio("b", "a") == pytest.approx((2 / 1 + 4 / 3) / 2)


def test_parts_of_a_start_exclude_each_other():
    machine = Machine()

    class Work:
        def outer(self):
            machine.now += 1
            self.inner()
            self.inner()
            machine.now += 2
            return "result"

        def inner(self):
            machine.now += 10

    parts = start.Parts(machine.clock)
    parts.time("outer", Work, "outer")
    parts.time("inner", Work, "inner")
    assert Work().outer() == "result"
    Work().inner()
    assert parts.seconds == {"outer": 3, "inner": 30} and parts.counted == 33
