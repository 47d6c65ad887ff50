"""Feed and DataModule: every kind of source, exact positions, and what is said about bad data."""

import json
import logging
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrain.data import DataEnded, DataError, DataModule, Feed, as_data


def batch(i, size=2):
    """A time-major (inputs, targets) that says its number."""
    return np.full((3, size), i, np.float32), np.full((1, size), i, np.int8)


def ids(batches):
    return [int(x[0, 0]) for x, _ in batches]


class Addressed:
    def batch(self, step):
        return batch(step)


class AddressedEpoch(Addressed):
    def __len__(self):
        return 4


class Again:
    """Starts again at its end; each epoch goes on where the one before ended, so an exact replay needs them all."""

    def __init__(self, n=4, short=False):
        self.n, self.short, self.epoch = n, short, -1

    def __iter__(self):
        self.epoch += 1
        for i in range(self.n):
            yield batch(10 * self.epoch + i)
        if self.short:
            yield batch(99, size=1)


class Cursor:
    """An iterator with a position (as grain's): bytes, which JSON does not have."""

    def __init__(self, n):
        self.n, self.i = n, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.i == self.n:
            raise StopIteration
        self.i += 1
        return batch(self.i - 1)

    def get_state(self):
        return str(self.i).encode()

    def set_state(self, state):
        self.i = int(state.decode())


class Cursors:
    def __init__(self, n=4):
        self.n = n

    def __iter__(self):
        return Cursor(self.n)


class Loader:
    """State on the iterable (as torchdata's): the live dict itself, with what JSON does not have; order by epoch."""

    def __init__(self, n=4, short=False):
        self.n, self.short = n, short
        self.live = {"epoch": 0, "i": 0, "rng": np.arange(3), "key": (1, b"x"), 7: None}

    def __iter__(self):
        while self.live["i"] < self.n:
            self.live["i"] += 1
            yield batch(10 * self.live["epoch"] + self.live["i"] - 1)
        if self.short:
            yield batch(99, size=1)
        self.live["i"] = 0
        self.live["epoch"] += 1

    def state_dict(self):
        return self.live

    def load_state_dict(self, state):
        assert isinstance(state["key"], tuple) and state["key"][1] == b"x" and state["rng"].tolist() == [0, 1, 2]
        self.live = state


class Items:
    """A data set with items and a length, and no __iter__."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.asked.append(i)
        if i >= 4:
            raise IndexError
        return batch(i)


LIST = [batch(i) for i in range(4)]
SHORT = [*LIST, batch(99, size=1)]
EXACT = {
    "addressed": (Addressed, range(100)),
    "addressed with an epoch": (AddressedEpoch, range(100)),
    "list": (lambda: LIST, [0, 1, 2, 3] * 10),
    "short list": (lambda: SHORT, [0, 1, 2, 3] * 10),
    "items": (Items, [0, 1, 2, 3] * 10),
    "again": (Again, [10 * e + i for e in range(9) for i in range(4)]),
    "short again": (lambda: Again(short=True), [10 * e + i for e in range(9) for i in range(4)]),
    "state on the iterator": (Cursors, [0, 1, 2, 3] * 10),
    "state on the iterable": (Loader, [10 * e + i for e in range(9) for i in range(4)]),
    "short, state on the iterable": (lambda: Loader(short=True), [10 * e + i for e in range(9) for i in range(4)]),
    "iterator": (lambda: (batch(i) for i in range(100)), range(100)),
    "iterator with a position": (lambda: Cursor(100), range(100)),
}


OPS = ["take", "prefetch", "example", "reopen", "clear"]


@pytest.mark.parametrize("kind", EXACT)
@given(ops=st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 3)), max_size=9))
@settings(deadline=None, max_examples=25)
def test_any_way_of_reading_gives_the_same_batches(kind, ops):
    """However it is split into takes, prefetched, saved and opened anew, the sequence of batches is one."""
    make, want = EXACT[kind]
    feed, got = Feed(make()), []
    for op, n in ops:
        if op == "take":
            got += ids(feed.take(n))
        elif op == "prefetch":
            before = feed.state()
            feed.prefetch(n)
            assert feed.state() == before and feed.ready >= n
        elif op == "example":
            assert ids([feed.example()]) == [want[len(got)]]
        elif op == "clear":
            if kind not in ("again", "short again", "iterator"):  # its epochs would be others; it cannot begin again
                feed.clear()
        else:
            state = json.loads(json.dumps(feed.state()))
            feed = Feed(make())
            feed.restore(state)
            assert feed.state() == state
        assert feed.taken == len(got)
    got += ids(feed.take(6))
    assert got == list(want[: len(got)])


@pytest.mark.parametrize("kind", EXACT)
def test_restore_goes_back(kind):
    make, want = EXACT[kind]
    feed = Feed(make())
    feed.take(2)
    state = feed.state()
    feed.take(1)
    feed.prefetch(2)
    if feed.kind == "iterator":
        with pytest.raises(DataError, match="one-shot iterator cannot go back to batch 2"):
            feed.restore(state)
    elif not kind.endswith("again"):
        feed.restore(state)
        assert ids(feed.take(2)) == list(want[2:4])


def test_a_reiterable_goes_back_within_its_epoch():
    class Same:
        def __iter__(self):
            return iter(LIST)

    feed = Feed(Same())
    assert feed.kind == "reiterable" and feed.length is None
    feed.take(6)
    state = feed.state()
    feed.take(3)
    feed.restore(state)
    assert feed.state() == state and ids(feed.take(3)) == [2, 3, 0]


def test_kinds_and_lengths():
    kinds = {k: (Feed(make()).kind, Feed(make()).length) for k, (make, _) in EXACT.items()}
    assert kinds == {
        "addressed": ("addressed", None),
        "addressed with an epoch": ("addressed", 4),
        "list": ("reiterable", 4),
        "short list": ("reiterable", 4),
        "items": ("reiterable", 4),
        "again": ("reiterable", None),
        "short again": ("reiterable", None),
        "state on the iterator": ("stateful", None),
        "state on the iterable": ("stateful", None),
        "short, state on the iterable": ("stateful", None),
        "iterator": ("iterator", None),
        "iterator with a position": ("stateful", None),
    }


def test_state_is_the_position_consumed():
    feed = Feed(LIST)
    assert feed.state() == {"kind": "reiterable", "batch": 0, "epoch": 0, "index": 0}
    feed.take(6)
    feed.prefetch(3)
    assert feed.state() == {"kind": "reiterable", "batch": 6, "epoch": 1, "index": 2}
    assert Feed(Addressed()).state() == {"kind": "addressed", "batch": 0}


def test_a_list_is_indexed_on_restore():
    items = Items()
    feed = Feed(items)
    items.asked.clear()
    feed.restore({"kind": "reiterable", "batch": 4002, "epoch": 1000, "index": 2})
    assert ids(feed.take(1)) == [2] and items.asked == [2]


def test_an_epoch_of_another_length_is_refused():
    with pytest.raises(DataError, match="does not fit an epoch of 4 batches"):
        Feed(LIST).restore({"kind": "reiterable", "batch": 7, "epoch": 1, "index": 0})


def test_a_position_of_another_kind_is_refused():
    with pytest.raises(DataError, match="'addressed', this one is 'reiterable'"):
        Feed(LIST).restore(Feed(Addressed()).state())


def test_replay_is_logged(caplog):
    with caplog.at_level(logging.INFO, "jaxtrain"):
        Feed(LIST).restore({"kind": "reiterable", "batch": 6, "epoch": 1, "index": 2})
        assert not caplog.messages
        Feed(Again()).restore({"kind": "reiterable", "batch": 6, "epoch": 1, "index": 2})
    assert caplog.messages == ["train data: replaying 6 batches to reach the saved position"]


def test_an_iterator_too_short_for_its_position():
    with pytest.raises(DataEnded, match="^train data: ended after 4 batches"):
        Feed(iter(LIST)).restore({"kind": "iterator", "batch": 5})


def test_a_short_position_survives_a_restore_on_the_short_batch():
    """The batch that comes next is the short one: it is dropped, not taken for the example."""
    for make in (Loader, Again):
        feed = Feed(make(short=True))
        feed.take(4)
        other = Feed(make(short=True))
        other.restore(json.loads(json.dumps(feed.state())))
        assert ids(other.take(1)) == [10]


def test_the_short_last_batch_is_dropped_with_one_word(caplog):
    with caplog.at_level(logging.INFO, "jaxtrain"):
        Feed(SHORT).take(12)
        Feed(Again(short=True)).take(12)
    assert [m.split(";")[0] for m in caplog.messages] == ["train data: the short last batch of an epoch is dropped"] * 2


def test_a_counted_short_batch_is_spoken_of(caplog):
    class Counted(Again):
        def __len__(self):
            return 5

    feed = Feed(Counted(short=True))
    with caplog.at_level(logging.INFO, "jaxtrain"):
        assert feed.length == 5
        feed.take(6)
    assert "periods in epochs count it, 5 steps an epoch" in caplog.messages[0]


def test_a_short_batch_in_the_middle_is_an_error():
    for source in ([*SHORT, batch(5)], iter([*SHORT, batch(5)])):
        with pytest.raises(DataError, match=r"batch 4: leaf batch\[0\] has shape \(3, 1\), expected \(3, 2\)"):
            Feed(source).take(6)


def test_an_iterator_with_a_short_end_has_ended():
    feed = Feed(iter(SHORT))
    feed.take(4)
    with pytest.raises(DataEnded) as error:
        feed.take(1)
    assert error.value.batch == 4


def test_epochs_of_nothing_but_a_short_batch():
    class Shrinks:
        epoch = 0

        def __iter__(self):
            self.epoch += 1
            return iter(LIST if self.epoch == 1 else SHORT[-1:])

    with pytest.raises(DataError, match="batch 4: leaf"):
        Feed(Shrinks()).take(6)


X = np.zeros((3, 2), np.float32)
Y = np.zeros((1, 2), np.int8)
WRONG = {
    "shape": ((np.zeros((4, 2), np.float32), Y), r"leaf batch\[0\] has shape \(4, 2\), expected \(3, 2\)"),
    "lanes": ((np.zeros((3, 3), np.float32), Y), r"leaf batch\[0\] has shape \(3, 3\), expected \(3, 2\)"),
    "dtype": ((X, np.zeros((1, 2), np.int32)), r"leaf batch\[1\] has dtype int32, expected int8"),
    "tree": ({"x": X}, "is a tree .*'x'.*, expected"),
    "text": ((X, "word"), r"leaf batch\[1\] has dtype <U4; expected numbers"),
    "object": ((X, object()), r"leaf batch\[1\] has dtype object; expected numbers"),
    "ragged": ((X, [[1], [1, 2]]), r"leaf batch\[1\] is a list that numpy cannot read"),
    "empty": ((), "holds no array"),
    "large": ((X, np.full((1, 2), 2**40)), r"leaf batch\[1\] holds integers from 1099511627776 .*which int32 cannot"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_batch(what):
    wrong, message = WRONG[what]
    feed = Feed([batch(0), batch(1), wrong, batch(3)], name="val")
    feed.prefetch(4)
    assert feed.ready == 2
    with pytest.raises(DataError, match=f"^val data: batch 2:? {message}") as error:
        feed.take(3)
    assert "\n" not in str(error.value) and error.value.batch == 2
    assert feed.state()["batch"] == 0
    assert ids(feed.take(feed.ready)) == [0, 1]  # what was whole before it can still be used


def test_an_error_of_the_source_says_which_batch():
    def broken():
        yield batch(0)
        raise KeyError("disk")

    feed = Feed(broken())
    feed.prefetch(3)
    assert feed.ready == 1
    feed.take(1)
    with pytest.raises(KeyError, match="disk") as error:
        feed.take(1)
    assert error.value.__notes__ == ["while making batch 1 of the train data (counted from 0)"]


def test_a_last_item_that_cannot_be_read_is_found_at_once():
    class Bad(Items):
        def __getitem__(self, i):
            return batch(i) if i < 3 else {}[i]

    with pytest.raises(KeyError) as error:
        Feed(Bad())
    assert error.value.__notes__ == ["while making batch 3 of the train data (counted from 0)"]


def test_one_shot_iterators_end():
    feed = Feed(iter(LIST))
    feed.prefetch(8)
    assert ids(feed.take(3)) == [0, 1, 2]
    with pytest.raises(DataEnded, match="^train data: ended after 4 batches.*ask for fewer steps") as error:
        feed.take(2)
    assert error.value.batch == 4 and isinstance(error.value, DataError)
    assert feed.state() == {"kind": "iterator", "batch": 3}
    assert ids(feed.take(1)) == [3]
    with pytest.raises(DataEnded):
        Feed(Cursor(2)).take(3)


def test_an_addressed_source_may_end():
    class Ends:
        def batch(self, step):
            return next(iter([batch(step)] if step < 2 else []))

    with pytest.raises(DataEnded, match="ended after 2"):
        Feed(Ends()).take(3)


def test_an_iterable_that_does_not_start_again():
    class Once:
        def __init__(self):
            self.it = iter(LIST)

        def __iter__(self):
            return self.it

    with pytest.raises(DataError, match="started again at batch 4; __iter__ of Once must give a new iterator"):
        Feed(Once()).take(5)


@pytest.mark.parametrize("empty", [[], (), iter([]), Again(n=0), Loader(n=0)])
def test_empty(empty):
    with pytest.raises(DataError, match="^test data: holds no batch"):
        Feed(empty, "test").example()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "got a NoneType; expected batch"),
        (3, "got a int; expected"),
        ({"x": 1}, "got a dict"),
        ("text", "got a str"),
        (Addressed, "got the class Addressed.*call it first"),
        (lambda: iter(LIST), "got a function.*call it first"),
    ],
)
def test_no_source(source, message):
    with pytest.raises(DataError, match=message):
        Feed(source)


def test_batch_of_other_libraries_makes_batches():
    """HF datasets and grain have `batch(batch_size)`: that is no batch(step)."""

    class Other(list):
        def batch(self, batch_size, drop_remainder=False):
            raise AssertionError

    assert Feed(Other(LIST)).kind == "reiterable"


def test_leaves_become_numpy_of_jax_dtypes():
    seen = [np.zeros(2), np.arange(2), np.zeros(2, np.int8), np.float64(1), jnp.ones(2), [[1, 2], [3, 4]], 7, True]
    dtypes = ["float32", "int32", "int8", "float32", "float32", "int32", "int32", "bool"]
    leaves = Feed([{"x": seen, "none": None}]).example()["x"]
    assert [leaf.dtype.name for leaf in leaves] == dtypes
    assert all(type(leaf) is np.ndarray for leaf in leaves)
    with jax.enable_x64(True):
        assert Feed([np.zeros(2)]).example().dtype == np.float64


def test_a_buffer_filled_again_is_copied():
    def reuse():
        buffer = np.zeros((3, 2), np.float32)
        for i in range(4):
            buffer[:] = i
            yield buffer, buffer[:1]

    assert ids(Feed(reuse()).take(4)) == [0, 1, 2, 3]


def test_state_that_cannot_be_saved():
    class Odd:
        def state_dict(self):
            return {"a": [object()]}

        def load_state_dict(self, state): ...

        def __iter__(self):
            return iter(LIST)

    with pytest.raises(DataError, match=r"state of Odd\['a'\]\[0\] is a object and cannot be saved"):
        Feed(Odd())


def test_torch_state(monkeypatch):
    """A torch tensor in a loader's state (its generator) comes back as a tensor."""

    class Tensor:
        def __init__(self, value):
            self.value = value

        def numpy(self):
            return self.value

    class WithTensor(Loader):
        def state_dict(self):
            return {**self.live, "generator": Tensor(np.arange(5, dtype=np.uint8))}

        def load_state_dict(self, state):
            generator = state.pop("generator")
            assert isinstance(generator, Tensor) and generator.numpy().tolist() == [0, 1, 2, 3, 4]
            super().load_state_dict(state)

    torch = types.SimpleNamespace(Tensor=Tensor, from_numpy=Tensor)
    monkeypatch.setitem(sys.modules, "torch", torch)  # pyright: ignore[reportArgumentType]
    feed = Feed(WithTensor())
    feed.take(3)
    other = Feed(WithTensor())
    other.restore(json.loads(json.dumps(feed.state())))
    assert ids(other.take(2)) == [3, 10]


def test_clear_makes_what_was_prefetched_anew():
    class Task:
        lag = 3

        def batch(self, step):
            return np.full((self.lag, 2), step)

    source = Task()
    feed = Feed(source)
    feed.take(1)
    feed.prefetch(2)
    source.lag = 5
    assert feed.example().shape == (3, 2)
    feed.clear()
    assert feed.ready == 0 and feed.taken == 1
    assert feed.example().shape == (5, 2)
    assert [b[0, 0] for b in feed.take(2)] == [1, 2]


def test_clear_with_fewer_lanes_keeps_every_position():
    """A new batch size looks like a short last batch: to tell them apart reads on, and the saved position must not."""

    class Lanes(Loader):
        size = 2

        def __iter__(self):
            for inputs, targets in super().__iter__():
                yield inputs[:, : self.size], targets[:, : self.size]

    source = Lanes()
    feed = Feed(source)
    feed.take(1)
    source.size = 1
    feed.clear()
    got = feed.take(1)
    other = Feed(Lanes())
    other.restore(json.loads(json.dumps(feed.state())))
    assert got[0][0].shape == (3, 1)
    assert ids(got + feed.take(2)) == [1, 2, 3] and ids(other.take(2)) == [2, 3]


def test_clear_cannot_take_back_from_an_iterator():
    feed = Feed(iter(LIST))
    feed.prefetch(2)
    with pytest.raises(DataError, match="the task cannot change, for a one-shot iterator has made batches ahead"):
        feed.clear()
    assert ids(feed.take(3)) == [0, 1, 2]


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
    with pytest.raises(DataError, match="val data: given beside DataModule, which has its own"):
        as_data(module, SHORT)
    with pytest.raises(DataError, match="DataModule is a class; give an instance"):
        as_data(DataModule)
    with pytest.raises(DataError, match="got None"):
        as_data(None)
