"""Contenders take turns by the clock, so that a machine that slows down does not show; parts of a start."""

import math

import common
import pytest
import start


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
