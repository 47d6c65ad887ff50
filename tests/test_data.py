"""DataIterator and DataModule: exact positions through prefetch, resume and a change of task."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrain.data.datamodule import DataModule, as_data, begin_task, change_task
from jaxtrain.data.iterator import DataIterator
from jaxtrain.errors import DataEnded, DataError
from tests.batches import EXACT, LIST, SHORT, Addressed, Again, Cursors, Items, Loader, batch, ids

OPS = ["take", "prefetch", "example", "reopen", "clear"]


@pytest.mark.parametrize("kind", EXACT)
@given(ops=st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 3)), max_size=9))
@settings(deadline=None, max_examples=25)
def test_any_way_of_reading_gives_the_same_batches(kind, ops):
    """However it is split into takes, prefetched, saved and opened anew, the sequence of batches is one."""
    make, want = EXACT[kind]
    iterator, got = DataIterator(make()), []
    for op, n in ops:
        if op == "take":
            got += ids(iterator.take(n))
        elif op == "prefetch":
            before = iterator.state()
            iterator.prefetch(n)
            assert iterator.state() == before and iterator.ready >= n
        elif op == "example":
            assert ids([iterator.example()]) == [want[len(got)]]
        elif op == "clear":
            if kind not in ("again", "short again", "iterator"):  # its epochs would be others; it cannot begin again
                iterator.clear()
        else:
            state = json.loads(json.dumps(iterator.state()))
            iterator = DataIterator(make())
            iterator.restore(state)
            assert iterator.state() == state
        assert iterator.taken == len(got)
    got += ids(iterator.take(6))
    assert got == list(want[: len(got)])


@pytest.mark.parametrize("kind", EXACT)
def test_restore_goes_back(kind):
    make, want = EXACT[kind]
    iterator = DataIterator(make())
    iterator.take(2)
    state = iterator.state()
    iterator.take(1)
    iterator.prefetch(2)
    if iterator.kind == "iterator":
        with pytest.raises(DataError, match="one-shot iterator cannot go back to batch 2"):
            iterator.restore(state)
    elif not kind.endswith("again"):
        iterator.restore(state)
        assert ids(iterator.take(2)) == list(want[2:4])


def test_a_reiterable_goes_back_within_its_epoch():
    class Same:
        def __iter__(self):
            return iter(LIST)

    iterator = DataIterator(Same())
    assert iterator.kind == "reiterable" and iterator.length is None
    iterator.take(6)
    state = iterator.state()
    iterator.take(3)
    iterator.restore(state)
    assert iterator.state() == state and ids(iterator.take(3)) == [2, 3, 0]


def test_state_is_the_position_consumed():
    iterator = DataIterator(LIST)
    assert iterator.state() == {"kind": "reiterable", "batch": 0, "epoch": 0, "index": 0}
    iterator.take(6)
    iterator.prefetch(3)
    assert iterator.state() == {"kind": "reiterable", "batch": 6, "epoch": 1, "index": 2}
    assert DataIterator(Addressed()).state() == {"kind": "addressed", "batch": 0}


def test_a_list_is_indexed_on_restore():
    items = Items()
    iterator = DataIterator(items)
    items.asked.clear()
    iterator.restore({"kind": "reiterable", "batch": 4002, "epoch": 1000, "index": 2})
    assert ids(iterator.take(1)) == [2] and items.asked == [2]


def test_an_epoch_of_another_length_is_refused():
    with pytest.raises(DataError, match="does not fit an epoch of 4 batches"):
        DataIterator(LIST).restore({"kind": "reiterable", "batch": 7, "epoch": 1, "index": 0})


def test_a_position_of_another_kind_is_refused():
    with pytest.raises(DataError, match="'addressed', this one is 'reiterable'"):
        DataIterator(LIST).restore(DataIterator(Addressed()).state())


def test_replay_is_logged(caplog):
    with caplog.at_level(logging.INFO, "jaxtrain"):
        DataIterator(LIST).restore({"kind": "reiterable", "batch": 6, "epoch": 1, "index": 2})
        assert not caplog.messages
        DataIterator(Again()).restore({"kind": "reiterable", "batch": 6, "epoch": 1, "index": 2})
    assert caplog.messages == ["train data: replaying 6 batches to reach the saved position"]


def test_an_iterator_too_short_for_its_position():
    with pytest.raises(DataEnded, match="^train data: ended after 4 batches"):
        DataIterator(iter(LIST)).restore({"kind": "iterator", "batch": 5})


def test_a_short_position_survives_a_restore_on_the_short_batch():
    """The batch that comes next is the short one: it is dropped, not taken for the example."""
    for make in (Loader, Again):
        iterator = DataIterator(make(short=True))
        iterator.take(4)
        other = DataIterator(make(short=True))
        other.restore(json.loads(json.dumps(iterator.state())))
        assert ids(other.take(1)) == [10]


def test_the_short_last_batch_is_dropped_with_one_word(caplog):
    with caplog.at_level(logging.INFO, "jaxtrain"):
        DataIterator(SHORT).take(12)
        DataIterator(Again(short=True)).take(12)
    assert [m.split(";")[0] for m in caplog.messages] == ["train data: the short last batch of an epoch is dropped"] * 2


def test_a_counted_short_batch_is_spoken_of(caplog):
    class IndexedReader(Again):
        def __len__(self):
            return 5

    iterator = DataIterator(IndexedReader(short=True))
    with caplog.at_level(logging.INFO, "jaxtrain"):
        assert iterator.length == 5
        iterator.take(6)
    assert "periods in epochs count it, 5 steps an epoch" in caplog.messages[0]


def test_a_short_batch_in_the_middle_is_an_error():
    for source in ([*SHORT, batch(5)], iter([*SHORT, batch(5)])):
        with pytest.raises(DataError, match=r"batch 4: leaf batch\[0\] has shape \(3, 1\), expected \(3, 2\)"):
            DataIterator(source).take(6)


def test_an_iterator_with_a_short_end_has_ended():
    iterator = DataIterator(iter(SHORT))
    iterator.take(4)
    with pytest.raises(DataEnded) as error:
        iterator.take(1)
    assert error.value.batch == 4


def test_epochs_of_nothing_but_a_short_batch():
    class Shrinks:
        epoch = 0

        def __iter__(self):
            self.epoch += 1
            return iter(LIST if self.epoch == 1 else SHORT[-1:])

    with pytest.raises(DataError, match="batch 4: leaf"):
        DataIterator(Shrinks()).take(6)


def test_clear_makes_what_was_prefetched_anew():
    class Task:
        lag = 3

        def batch(self, step):
            return np.full((self.lag, 2), step)

    source = Task()
    iterator = DataIterator(source)
    iterator.take(1)
    iterator.prefetch(2)
    source.lag = 5
    assert iterator.example().shape == (3, 2)
    iterator.clear()
    assert iterator.ready == 0 and iterator.taken == 1
    assert iterator.example().shape == (5, 2)
    assert [b[0, 0] for b in iterator.take(2)] == [1, 2]


def test_clear_with_fewer_sequences_keeps_every_position():
    """A new batch size looks like a short last batch: to tell them apart reads on, and the saved position must not."""

    class Lanes(Loader):
        size = 2

        def __iter__(self):
            for inputs, targets in super().__iter__():
                yield inputs[:, : self.size], targets[:, : self.size]

    source = Lanes()
    iterator = DataIterator(source)
    iterator.take(1)
    source.size = 1
    iterator.clear()
    got = iterator.take(1)
    other = DataIterator(Lanes())
    other.restore(json.loads(json.dumps(iterator.state())))
    assert got[0][0].shape == (3, 1)
    assert ids(got + iterator.take(2)) == [1, 2, 3] and ids(other.take(2)) == [2, 3]


def test_clear_cannot_take_back_from_an_iterator():
    iterator = DataIterator(iter(LIST))
    iterator.prefetch(2)
    with pytest.raises(DataError, match="the task cannot change, because a one-shot iterator has read batches ahead"):
        iterator.clear()
    assert ids(iterator.take(3)) == [0, 1, 2]


def test_data_module_as_is():
    module = DataModule(LIST, val=SHORT)
    module.setup()
    assert module.train_data() is LIST and module.val_data() is SHORT
    assert module.test_data() is None and module.predict_data() is None
    assert module.encode(3) == 3 and module.task == {}
    identity = module.identity()
    assert identity["class"] == "DataModule" and identity["train"]["batches"] == len(LIST)
    assert identity != DataModule(LIST[1:], val=SHORT).identity() and identity == DataModule(list(LIST)).identity()


def test_data_module_subclass_without_super():
    class Mine(DataModule):
        task = {"lag": 1}

        def __init__(self, size):
            self.size = size

    one, two = Mine(1), Mine(size=2)
    one.task["lag"] = 2
    assert two.task == {"lag": 1}
    assert one.val_data() is None and one.identity()["class"].endswith("Mine")
    with pytest.raises(DataError, match="Mine has none; define train_data"):
        one.train_data()


def test_as_data():
    class Encodes(Addressed):
        def encode(self, x):
            return x + 1

    module = DataModule(LIST)
    assert as_data(module) is module
    assert as_data(LIST, SHORT).val_data() is SHORT
    assert as_data(Encodes()).encode(1) == 2  # a source's own encode is part of it
    with pytest.raises(DataError, match="val data: given in addition to DataModule, which has its own"):
        as_data(module, SHORT)
    with pytest.raises(DataError, match="DataModule is a class; give an instance"):
        as_data(DataModule)
    with pytest.raises(DataError, match="got None"):
        as_data(None)


def test_a_data_module_of_batches_says_which():
    def identity(source):
        return DataModule(source).identity()

    assert identity(LIST) == identity([batch(i) for i in range(4)])
    assert identity(LIST)["class"] == "DataModule" and identity(LIST)["train"]["batches"] == 4
    assert identity(LIST)["train"]["arrays"] == {"batch[0]": "float32[3, 2]", "batch[1]": "int8[1, 2]"}
    assert identity([batch(7), *LIST[1:]]) != identity(LIST), "other content"
    assert identity(LIST[:3]) != identity(LIST), "fewer batches"
    one_shot = iter(LIST)
    assert identity(one_shot) == {"class": "DataModule"} and len([*one_shot]) == 4, "it was not read"


def test_the_task_a_run_changed_is_taken_back():
    data = DataModule(Addressed())
    data.task["lag"] = 1
    begin_task(data, None)
    change_task(data, {"lag": 5, "more": 1})
    begin_task(data, None)
    assert data.task == {"lag": 1}
    begin_task(data, {"lag": 7})
    assert data.task == {"lag": 7}
    data.task["lag"] = 3  # its owner's word
    begin_task(data, None)
    assert data.task == {"lag": 3}


def test_the_first_batch_leaves_the_position_alone():
    for kind in EXACT:
        iterator = DataIterator(EXACT[kind][0]())
        if kind.endswith("again") or iterator.kind == "iterator":
            continue
        iterator.take(3)
        state = iterator.state()
        assert ids([iterator.first()]) == [0] and iterator.state() == state and ids(iterator.take(1)) == [3]
    iterator = DataIterator(iter(LIST))
    iterator.take(1)
    with pytest.raises(DataError, match="cannot go back"):
        iterator.first()


class Shuffles:
    """Another order each time that it is started, as a loader with a generator that nobody seeded."""

    def __init__(self, rng, n=6):
        self.rng, self.n = rng, n

    def __iter__(self):
        return (batch(int(i)) for i in self.rng.permutation(self.n))

    def __len__(self):
        return self.n


def moved(source, other, n=4):
    """DataIterator n batches, and go on from there with another source."""
    iterator = DataIterator(source)
    iterator.take(n)
    again = DataIterator(other)
    again.restore(json.loads(json.dumps(iterator.mark())))
    return iterator, again


def test_a_replay_that_gives_other_batches_is_seen():
    iterator, again = moved(Shuffles(np.random.default_rng(0)), Shuffles(np.random.default_rng(1)))
    assert again.differs
    iterator, again = moved(Shuffles(np.random.default_rng(0)), Shuffles(np.random.default_rng(0)))
    assert not again.differs and ids(iterator.take(2)) == ids(again.take(2))


@pytest.mark.parametrize("make", [Addressed, lambda: LIST, Items, Again, Cursors, Loader])
def test_what_repeats_itself_does_not_differ(make):
    iterator, again = moved(make(), make(), 3)
    assert not again.differs and ids(iterator.take(3)) == ids(again.take(3))
    twice = DataIterator(make())
    twice.restore(again.mark())
    assert not twice.differs
    again = DataIterator(make())
    again.restore(iterator.state())  # of a release that kept no digest
    assert not again.differs


def test_a_list_in_another_order_is_seen():
    iterator, again = moved(LIST, [LIST[0], *LIST[:0:-1]], 2)
    assert again.differs and again.taken == iterator.taken == 2


def test_a_restored_position_keeps_its_digest_until_a_batch_is_consumed():
    iterator, again = moved(Loader(), Loader())
    assert again.mark() == iterator.mark() and "digest" in again.mark()
    assert "digest" not in DataIterator(Loader()).mark()
    iterator.clear()
    assert "digest" not in iterator.mark(), "the task has changed"
