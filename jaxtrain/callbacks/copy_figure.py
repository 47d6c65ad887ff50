"""CopyFigure: a figure of targets and predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..period import Period
from .arguments import COUNT, expect, is_count, steps_or_epochs
from .base import Callback

if TYPE_CHECKING:
    from ..core.module import Module, Phases
    from ..strategies.base import Learner
    from .run import Run

COLUMNS = 40
"""Largest number of time steps in a figure. More would be too small to read."""
INK, WRONG = "#1a1a1a", "#c1121f"


class CopyFigure(Callback):
    """Draws the targets and the predictions of a few sequences of one training batch, one above the other.

    For tasks with integer targets ``(T, B)``, and predictions that are class scores ``(T, B, classes)`` or classes
    ``(T, B)``. The figure has the tag ``recall``.

    >>> callbacks = [CopyFigure(every=500), TensorBoard()]

    Args:
        every: Steps or epochs between figures.
        sequences: Number of sequences of the batch to draw.

    Raises:
        ValueError: An argument is invalid, or targets and predictions do not have these shapes.
    """

    rank = "produce"

    def __init__(self, every: int | str | Period, sequences: int = 4):
        self.probe_every = steps_or_epochs(every, "CopyFigure")
        expect(is_count(sequences), "CopyFigure", "sequences", sequences, COUNT)
        self.sequences = sequences

    def probe(self, module: Module, learner: Learner, phases: Phases) -> dict[str, Any]:
        targets = phases.targets
        if getattr(targets, "ndim", None) != 2 or targets.dtype.kind not in "iu":
            has = getattr(targets, "shape", type(targets).__name__), getattr(targets, "dtype", "no dtype")
            raise ValueError(f"CopyFigure: targets are {has[0]}, {has[1]}; expected one array of integers (T, B)")
        predicted = learner.predict(phases)
        if getattr(predicted, "ndim", None) == 3:
            predicted = predicted.argmax(-1)
        if getattr(predicted, "shape", None) != targets.shape:
            has = getattr(predicted, "shape", type(predicted).__name__)
            raise ValueError(f"CopyFigure: predictions are {has}; expected {targets.shape}, or classes after it")
        return {"target": targets[:, : self.sequences], "prediction": predicted[:, : self.sequences]}

    def on_probe(self, run: Run, values: Any) -> None:
        run.figure("recall", draw(values["target"], values["prediction"], run.step))


def draw(target: Any, prediction: Any, step: int) -> Any:
    """A matplotlib figure of two integer arrays ``(T, n)``: two lines per sequence, with frames around errors."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    target, prediction = np.asarray(target), np.asarray(prediction)
    right, total = int((target == prediction).sum()), target.size
    time, n = target.shape
    shown = min(time, COLUMNS)
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    # An opaque background makes the figure readable on light and dark pages.
    figure = Figure(figsize=(1.6 + 0.4 * max(shown, 10), 0.9 + 1.1 * n), dpi=100, facecolor="white", layout="tight")
    axes = figure.subplots(n, 1, squeeze=False)[:, 0]
    for index, ax in enumerate(axes):
        wrong = target[:, index] != prediction[:, index]
        for row, digits in enumerate((target[:shown, index], prediction[:shown, index])):
            for t, digit in enumerate(digits):
                # tab20 alternates strong and light tones. Dark text is readable on the light ones.
                colour = colours[(2 * int(digit) + 1) % 20]
                ax.add_patch(Rectangle((t, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
                bad = row == 1 and wrong[t]
                weight = "bold" if bad else "normal"
                ax.text(t + 0.5, row + 0.5, str(digit), ha="center", va="center", color=INK, weight=weight)
                if bad:
                    frame = Rectangle((t + 0.07, row + 0.07), 0.86, 0.86, fill=False, edgecolor=WRONG, linewidth=2.5)
                    ax.add_patch(frame)
        ax.set(xlim=(0, shown), ylim=(2, 0), aspect="equal", xticks=[])
        ax.set_yticks([0.5, 1.5], ["target", "prediction"], fontsize=9, color=INK)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(f"sequence {index}: {int(wrong.sum())} wrong", loc="left", fontsize=9, color=INK)
    extent = f", first {shown} of {time} time steps" if shown < time else ""
    figure.suptitle(f"recall at step {step}: {right} of {total} right{extent}", fontsize=11, color=INK)
    return figure
