"""Complete passes over a source, for validation, tests and predictions."""

import logging

import numpy as np
import pytest

from jaxtrain.data.eval_loader import EvalLoader, alike, one_pass
from jaxtrain.data.iterator import DataIterator
from jaxtrain.data.sources import DataError
from tests.batches import EXACT, LIST, SHORT, Again, Cursor, Items, Loader, batch, ids

WHOLE = [np.full((3, 4), float(i), np.float32) for i in range(3)]
SMALLER = np.full((3, 2), 3.0, np.float32)  # axis 1 is the batch


class Addressed:
    def batch(self, step):
        return [*WHOLE, SMALLER][step]

    def __len__(self):
        return 4


class Endless:
    def batch(self, step):
        return WHOLE[0]


def sizes(batches):
    return [batch.shape[1] for batch in batches]


@pytest.mark.parametrize("source", [Addressed(), [*WHOLE, SMALLER]])
def test_a_short_last_batch_is_part_of_a_pass(source):
    loader = EvalLoader(source, "val")
    assert sizes(loader.once()) == [4, 4, 4, 2] == sizes(loader.once()), "every pass starts from the beginning"
    assert sizes(loader.examples) == [4, 2], "both sizes are known in advance"


def test_a_pass_needs_an_end_and_a_second_time():
    with pytest.raises(DataError, match="is endless; give it a __len__"):
        EvalLoader(Endless(), "val")
    with pytest.raises(DataError, match="a one-shot iterator cannot be read twice; give a list"):
        EvalLoader(iter(WHOLE), "val")
    with pytest.raises(DataError):
        EvalLoader([], "val")


def test_one_pass_takes_what_an_iterator_has_left():
    assert sizes(one_pass(iter([*WHOLE, SMALLER]), "predict")) == [4, 4, 4, 2]


def test_a_batch_of_another_kind_is_refused():
    loader = EvalLoader([*WHOLE, np.zeros((5, 4), np.float32), WHOLE[0]], "val")
    with pytest.raises(DataError, match="batch 3"):
        list(loader.once())


ENDING = ["addressed with an epoch", "list", "short list", "again", "short again", "items",
          "state on the iterator", "state on the iterable", "short, state on the iterable"]  # fmt: skip


@pytest.mark.parametrize("kind", ENDING)
def test_every_pass_is_whole(kind):
    loader = EvalLoader(EXACT[kind][0](), "val")
    want = [0, 1, 2, 3, *([9] if kind.startswith("short") else [])]
    for _ in range(3):
        assert [i % 10 for i in ids(loader.once())] == want


@pytest.mark.parametrize("taken_first", [0, 2])
def test_an_interrupted_pass_does_not_change_the_next(taken_first):
    loader = EvalLoader(LIST, "val")
    taken = loader.once()
    assert ids(next(taken) for _ in range(taken_first)) == [0, 1, 2, 3][:taken_first]
    assert ids(loader.once()) == [0, 1, 2, 3]


def test_a_source_with_one_place_is_left_where_it_was():
    source = Loader(short=True)
    before = DataIterator(source).state()
    loader = EvalLoader(source, "val")
    assert DataIterator(source).state() == before
    assert [i % 10 for i in ids(loader.once())] == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("source", [iter(LIST), (batch(i) for i in range(3)), Cursor(4)])
def test_a_one_shot_iterator_gives_one_pass(source):
    with pytest.raises(DataError, match="^val data: a one-shot iterator cannot be read twice; give a list"):
        EvalLoader(source, "val")
    assert ids(one_pass(source, "predict"))[0] == 0


@pytest.mark.parametrize("empty", [[], (), Again(n=0), Loader(n=0)])
def test_empty(empty):
    with pytest.raises(DataError, match="^val data: holds no batch"):
        EvalLoader(empty, "val")


def test_examples_are_the_sizes_known_beforehand():
    assert [x.shape for x, _ in EvalLoader(LIST, "val").examples] == [(3, 2)]
    assert [x.shape for x, _ in EvalLoader(SHORT, "val").examples] == [(3, 2), (3, 1)]
    assert [x.shape for x, _ in EvalLoader(Again(short=True), "val").examples] == [(3, 2)], "its end is not yet known"
    assert [x.shape for x, _ in EvalLoader(Items(), "val").examples] == [(3, 2)]


def test_a_size_that_was_not_known_is_spoken_of_once(caplog):
    loader = EvalLoader(Again(short=True), "val")
    with caplog.at_level(logging.INFO, "jaxtrain"):
        for _ in range(2):
            assert len([*loader.once()]) == 5
        assert len([*EvalLoader(SHORT, "val").once()]) == 5
    assert caplog.messages == ["val data: batch 4 is smaller than the first one; a program is compiled for it"]


@pytest.mark.parametrize("wrong", [(np.zeros((4, 2), np.float32), batch(0)[1]), batch(1, size=3)])
def test_a_batch_that_is_another(wrong):
    """Not merely smaller: refused where it is, wherever it can be seen beforehand at once."""
    with pytest.raises(DataError, match="^val data: batch 4: .*as in the first one; make all alike") as error:
        EvalLoader([*LIST, wrong], "val")
    assert error.value.batch == 4
    loader = EvalLoader([LIST[0], wrong, LIST[1]], "val")
    with pytest.raises(DataError, match="^val data: batch 1: "):
        [*loader.once()]
    with pytest.raises(DataError, match="^val data: batch 1: "):
        [*alike([LIST[0], wrong], "val")]


def test_what_a_source_raises_says_which_batch():
    class Broken(Items):
        def __getitem__(self, i):
            return batch(i) if i != 2 else {}[i]

    with pytest.raises(KeyError) as error:
        [*EvalLoader(Broken(), "val").once()]
    assert error.value.__notes__ == ["while making batch 2 of the val data (counted from 0)"]
