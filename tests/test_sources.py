"""Kinds of sources, and what is said about bad ones."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.data.iterator import DataIterator
from jaxtrain.errors import DataEnded, DataError
from tests.batches import EXACT, LIST, Addressed, Again, Cursor, Items, Loader, batch, ids


def test_kinds_and_lengths():
    kinds = {k: (DataIterator(make()).kind, DataIterator(make()).length) for k, (make, _) in EXACT.items()}
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


X = np.zeros((3, 2), np.float32)
Y = np.zeros((1, 2), np.int8)
WRONG = {
    "shape": ((np.zeros((4, 2), np.float32), Y), r"leaf batch\[0\] has shape \(4, 2\), expected \(3, 2\)"),
    "sequences": ((np.zeros((3, 3), np.float32), Y), r"leaf batch\[0\] has shape \(3, 3\), expected \(3, 2\)"),
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
    iterator = DataIterator([batch(0), batch(1), wrong, batch(3)], name="val")
    iterator.prefetch(4)
    assert iterator.ready == 2
    with pytest.raises(DataError, match=f"^val data: batch 2:? {message}") as error:
        iterator.take(3)
    assert "\n" not in str(error.value) and error.value.batch == 2
    assert iterator.state()["batch"] == 0
    assert ids(iterator.take(iterator.ready)) == [0, 1]  # what was whole before it can still be used


def test_an_error_of_the_source_says_which_batch():
    def broken():
        yield batch(0)
        raise KeyError("disk")

    iterator = DataIterator(broken())
    iterator.prefetch(3)
    assert iterator.ready == 1
    iterator.take(1)
    with pytest.raises(KeyError, match="disk") as error:
        iterator.take(1)
    assert error.value.__notes__ == ["while making batch 1 of the train data (counted from 0)"]


def test_a_last_item_that_cannot_be_read_is_found_at_once():
    class Bad(Items):
        def __getitem__(self, i):
            return batch(i) if i < 3 else {}[i]

    with pytest.raises(KeyError) as error:
        DataIterator(Bad())
    assert error.value.__notes__ == ["while making batch 3 of the train data (counted from 0)"]


def test_one_shot_iterators_end():
    iterator = DataIterator(iter(LIST))
    iterator.prefetch(8)
    assert ids(iterator.take(3)) == [0, 1, 2]
    with pytest.raises(DataEnded, match="^train data: ended after 4 batches.*ask for fewer steps") as error:
        iterator.take(2)
    assert error.value.batch == 4 and isinstance(error.value, DataError)
    assert iterator.state() == {"kind": "iterator", "batch": 3}
    assert ids(iterator.take(1)) == [3]
    with pytest.raises(DataEnded):
        DataIterator(Cursor(2)).take(3)


def test_an_addressed_source_may_end():
    class Ends:
        def batch(self, step):
            return next(iter([batch(step)] if step < 2 else []))

    with pytest.raises(DataEnded, match="ended after 2"):
        DataIterator(Ends()).take(3)


def test_an_iterable_that_does_not_start_again():
    class Once:
        def __init__(self):
            self.it = iter(LIST)

        def __iter__(self):
            return self.it

    with pytest.raises(DataError, match="started again at batch 4; __iter__ of Once must give a new iterator"):
        DataIterator(Once()).take(5)


@pytest.mark.parametrize("empty", [[], (), iter([]), Again(n=0), Loader(n=0)])
def test_empty(empty):
    with pytest.raises(DataError, match="^test data: holds no batch"):
        DataIterator(empty, "test").example()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "got an object of type NoneType; expected batch"),
        (3, "got an object of type int; expected"),
        ({"x": 1}, "got an object of type dict"),
        ("text", "got an object of type str"),
        (Addressed, "got the class Addressed.*call it first"),
        (lambda: iter(LIST), "got an object of type function.*call it first"),
    ],
)
def test_no_source(source, message):
    with pytest.raises(DataError, match=message):
        DataIterator(source)


def test_batch_of_other_libraries_makes_batches():
    """HF datasets and grain have `batch(batch_size)`: that is no batch(step)."""

    class Other(list):
        def batch(self, batch_size, drop_remainder=False):
            raise AssertionError

    assert DataIterator(Other(LIST)).kind == "reiterable"


def test_leaves_become_numpy_of_jax_dtypes():
    seen = [np.zeros(2), np.arange(2), np.zeros(2, np.int8), np.float64(1), jnp.ones(2), [[1, 2], [3, 4]], 7, True]
    dtypes = ["float32", "int32", "int8", "float32", "float32", "int32", "int32", "bool"]
    leaves = DataIterator([{"x": seen, "none": None}]).example()["x"]
    assert [leaf.dtype.name for leaf in leaves] == dtypes
    assert all(type(leaf) is np.ndarray for leaf in leaves)
    with jax.enable_x64(True):
        assert DataIterator([np.zeros(2)]).example().dtype == np.float64


def test_a_buffer_filled_again_is_copied():
    def reuse():
        buffer = np.zeros((3, 2), np.float32)
        for i in range(4):
            buffer[:] = i
            yield buffer, buffer[:1]

    assert ids(DataIterator(reuse()).take(4)) == [0, 1, 2, 3]


def test_state_that_cannot_be_saved():
    class Odd:
        def state_dict(self):
            return {"a": [object()]}

        def load_state_dict(self, state): ...

        def __iter__(self):
            return iter(LIST)

    with pytest.raises(DataError, match=r"state of Odd\['a'\]\[0\] is a object and cannot be saved"):
        DataIterator(Odd())


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
    iterator = DataIterator(WithTensor())
    iterator.take(3)
    other = DataIterator(WithTensor())
    other.restore(json.loads(json.dumps(iterator.state())))
    assert ids(other.take(2)) == [3, 10]
