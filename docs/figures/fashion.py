"""Draws fashion.png: every rule on rate-coded Fashion-MNIST, beside the published row of the same rule.

python docs/figures/fashion.py

It reads docs/results/data/fashion/trials.jsonl, which `jaxtrain compare` writes (docs/results/fashion.md).
"""

import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
TRIALS = HERE.parent / "results" / "data" / "fashion" / "trials.jsonl"
NAMES = {
    "bptt": "BPTT", "drtrl": "D-RTRL", "pp_prop": "pp_prop (ES-D-RTRL)", "eprop": "e-prop", "ostl_recurrent": "OSTL",
    "readout_only": "readout only",
}  # fmt: skip
COLORS = dict(zip(NAMES, ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f"), strict=True))
"""The palette of Okabe and Ito, which people with any kind of colour vision can tell apart."""
MARKS = dict(zip(NAMES, "sovD^x", strict=True))
PUBLISHED = {"bptt": 0.828, "pp_prop": 0.678, "eprop": 0.855, "ostl_recurrent": 0.832}
"""NeuroTrain's recurrent network: best of 10 trials by test accuracy, one seed, 20 epochs (arXiv 2605.15058)."""


def main() -> None:
    trials = [json.loads(line) for line in TRIALS.read_text().splitlines()]
    trials = [trial for trial in trials if not trial["tuning"] and not trial["failed"] and trial["test"]]
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), width_ratios=(1.15, 1))
    for row, name in enumerate(NAMES):
        own = [trial for trial in trials if trial["strategy"] == name]
        if not own:
            continue
        look = {"color": COLORS[name], "marker": MARKS[name], "markersize": 7}
        epochs = range(1, 1 + min(len(trial["curve"]) for trial in own))
        medians = [statistics.median(trial["curve"][epoch - 1][2] for trial in own) for epoch in epochs]
        left.plot(epochs, medians, label=NAMES[name], **look)
        scores = [trial["test"]["accuracy"] for trial in own]
        right.plot(scores, [row] * len(scores), linestyle="none", **look)
        right.annotate(f"{statistics.median(scores):.3f}", (max(scores), row), (8, -4), textcoords="offset points")
        if name in PUBLISHED:
            right.plot(PUBLISHED[name], row, "o", markersize=9, markerfacecolor="white", color=COLORS[name])
            right.annotate(f"{PUBLISHED[name]:.3f}", (PUBLISHED[name], row), (8, -4), textcoords="offset points")
    left.set(xlabel="epoch", ylabel="validation accuracy")
    left.grid(alpha=0.25)
    left.legend(frameon=False, loc="lower right")
    right.set(xlabel="test accuracy (white: published, one seed)", ylim=(len(NAMES) - 0.5, -0.5), xlim=(0.66, 0.92))
    right.set_yticks(range(len(NAMES)), NAMES.values())
    right.grid(alpha=0.25, axis="x")
    figure.suptitle("Rate-coded Fashion-MNIST, 10 time steps, 256 recurrent LIF neurons")
    figure.tight_layout()
    figure.savefig(HERE / "fashion.png", dpi=100)


if __name__ == "__main__":
    main()
