"""Draws figures from the numbers in data.json beside this file. All figures have a light and a dark version.

python docs/figures/draw.py                              # all of them
python docs/figures/draw.py front RULE=RUN_DIR ...       # take new numbers of one figure from runs with several seeds
python docs/figures/draw.py raster                       # or from the program of a page (raster, getting_started)

The docstrings of the functions name the commands that made the numbers.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

HERE = Path(__file__).parent
DATA = HERE / "data.json"
COLORS = {
    "drtrl": "#0072b2", "bptt": "#d55e00", "pp_prop": "#009e73", "eprop": "#cc79a7", "ostl_recurrent": "#e69f00",
    "tbptt": "#a07000", "control": "#808080", "readout_only": "#808080",
}  # fmt: skip
"""Colors of rules, the same in every figure. Readers with any kind of colour vision can tell them apart."""
LINES = {"bptt": "--", "tbptt": "--", "readout_only": "-.", "control": "-."}
INK = {"light": "#24292f", "dark": "#d7dae0"}
WIDTH = 5.2
"""Inches. A phone shows this width with letters of about 10 pixels."""


def band(axes: Any, curves: list[list[list[float]]], rule: str, label: str) -> None:
    """The median over seeds, with a band from the smallest to the largest. A curve is [[x, y], ...]."""
    at = np.unique([x for curve in curves for x, _ in curve])
    each = np.array([np.interp(at, *zip(*curve, strict=True), left=np.nan, right=np.nan) for curve in curves])
    known = ~np.isnan(each).any(0)
    style = {"color": COLORS[rule], "linestyle": LINES.get(rule, "-"), "linewidth": 1.8}
    axes.plot(at[known], np.median(each[:, known], 0), label=label, **style)
    axes.fill_between(at[known], each[:, known].min(0), each[:, known].max(0), color=COLORS[rule], alpha=0.2, lw=0)


def guessing(axes: Any, chance: float, label: str = "guessing") -> None:
    axes.axhline(chance, linestyle=":", linewidth=1.2, color="#999999", label=label)


def front(data: dict[str, Any]) -> Figure:
    """``python recipes/copy_gru.py --preset short --time-lag 10 --digits 3 --hidden 64 --batch-size 32 --seeds 3
    --max-steps 1200 --validate-every 50 --devices 1 --strategy RULE``"""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for rule, curves in data.items():
        band(axes, curves, rule, rule)
    guessing(axes, 1 / 8)
    axes.set(xlabel="updates", ylabel="recall (fraction of digits)", ylim=(0, 1.02), xlim=(0, None))
    figure.legend(frameon=False, loc="outside upper center", ncols=3, title="--strategy")
    return figure


def gru(data: dict[str, Any]) -> Figure:
    """``jaxtrain compare recipes/copy_gru.py --strategies drtrl,bptt --target 0.99 --stop``: for every rule and
    recall, the smallest and the largest number of steps and of seconds, over five seeds (docs/results/gru.md)."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for column, (axes, label) in enumerate(zip(panels, ("train steps (thousands)", "training (s)"), strict=True)):
        for rule, rows in data.items():
            for place, (_, *ranges) in enumerate(rows):
                low, high = np.divide(ranges[column], (1000, 1)[column])
                at, color = place + (0.18 if rule == "bptt" else -0.18), COLORS[rule]
                axes.plot([low, high], [at, at], "|-", color=color, linewidth=4, label="" if place else rule)
        axes.set(xlabel=label, xlim=(0, None))
    panels[0].set_yticks(range(3), [f"{100 * recall:g} %" for recall, *_ in data["drtrl"]])
    panels[0].set_ylabel("recall of the digits")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2)
    return figure


def lru_reach(data: dict[str, Any]) -> Figure:
    """``jaxtrain compare recipes/copy_lru.py --vary time_lag=50,100,200,500 --target 0.99 --stop --steps 2000
    --validate-every 10 --stop-at none``: the steps of five seeds for every blank, or the budget
    if no seed reached the target (docs/results/lru.md)."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for rule, rows in data.items():
        style = {"color": COLORS[rule], "label": rule}
        blanks, steps = zip(*rows, strict=True)
        if isinstance(steps[0], int):
            axes.plot(blanks, steps, marker=r"$\uparrow$", markersize=12, linestyle="none", **style)
            continue
        size = 4 if rule == "bptt" else 8  # the mark of a rule with the same steps shows around that of BPTT
        axes.plot(blanks, np.median(steps, 1), LINES.get(rule, "-"), marker="o", markersize=size, **style)
        axes.vlines(blanks, np.min(steps, 1), np.max(steps, 1), color=COLORS[rule], linewidth=1)
    axes.set(xlabel="blank (time steps)", ylabel="train steps until 99 % recall", xscale="log", yscale="log")
    axes.set_xticks(blanks, [f"{blank:g}" for blank in blanks])
    axes.set_yticks((50, 100, 200, 500, 1000, 2000), ("50", "100", "200", "500", "1,000", "2,000"))
    axes.minorticks_off()
    axes.legend(frameon=False, title="arrow: no seed in 2,000 steps")
    return figure


def binary_lru(data: dict[str, Any]) -> Figure:
    """``jaxtrain compare recipes/copy_curriculum.py --preset lru --metric task/length --mode max --target L --steps
    STEPS`` with 5,000 and 50,000 steps of ten time steps, and published means (docs/results/binary.md)."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for marks, (name, rows) in zip(("s:", "^:"), data["published"].items(), strict=True):
        axes.plot(*zip(*rows, strict=True), marks, color="#999999", markersize=5, label=f"{name}, published")
    for shift, (rule, rows) in zip((1, 1.12, 1 / 1.12), data["measured"].items(), strict=True):
        at = shift * np.array([time for time, _ in rows])
        low, middle, high = (np.array([f(seeds) for _, seeds in rows]) for f in (np.min, np.median, np.max))
        label = "tbptt, window 10" if rule == "tbptt" else rule
        axes.errorbar(at, middle, [middle - low, high - middle], fmt="o", capsize=3, color=COLORS[rule], label=label)
    axes.set(xlabel="time steps of the stream", ylabel="length of the sequence L (bits)", xscale="log", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def stream_copy(data: dict[str, Any]) -> Figure:
    """``jaxtrain compare recipes/copy_stream.py --metric train/accuracy --target 0.99 --strategies
    drtrl,tbptt:window=20 --steps 1000 --lrs 3e-4,1e-3,3e-3 --tune-seeds 100,101``: median, smallest and largest number
    of segments until the target over the seeds that reached it, their number, and the recall at the end
    (docs/results/streams.md)."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for place, (rule, (segments, reached, recall)) in enumerate(data.items()):
        for axes, (middle, low, high) in zip(panels, (segments, recall), strict=True):
            style = {"color": COLORS[rule], "capsize": 4, "linewidth": 2}
            axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", **style)
        if not reached.startswith("5"):  # an arrow beyond the budget: the other seeds
            panels[0].plot(1090, place, marker=r"$\rightarrow$", markersize=10, color=COLORS[rule])
        panels[0].annotate(reached, (segments[1], place + 0.18), color=COLORS[rule])
    panels[0].set_yticks(range(len(data)), ["tbptt,\nwindow 20" if rule == "tbptt" else rule for rule in data])
    panels[0].set(xlabel="segments until 99 % recall", xlim=(0, 1150), ylim=(-0.5, len(data) - 0.4))
    panels[1].axvline(0.99, linewidth=1.2, linestyle=":", color="#999999")
    panels[1].set(xlabel="recall after 1,000 segments\n(fraction of symbols)", xlim=(0.97, 1.001))
    return figure


def tmaze(data: dict[str, Any]) -> Figure:
    """``python recipes/tmaze.py --strategy drtrl --seeds 5 --max-steps 400 --validate-every 20``, with ``--strategy
    bptt``, and with ``--no-memory`` as the control."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.add_subplot()
    names = {"control": "no memory (control)"}
    for rule, curves in data.items():
        band(axes, curves, rule, names.get(rule, rule))
    guessing(axes, 0.5)
    axes.set(xlabel="updates", ylabel="turns that are right (fraction)", ylim=(0.3, 1.02))
    axes.legend(frameon=False, loc="center right")
    return figure


def integrator(data: dict[str, Any]) -> Figure:
    """``python recipes/integrator.py --strategy drtrl --seeds 3 --validate-every 25``, and with ``bptt`` and
    ``readout_only``."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for rule, curves in data.items():
        band(axes, curves, rule, "readout_only (control)" if rule == "readout_only" else rule)
    guessing(axes, 1.0, "guessing zero")
    axes.set(xlabel="updates", ylabel="squared error / variance", yscale="log")
    axes.legend(frameon=False)
    return figure


def getting_started(data: dict[str, Any]) -> Figure:
    """The program of docs/getting_started.md; ``python docs/figures/draw.py getting_started`` runs it again."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for rule, (curve,) in data.items():
        axes.plot(*zip(*curve, strict=True), LINES.get(rule, "-"), label=rule, color=COLORS[rule], linewidth=1.8)
    guessing(axes, 0.25)
    axes.set(xlabel="updates", ylabel="validation accuracy (fraction)", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower right")
    return figure


def raster(data: dict[str, Any]) -> Figure:
    """The program of docs/spiking.md, and ``fit.record(module, data.val_data(), ["neurons.spike", "output"])``;
    ``python docs/figures/draw.py raster`` runs it again."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    for place, trial in enumerate(data):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.axvspan(-0.5, 4.5, color="#999999", alpha=0.25, lw=0, label="cue")
        axes.axvspan(14.5, 19.5, color="#0072b2", alpha=0.18, lw=0, label="scored")
        time, unit = zip(*trial["spikes"], strict=True)
        axes.plot(time, unit, "|", color="#d55e00", markersize=5, markeredgewidth=1.4)
        axes.set(
            title=f"cue {trial['cue']}", xlabel="time (ms)", xlim=(-0.5, 19.5), ylim=(-1, 50), xticks=(0, 5, 10, 15)
        )
        axes.title.set_fontsize(10)
        if not place:
            axes.set_ylabel("neuron")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2)
    return figure


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "front": front, "tmaze": tmaze, "integrator": integrator, "getting-started": getting_started, "raster": raster,
    "gru": gru, "lru-reach": lru_reach, "binary-lru": binary_lru, "stream-copy": stream_copy,
}  # fmt: skip
TAGS = {"front": "val/accuracy", "tmaze": "val/correct", "integrator": "val/loss"}


def save(name: str, draw: Callable[[], Figure]) -> None:
    """Write NAME-light.png and NAME-dark.png, whose ground is transparent."""
    for theme, ink in INK.items():
        colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(colors, ink) | {"axes.grid": True, "grid.alpha": 0.2, "axes.facecolor": "none",
                                              "axes.spines.top": False, "axes.spines.right": False,
                                              "font.size": 10}  # fmt: skip
        with rc_context(style):
            draw().savefig(HERE / f"{name}-{theme}.png", dpi=160, transparent=True)


def of_runs(name: str, runs: list[str]) -> dict[str, Any]:
    """The curves of the seeds of each run directory: [[step, value], ...]."""
    found = {}
    for label, _, folder in (run.partition("=") for run in runs):
        rows = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        tag = f"seeds/{TAGS[name]}"
        entries = [(row["step"], row[tag]) for row in rows if tag in row]
        found[label] = [
            [[step, round(each[seed], 5)] for step, each in entries if each[seed] is not None]  # None: NaN
            for seed in range(len(entries[0][1]))
        ]
    return found


def of_page(page: str) -> dict[str, Any]:
    """The names that the Python blocks of a page define."""
    names: dict[str, Any] = {"__name__": "page"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # the programs write files
        for block in (HERE.parent / page).read_text().split("```python\n")[1:]:
            exec(compile(block.split("```")[0], page, "exec"), names)
    return names


def of_getting_started() -> dict[str, Any]:
    page = of_page("getting_started.md")
    results = {"drtrl": page["online"], "bptt": page["exact"]}
    return {
        rule: [[[e["step"], e["val/accuracy"]] for e in result.history if "val/accuracy" in e]]
        for rule, result in results.items()
    }


def of_raster() -> list[dict[str, Any]]:
    page = of_page("spiking.md")
    spikes = page["recorded"]["neurons.spike"]
    which = page["trials"](1000)[1][0]
    trials = [int(np.flatnonzero(which == cue)[0]) for cue in (0, 1)]
    return [
        {"cue": cue, "spikes": [[int(t), int(n)] for t, n in np.argwhere(spikes[:, trial] > 0)]}
        for cue, trial in enumerate(trials)
    ]


def main(argv: list[str]) -> None:
    data = json.loads(DATA.read_text()) if DATA.exists() else {}
    if argv:
        name, *rest = argv
        name = name.replace("_", "-")
        sources = {"getting-started": of_getting_started, "raster": of_raster}
        data[name] = sources.get(name, lambda: of_runs(name, rest))()
        DATA.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(data[key])}' for key in sorted(data)) + "\n}\n")
    for name in data:
        save(name, partial(FIGURES[name], data[name]))


if __name__ == "__main__":
    main(sys.argv[1:])
