"""Draws fashion.png: spikes of a trained network for three images, and every rule beside the published row.

python recipes/fashion.py --preset neurotrain --epochs 2 --strategy eprop --run-dir checkpoints/figure
python docs/figures/fashion.py checkpoints/figure docs/results/data/fashion/trials.jsonl
"""

import json
import statistics
import sys
from pathlib import Path

import jaxtrain
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.output import new_figure, save_figure
from jaxtrain.datasets import ArrayDataset

HERE = Path(__file__).parent
NAMES = {
    "bptt": "BPTT", "drtrl": "D-RTRL", "pp_prop": "pp_prop (ES-D-RTRL)", "eprop": "e-prop", "ostl_recurrent": "OSTL",
    "readout_only": "readout only",
}  # fmt: skip
COLORS = dict(zip(NAMES, ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f"), strict=True))
"""The palette of Okabe and Ito, which people with any kind of colour vision can tell apart."""
MARKS = dict(zip(NAMES, "sovD^x", strict=True))
PUBLISHED = {"bptt": 0.828, "pp_prop": 0.678, "eprop": 0.855, "ostl_recurrent": 0.832}
"""NeuroTrain's recurrent network: best of 10 trials by test accuracy, one seed, 20 epochs (arXiv 2605.15058)."""


NEURONS = 60
"""Neurons whose spikes are shown."""
CLOTHES = "T-shirt,trousers,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(",")


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
        text = f"{label}: {median:.3f}" + (f"   (published {published:.3f})" if published else "")
        axes.text(0.665, row - 0.22, text, fontsize=11)
        if published:
            axes.plot(published, row, "o", markersize=9, markerfacecolor="white", color=COLORS[name])
    axes.set(
        xlabel="circle: published, 20 epochs, one seed", ylim=(len(NAMES) - 0.6, -0.7), xlim=(0.66, 0.9), yticks=[]
    )
    axes.set_title(f"test accuracy after {epochs} epochs, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    axes.grid(alpha=0.25, axis="x")


def main(run_dir: Path, trials: Path) -> None:
    figure, count = new_figure(10, 5), 3
    grid = figure.add_gridspec(count, 3, width_ratios=(1, 1.6, 3.2))
    for row, (image, label, fired, scores) in enumerate(zip(*spikes(run_dir, count), strict=True)):
        left, middle = figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])
        left.imshow(image, cmap="gray_r")
        left.set_xticks([])
        left.set_yticks([])
        left.set_xlabel(CLOTHES[label], fontsize=10)
        extent = (0.5, len(fired) + 0.5, 0.5, NEURONS + 0.5)
        middle.imshow(
            fired[:, :NEURONS].T, cmap="Blues", aspect="auto", origin="lower", extent=extent, interpolation="nearest"
        )
        middle.set_title(f"decision: {CLOTHES[scores.argmax()]}", fontsize=10)
        middle.set_ylabel("neuron", fontsize=9)
        middle.set_xlabel("time step" if row == count - 1 else "", fontsize=10)
    draw_scores(figure.add_subplot(grid[:, 2]), trials)
    figure.tight_layout()
    save_figure(figure, HERE / "fashion.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
