"""Draws the figures of digits, vowels and mnist_1d, each in a light and a dark version.

python docs/figures/quick.py digits      # trains for some seconds
python docs/figures/quick.py vowels      # trains for some seconds
python docs/figures/quick.py mnist_1d    # reads docs/results/data/mnist_1d/trials.jsonl
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
from draw import COLORS, LINES, WIDTH, save
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.utils.compilation_cache import use_compilation_cache

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@functools.cache
def trained(name, **options):
    """A recipe that has been trained with seed 0: its Fit, module and data."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py")
    config = recipe.Config(progress=False, devices=1, **options)
    fit, module, data = recipe.make(config)
    fit.run(module, data)
    return fit, module, data


def confusion(axes, scores, labels, names):
    """Parts of each true class that are decided for each class, and their numbers."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, scores.argmax(-1)), 1)
    axes.imshow(np.sqrt(counts), cmap="cividis")
    axes.grid(False)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "black" if count > counts.max() / 4 else "white"
            axes.text(column, row, count, ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)


def digits(figure):
    """One test image, the spikes and summed scores for it; the confusion matrix of the test set."""
    fit, module, data = trained("digits", strategy="pp_prop")
    recorded = fit.record(module, data.test_data(), ["neurons.spike", "output"])
    images, labels = data.test_data()._data.read(np.arange(data.test_data()._data.length))
    spikes, outputs = recorded["neurons.spike"], recorded["output"]  # (N, T, neurons), (N, T, 10)
    rows = figure.add_gridspec(3, 2, height_ratios=(2, 2, 4))
    places = (rows[0, 0], rows[0, 1], rows[1, :], rows[2, :])
    image, raster, scores, decisions = (figure.add_subplot(place) for place in places)
    first = 3
    image.imshow(16 * images[first].reshape(8, 8), cmap="gray")
    image.grid(False)
    image.set(title=f"a test image: {labels[first]}", xlabel="pixels", ylabel="pixels")
    at, neuron = np.nonzero(spikes[first])
    raster.plot(at, neuron, "|", color=COLORS["bptt"], markersize=3)
    raster.set(title="spikes of the network", xlabel="time (ms)", ylabel="neuron")
    total = np.cumsum(outputs[first], 0)
    lines(scores, total, labels[first])
    scores.set(title=f"summed scores, thick: that of {labels[first]}", xlabel="time (ms)", ylabel="score")
    confusion(decisions, outputs.sum(1), labels, range(10))
    decisions.set(title=f"decisions on {len(labels)} test images", xlabel="decided", ylabel="digit")


def lines(axes, values, own):
    """A line for each class; that of the true class is thick."""
    for number, line in enumerate(values.T):
        style = {"color": COLORS["drtrl"], "linewidth": 2, "zorder": 3} if number == own else {"color": "#999999"}
        axes.plot(line, **{"linewidth": 1, **style})


def vowels(figure):
    """One test utterance, the probabilities while it is spoken; the confusion matrix of the test set."""
    fit, module, data = trained("vowels", strategy="drtrl", all_data=True)
    source = data.test_data()
    pairs = [source._data.read(row) for row in range(source._data.length)]
    labels = np.array([label for _, label in pairs])
    scores = [one["output"] for one in fit.record(module, source, ["output"])]
    frames, decision, decisions = figure.subplots(3, 1, height_ratios=(2, 2, 4))
    first = 0
    shown = frames.imshow(pairs[first][0].T, cmap="cividis", aspect="auto", origin="lower")
    frames.grid(False)
    figure.colorbar(shown, ax=frames, label="standard deviations")
    frames.set(title="a test utterance of speaker 1", xlabel="frame", ylabel="LPC cepstrum\ncoefficient")
    frames.yaxis.set_major_locator(MaxNLocator(integer=True))
    scaled = np.exp(scores[first] - scores[first].max(-1, keepdims=True))
    lines(decision, scaled / scaled.sum(-1, keepdims=True), labels[first])
    decision.set(title="decision so far, thick: speaker 1", xlabel="frame", ylabel="probability")
    for axes in (frames, decision):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    confusion(decisions, np.stack([one[-1] for one in scores]), labels, range(1, 10))
    decisions.set(title=f"decisions on {len(labels)} test utterances", xlabel="decided", ylabel="speaker")


def mnist_1d(figure):
    """Validation accuracy over training of five seeds, beside published test accuracies."""
    lines = (ROOT / "docs/results/data/mnist_1d/trials.jsonl").read_text().splitlines()
    trials, axes = [json.loads(line) for line in lines], figure.add_subplot()
    for strategy in dict.fromkeys(trial["strategy"] for trial in trials):
        curves = [np.array(trial["curve"]) for trial in trials if trial["strategy"] == strategy]
        values = 100 * np.array([curve[:, 2] for curve in curves])
        color, style = COLORS[strategy], LINES.get(strategy, "-")
        axes.plot(curves[0][:, 0], np.median(values, 0), style, color=color, label=strategy)
        axes.fill_between(curves[0][:, 0], values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
    published = {"human": 96, "GRU": 91, "MLP": 68, "logistic\nregression": 32}
    for value in published.values():
        axes.axhline(value, color="#999999", linewidth=1, linestyle=":")
    right = axes.secondary_yaxis("right")
    right.set_yticks([*published.values()], [*published])
    right.set_ylabel("published, test set (dotted)")
    axes.set(xlabel="train steps of 100 sequences", ylabel="validation accuracy (%)", ylim=(0, 100))
    axes.legend(frameon=False, loc="center right", title="five seeds")


DRAWN = {"digits": (digits, 8), "vowels": (vowels, 8.5), "mnist_1d": (mnist_1d, 3.6)}
"""The function of every figure, and its height in inches."""


def drawn(name):
    draw, height = DRAWN[name]
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    draw(figure)
    return figure


def main(names):
    if not names or not {*names} <= {*DRAWN}:
        return f"error: expected one or more of {', '.join(DRAWN)}"
    use_compilation_cache()
    for name in names:
        save(name, functools.partial(drawn, name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
