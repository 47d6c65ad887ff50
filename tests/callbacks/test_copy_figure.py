from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jaxtrain.callbacks import CopyFigure
from jaxtrain.callbacks.base import Callback
from jaxtrain.callbacks.copy_figure import WRONG, draw
from jaxtrain.core.module import Phases
from jaxtrain.period import Period

TARGETS = np.arange(15, dtype=np.int32).reshape(3, 5) % 4


def probe(callback, targets, predict):
    phases = Phases(None, jnp.zeros((3, 5, 2)), targets)
    return jax.jit(lambda phases: callback.probe(None, SimpleNamespace(predict=predict), phases))(phases)


def test_the_probe_gives_the_most_likely_digits_of_the_first_sequences():
    values = probe(CopyFigure(10, sequences=2), TARGETS, lambda phases: jax.nn.one_hot(phases.targets, 4))
    np.testing.assert_array_equal(values["target"], TARGETS[:, :2])
    np.testing.assert_array_equal(values["prediction"], TARGETS[:, :2])


def test_predictions_may_be_classes_and_a_batch_smaller_than_asked():
    values = probe(CopyFigure(10, sequences=8), TARGETS, lambda phases: phases.targets + 1)
    np.testing.assert_array_equal(values["prediction"], TARGETS + 1)


def test_the_figure_reaches_the_loggers_with_its_errors_framed(make_run):
    seen = []

    class Logger(Callback):
        def on_figure(self, run, tag, figure):
            seen.append((run.step, tag, figure))

    callback = CopyFigure("1ep", sequences=2)
    run = make_run(callback, Logger(), restored=30)
    prediction = TARGETS[:, :2].copy()
    prediction[1, 0] = 9
    run.callbacks("on_probe", run, {"target": TARGETS[:, :2], "prediction": prediction})
    ((step, tag, figure),) = seen
    assert (step, tag, type(figure)) == (30, "recall", Figure)
    assert figure._suptitle.get_text() == "recall at step 30: 5 of 6 right"
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == [*map(str, TARGETS[:, 0]), *map(str, prediction[:, 0])]
    frames = [patch.get_xy() for patch in first.patches if to_hex(patch.get_edgecolor()) == WRONG]
    assert np.floor(frames).tolist() == [[1, 1]]
    assert not [patch for patch in second.patches if to_hex(patch.get_edgecolor()) == WRONG]
    assert callback.probe_every == Period(1, "epoch")


def test_a_long_sequence_is_cut_and_says_so():
    figure = draw(np.zeros((100, 1), int), np.ones((100, 1), int), 5)
    assert len(figure.axes[0].texts) == 80
    assert figure._suptitle.get_text() == "recall at step 5: 0 of 100 right, first 40 of 100 time steps"


@pytest.mark.parametrize("targets", [None, np.zeros((3, 5), np.float32), np.zeros((3, 5, 1), np.int32)])
def test_targets_that_are_no_digits_are_refused(targets):
    with pytest.raises(ValueError, match=r"CopyFigure: targets are .*expected one array of integers \(T, B\)"):
        probe(CopyFigure(10), targets, lambda phases: phases.inputs)


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"CopyFigure: predictions are \(3,\); expected \(3, 5\)"):
        probe(CopyFigure(10), TARGETS, lambda phases: jnp.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((None,), "every=None"), (("10min",), "every='10min'"), ((10, 0), "sequences is 0"), ((0,), "every=0")],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        CopyFigure(*arguments)
