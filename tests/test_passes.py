"""Whole passes over a source, for validation, tests and predictions."""

import numpy as np
import pytest

from jaxtrain.passes import Passes, one_pass
from jaxtrain.sources import DataError

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
    passes = Passes(source, "val")
    assert sizes(passes.once()) == [4, 4, 4, 2] == sizes(passes.once()), "every pass begins anew"
    assert sizes(passes.examples) == [4, 2], "both sizes are known beforehand"


def test_a_pass_needs_an_end_and_a_second_time():
    with pytest.raises(DataError, match="never ends; give it a __len__"):
        Passes(Endless(), "val")
    with pytest.raises(DataError, match="a one-shot iterator gives no second pass; give a list"):
        Passes(iter(WHOLE), "val")
    with pytest.raises(DataError):
        Passes([], "val")


def test_one_pass_takes_what_an_iterator_has_left():
    assert sizes(one_pass(iter([*WHOLE, SMALLER]), "predict")) == [4, 4, 4, 2]


def test_a_batch_of_another_kind_is_refused():
    passes = Passes([*WHOLE, np.zeros((5, 4), np.float32), WHOLE[0]], "val")
    with pytest.raises(DataError, match="batch 3"):
        list(passes.once())
