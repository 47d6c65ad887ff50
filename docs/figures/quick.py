"""Draws docs/figures/digits.png, vowels.png and mnist_1d.png.

python docs/figures/quick.py digits      # trains for some seconds
python docs/figures/quick.py vowels      # trains for some seconds
python docs/figures/quick.py mnist_1d    # reads docs/results/data/mnist_1d/trials.jsonl
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from jaxtrain.commands.compare.figures import COLORS, CONTROLS
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.output import new_figure, save_figure
from jaxtrain.utils.compilation_cache import use_compilation_cache

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


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
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "black" if count > counts.max() / 4 else "white"
            axes.text(column, row, count, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)


def digits(figure):
    """One test image, the spikes and summed scores for it; the confusion matrix of the test set."""
    fit, module, data = trained("digits", strategy="pp_prop")
    recorded = fit.record(module, data.test_data(), ["neurons.spike", "output"])
    images, labels = data.test_data()._data.read(np.arange(data.test_data()._data.length))
    spikes, outputs = recorded["neurons.spike"], recorded["output"]  # (N, T, neurons), (N, T, 10)
    axes = [figure.add_subplot(2, 2, place) for place in (1, 2, 3, 4)]
    first = 3
    axes[0].imshow(16 * images[first].reshape(8, 8), cmap="gray_r")
    axes[0].set_title(f"a test image: {labels[first]}", fontsize=10)
    axes[0].set_xlabel("pixels")
    axes[0].set_ylabel("pixels")
    at, neuron = np.nonzero(spikes[first])
    axes[1].plot(at, neuron, "|", color=COLORS[1], markersize=3)
    axes[1].set_title("spikes of the network", fontsize=10)
    axes[1].set_xlabel("time (ms)")
    axes[1].set_ylabel("neuron")
    total = np.cumsum(outputs[first], 0)
    for digit in range(10):
        own = digit == labels[first]
        axes[2].plot(total[:, digit], color=COLORS[0] if own else "0.7", linewidth=2 if own else 1, zorder=2 + own)
    axes[2].set_title(f"summed scores, thick: that of {labels[first]}", fontsize=10)
    axes[2].set_xlabel("time (ms)")
    axes[2].set_ylabel("score")
    confusion(axes[3], outputs.sum(1), labels, range(10))
    axes[3].set_title("decisions on 899 test images", fontsize=10)
    axes[3].set_xlabel("decided")
    axes[3].set_ylabel("digit")


def vowels(figure):
    """One test utterance, the probabilities while it is spoken; the confusion matrix of the test set."""
    fit, module, data = trained("vowels", strategy="drtrl", all_data=True)
    source = data.test_data()
    pairs = [source._data.read(row) for row in range(source._data.length)]
    labels = np.array([label for _, label in pairs])
    scores = [one["output"] for one in fit.record(module, source, ["output"])]
    middle, right = figure.add_subplot(2, 2, 3), figure.add_subplot(1, 2, 2)
    left = figure.add_subplot(2, 2, 1)
    first = 0
    shown = left.imshow(pairs[first][0].T, cmap="cividis", aspect="auto", origin="lower")
    figure.colorbar(shown, ax=left, label="standard deviations")
    left.set_title("a test utterance of speaker 1", fontsize=10)
    left.set_xlabel("frame")
    left.set_ylabel("LPC cepstrum coefficient")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    scaled = np.exp(scores[first] - scores[first].max(-1, keepdims=True))
    probability = scaled / scaled.sum(-1, keepdims=True)
    for speaker in range(9):
        own = speaker == labels[first]
        middle.plot(probability[:, speaker], color=COLORS[0] if own else "0.7", linewidth=2 if own else 1)
    middle.set_title("decision so far, thick: speaker 1", fontsize=10)
    middle.set_xlabel("frame")
    middle.set_ylabel("probability")
    middle.xaxis.set_major_locator(MaxNLocator(integer=True))
    confusion(right, np.stack([one[-1] for one in scores]), labels, range(1, 10))
    right.set_title("decisions on 370 test utterances", fontsize=10)
    right.set_xlabel("decided")
    right.set_ylabel("speaker")


def mnist_1d(figure):
    """Validation accuracy over training of five seeds, beside published test accuracies."""
    lines = (ROOT / "docs/results/data/mnist_1d/trials.jsonl").read_text().splitlines()
    trials, axes = [json.loads(line) for line in lines], figure.add_subplot()
    for strategy in dict.fromkeys(trial["strategy"] for trial in trials):
        curves = [np.array(trial["curve"]) for trial in trials if trial["strategy"] == strategy]
        values = 100 * np.array([curve[:, 2] for curve in curves])
        color = CONTROLS.get(strategy, COLORS[0])
        style = "--" if strategy == "bptt" else "-"
        axes.plot(curves[0][:, 0], np.median(values, 0), style, color=color, label=f"{strategy}, seeds: {len(curves)}")
        axes.fill_between(curves[0][:, 0], values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
    for name, value in (("human", 96), ("GRU", 91), ("MLP", 68), ("logistic regression", 32)):
        axes.axhline(value, color="0.4", linewidth=0.8, linestyle=":")
        axes.text(0, value + 0.6, f"{name}, published", fontsize=8, color="0.3")
    axes.set_xlabel("train steps of 100 sequences")
    axes.set_ylabel("accuracy (%): validation; dotted: published, test")
    axes.legend(frameon=False, fontsize=9)


DRAWN = {"digits": (digits, (8, 6.5)), "vowels": (vowels, (10, 5)), "mnist_1d": (mnist_1d, (7, 4.2))}


def main(names):
    if not names or not {*names} <= {*DRAWN}:
        return f"error: expected one or more of {', '.join(DRAWN)}"
    use_compilation_cache()
    for name in names:
        draw, size = DRAWN[name]
        figure = new_figure(*size)
        draw(figure)
        figure.tight_layout()
        save_figure(figure, HERE / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
