"""When something is due is a function of the step."""

import pytest

import jaxtrain.training.schedule as module
from jaxtrain.period import Period
from jaxtrain.training.schedule import Schedule, total_steps, unused_batches


def make(**changes):
    options = dict(chunk=5, total=23, max_time=None, validate_every=Period.of(10), epoch_length=None, boundaries=())
    return Schedule(**{**options, **changes})


def ends(schedule, start=0, until=23):
    found, step = [], start
    while step < until:
        step += schedule.length(step)
        found.append(step)
    return found


def test_chunks_end_at_multiples_and_at_edges():
    schedule = make(boundaries=[Period.of(7)])
    assert ends(schedule) == [5, 7, 10, 14, 15, 20, 21, 23]
    assert [step for step in range(24) if schedule.is_boundary(step)] == [7, 10, 14, 20, 21, 23]


@pytest.mark.parametrize("start", range(23))
def test_where_chunks_end_does_not_depend_on_where_they_start(start):
    schedule = make(boundaries=[Period.of(7)])
    assert ends(schedule, start) == [end for end in ends(schedule) if end > start]


def test_without_an_edge_a_chunk_is_whole():
    schedule = make(total=None, validate_every=None)
    assert schedule.next_boundary(0) is None and schedule.length(0) == 5 and schedule.length(3) == 2
    assert not schedule.is_boundary(100)


def test_epochs():
    schedule = make(epoch_length=4, validate_every=Period.of("2ep"), total=24)
    assert [step for step in range(25) if schedule.is_epoch_end(step)] == [4, 8, 12, 16, 20, 24]
    assert [step for step in range(25) if schedule.is_boundary(step)] == [8, 16, 24]
    assert [step for step in range(25) if schedule.validation_due(step)] == [8, 16, 24]
    heard = make(epoch_length=4, validate_every=None, total=10, epochs_are_boundaries=True)
    assert [step for step in range(11) if heard.is_boundary(step)] == [4, 8, 10]
    assert not make().is_epoch_end(4)


def test_epochs_of_unknown_length_are_refused_at_once():
    with pytest.raises(ValueError, match='"1ep" counts epochs'):
        make(boundaries=[Period.of("1ep")])


def test_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    schedule = make(max_time=Period.of("1min"), validate_every=Period.of("10s"), total=None)
    assert (
        schedule.read_clock() == (False, False)
        and not schedule.validation_due(10)
        and schedule.next_boundary(3) is None
    )
    now[0] = 110.0
    assert not schedule.validation_due(7)  # the clock is looked at once a chunk
    assert schedule.read_clock() == (True, False) and schedule.validate_now and schedule.validation_due(7)
    schedule.validated()
    assert not schedule.validate_now and schedule.read_clock() == (False, False)
    now[0] = 160.0
    assert schedule.read_clock() == (True, True) and schedule.out_of_time


def test_the_length_of_a_run():
    assert total_steps(None, None, None) is None and total_steps(7, None, None) == 7
    assert total_steps(7, 2, 3) == 6 and total_steps(5, 2, 3) == 5
    with pytest.raises(ValueError, match=r"^Fit\(max_epochs=...\) needs train data with a length; give max_steps"):
        total_steps(None, 1, None)


def test_batches_without_an_update():
    assert unused_batches(None, 4) == unused_batches(8, 4) == unused_batches(7, 1) == []
    assert unused_batches(10, 4) == [
        "accumulate=4: the last 2 of 10 batches make no update; choose max_steps=8 or max_steps=12"
    ]
    with pytest.raises(ValueError, match="a run of 3 batches would make no update"):
        unused_batches(3, 4)
