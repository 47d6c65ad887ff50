"""Draws the figures that have a light and a dark version, from the numbers in data.json beside this file.

python docs/figures/draw.py                              # all figures, from data.json
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
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

HERE = Path(__file__).parent
DATA = HERE / "data.json"
COLORS = {"drtrl": "#0072b2", "bptt": "#d55e00", "pp_prop": "#009e73", "control": "#808080", "readout_only": "#808080"}
LINES = {"bptt": "--", "readout_only": "-.", "control": "-."}
INK = {"light": "#24292f", "dark": "#d7dae0"}


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
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for rule, curves in data.items():
        band(axes, curves, rule, f"--strategy {rule}")
    guessing(axes, 1 / 8)
    axes.set(xlabel="updates", ylabel="recall (fraction of digits)", ylim=(0, 1.02), xlim=(0, None))
    figure.legend(frameon=False, loc="outside right center")
    return figure


def tmaze(data: dict[str, Any]) -> Figure:
    """``python recipes/tmaze.py --strategy drtrl --seeds 5 --max-steps 400 --validate-every 20``, with ``--strategy
    bptt``, and with ``--no-memory`` as the control."""
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
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
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for rule, curves in data.items():
        band(axes, curves, rule, "readout_only (control)" if rule == "readout_only" else rule)
    guessing(axes, 1.0, "guessing zero")
    axes.set(xlabel="updates", ylabel="squared error / variance", yscale="log")
    axes.legend(frameon=False)
    return figure


def getting_started(data: dict[str, Any]) -> Figure:
    """The program of docs/getting_started.md; ``python docs/figures/draw.py getting_started`` runs it again."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
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
    figure = Figure(figsize=(7.6, 3.1), layout="constrained")
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
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right center", fontsize=9)
    return figure


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "front": front, "tmaze": tmaze, "integrator": integrator, "getting-started": getting_started, "raster": raster,
}  # fmt: skip
TAGS = {"front": "val/accuracy", "tmaze": "val/correct", "integrator": "val/loss"}


def save(name: str, data: Any) -> None:
    """Write NAME-light.png and NAME-dark.png, whose ground is transparent."""
    for theme, ink in INK.items():
        colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(colors, ink) | {"axes.grid": True, "grid.alpha": 0.2, "axes.facecolor": "none",
                                              "axes.spines.top": False, "axes.spines.right": False,
                                              "font.size": 10}  # fmt: skip
        with rc_context(style):
            FIGURES[name](data).savefig(HERE / f"{name}-{theme}.png", dpi=160, transparent=True)


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
        save(name, data[name])


if __name__ == "__main__":
    main(sys.argv[1:])
