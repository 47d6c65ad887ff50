"""Draws fashion-light.png and fashion-dark.png: spikes of a trained network, and every rule beside the published row.

python recipes/fashion.py --preset neurotrain --epochs 2 --strategy eprop --run-dir checkpoints/figure
python docs/figures/fashion.py checkpoints/figure docs/results/data/fashion/trials.jsonl
"""

import functools
import json
import statistics
import sys
from pathlib import Path

from draw import COLORS, WIDTH, save
from matplotlib.figure import Figure

import jaxtrain
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.datasets import ArrayDataset

HERE = Path(__file__).parent
NAMES = {
    "bptt": "BPTT", "drtrl": "D-RTRL", "pp_prop": "pp_prop (ES-D-RTRL)", "eprop": "e-prop", "ostl_recurrent": "OSTL",
    "readout_only": "readout only",
}  # fmt: skip
MARKS = dict(zip(NAMES, "sovD^x", strict=True))
PUBLISHED = {"bptt": 0.828, "pp_prop": 0.678, "eprop": 0.855, "ostl_recurrent": 0.832}
"""NeuroTrain's recurrent network: best of 10 trials by test accuracy, one seed, 20 epochs (arXiv 2605.15058)."""


NEURONS = 60
"""Neurons whose spikes are shown."""
CLOTHES = "T-shirt,trousers,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(",")


@functools.cache
def spikes(run_dir: Path, count: int):
    """Images of the validation set, their classes, spikes ``(N, T, units)``, and summed scores ``(N, 10)``."""
    recipe = load_recipe(HERE.parents[1] / "recipes" / "fashion.py")
    saved = json.loads((run_dir / "config.json").read_text())["config"]
    config = recipe.Config(**{**saved, "progress": False})
    fit, module, _ = recipe.make(config)
    jaxtrain.load(run_dir, module)
    x, y, *_ = recipe.load(config.data)
    shown = ArrayDataset(x[:count], y[:count], batch_size=count, encoder=recipe.encoder_of(config)[0], shuffle=False)
    recorded = fit.record(module, shown, ["neurons.spike", "output"])
    return x[:count], y[:count], recorded["neurons.spike"], recorded["output"].sum(1)


def draw_scores(axes, trials: Path) -> None:
    """A row per rule: the test accuracy of every seed, and the published one as a circle."""
    done = [trial for line in trials.read_text().splitlines() if not (trial := json.loads(line))["failed"]]
    done = [trial for trial in done if trial["test"]]
    epochs, seeds = max(len(trial["curve"]) for trial in done), len({trial["seed"] for trial in done})
    for row, (name, label) in enumerate(NAMES.items()):
        own = [trial["test"]["accuracy"] for trial in done if trial["strategy"] == name]
        median, published = statistics.median(own), PUBLISHED.get(name)
        axes.plot(own, [row] * len(own), linestyle="none", color=COLORS[name], marker=MARKS[name], markersize=8)
        text = f"{label}: {median:.4f}" + (f"   (published {published:.3f})" if published else "")
        axes.text(0.665, row - 0.25, text)
        if published:
            axes.plot(published, row, "o", markersize=9, markerfacecolor="none", color=COLORS[name])
    axes.set(
        xlabel="fraction of the test images; circle: published",
        ylim=(len(NAMES) - 0.6, -0.7),
        xlim=(0.66, 0.9),
        yticks=[],
    )
    axes.set_title(f"test accuracy after {epochs} epochs, {seeds} seed{'s' * (seeds > 1)}")
    axes.grid(False, axis="y")


def drawn(run_dir: Path, trials: Path) -> Figure:
    figure, count = Figure(figsize=(WIDTH, 8.5), layout="constrained"), 3
    grid = figure.add_gridspec(count + 1, 2, width_ratios=(1, 2.5), height_ratios=(1,) * count + (3,))
    for row, (image, label, fired, scores) in enumerate(zip(*spikes(run_dir, count), strict=True)):
        left, right = figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])
        left.imshow(image, cmap="gray")
        left.set(xticks=[], yticks=[], xlabel=CLOTHES[label])
        extent = (0.5, len(fired) + 0.5, 0.5, NEURONS + 0.5)
        right.imshow(
            fired[:, :NEURONS].T, cmap="cividis", aspect="auto", origin="lower", extent=extent, interpolation="nearest"
        )
        right.grid(False)
        right.set_title(f"decision: {CLOTHES[scores.argmax()]}", fontsize=10)
        right.set(ylabel="neuron", xlabel="time step" if row == count - 1 else "")
    draw_scores(figure.add_subplot(grid[count, :]), trials)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    save("fashion", functools.partial(drawn, *map(Path, sys.argv[1:])))
