"""CopyFigure: target against prediction of a few sequences, as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..period import Period
from .base import Callback
from .periods import steps_or_epochs

if TYPE_CHECKING:
    from .run import Run

COLUMNS = 40
"""Time steps a figure shows at most; more would be too small to read."""
INK, WRONG = "#1a1a1a", "#c1121f"


class CopyFigure(Callback):
    """Draws what a model recalls: digits of ``sequences`` lanes of one training batch, target above prediction.

    ``every``: steps or epochs between figures. For tasks with integer targets ``(T, B)`` and predictions that are
    scores of classes, ``(T, B, classes)``, or classes, ``(T, B)``. The figure reaches loggers under ``recall``.
    Raises ValueError for bad arguments and for batches whose targets are not such.

    >>> callbacks = [CopyFigure(every=500), TensorBoard()]
    """

    rank = "produce"

    def __init__(self, every: int | str | Period, sequences: int = 4):
        self.probe_every = steps_or_epochs(every, "CopyFigure")
        if isinstance(sequences, bool) or not isinstance(sequences, int) or sequences < 1:
            raise ValueError(f"CopyFigure: sequences is {sequences!r}; expected a whole number, 1 or more")
        self.sequences = sequences

    def probe(self, module, learner, phases) -> dict[str, Any]:
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
    """A matplotlib figure of two integer arrays ``(T, n)``: a pair of aligned rows a sequence, errors framed."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    target, prediction = np.asarray(target), np.asarray(prediction)
    right, total = int((target == prediction).sum()), target.size
    time, n = target.shape
    shown = min(time, COLUMNS)
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    # An opaque background of its own, so that the figure reads the same on a light and on a dark page.
    figure = Figure(figsize=(1.6 + 0.4 * max(shown, 10), 0.9 + 1.1 * n), dpi=100, facecolor="white", layout="tight")
    axes = figure.subplots(n, 1, squeeze=False)[:, 0]
    for lane, ax in enumerate(axes):
        wrong = target[:, lane] != prediction[:, lane]
        for row, digits in enumerate((target[:shown, lane], prediction[:shown, lane])):
            for t, digit in enumerate(digits):
                # tab20 alternates strong and light tones: the light ones carry dark text well.
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
        ax.set_title(f"sequence {lane}: {int(wrong.sum())} wrong", loc="left", fontsize=9, color=INK)
    cut = f", first {shown} of {time} time steps" if shown < time else ""
    figure.suptitle(f"recall at step {step}: {right} of {total} right{cut}", fontsize=11, color=INK)
    return figure
