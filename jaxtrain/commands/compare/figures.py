"""The figures of `jaxtrain compare`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..output import new_figure
from .runner import Goal

COLORS = ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#a07000", "#6a5acd", "#7f9f3f")
CONTROLS = {"bptt": "#d55e00", "readout_only": "#808080"}
"""Colors of the controls: the same in every figure. The first ones of both are those of Okabe and Ito, which differ for
colour-blind readers, too; all have contrast on a light and on a dark ground."""


def _colors(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    others = itertools.cycle(COLORS)
    strategies = dict.fromkeys(result["strategy"] for result in results)
    return {strategy: CONTROLS.get(strategy) or next(others) for strategy in strategies}


def _style(strategy: str) -> dict[str, Any]:
    """BPTT is dashed and on top, so that a strategy with the same gradient remains visible."""
    lines = {"bptt": {"linestyle": "--", "zorder": 3}, "readout_only": {"linestyle": "-."}}
    return {"label": strategy, "linewidth": 1.6, **lines.get(strategy, {})}


def _ink() -> str:
    from matplotlib import rcParams

    return rcParams["text.color"]


def curves(results: Sequence[Mapping[str, Any]], goal: Goal, chance: float | None) -> Any:
    """The metric over steps and over seconds: panels for each variant, a line per strategy, a band over its seeds."""
    variants, colors = list(dict.fromkeys(result["variant"] for result in results)), _colors(results)
    figure = new_figure(9, 2.9 * len(variants) + 0.4)
    for i, variant in enumerate(variants):
        for j, label in enumerate(("steps", "seconds of training")):
            axes = figure.add_subplot(len(variants), 2, 2 * i + j + 1)
            for strategy, color in colors.items():
                own = [r["curve"] for r in results if (r["variant"], r["strategy"]) == (variant, strategy)]
                _band(axes, [[(point[j], point[2]) for point in curve] for curve in own if curve], strategy, color)
            if chance is not None:
                axes.axhline(chance, color=_ink(), linewidth=0.8, linestyle=":", label="chance")
            if goal.target is not None:
                axes.axhline(goal.target, color=_ink(), linewidth=0.8, linestyle="--")
            axes.set_xlabel(label)
            axes.set_title(variant, fontsize=10)
            axes.grid(alpha=0.25)
            if j == 0:
                axes.set_ylabel(goal.monitor.tag)
                if axes.get_legend_handles_labels()[0]:
                    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _band(axes: Any, curves: Sequence[Sequence[tuple[float, float]]], strategy: str, color: str) -> None:
    """Median over seeds and a band from minimum to maximum, where every seed has a value. A curve that has ended keeps
    its last value."""
    if not curves:
        return
    at = np.unique([x for curve in curves for x, _ in curve])
    each = np.array([np.interp(at, *zip(*curve, strict=True), left=math.nan) for curve in curves])
    known = ~np.isnan(each).any(axis=0)
    at, each = at[known], each[:, known]
    axes.plot(at, np.median(each, axis=0), color=color, **_style(strategy))
    axes.fill_between(at, each.min(axis=0), each.max(axis=0), color=color, alpha=0.18, linewidth=0)


def numeric_axis(results: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the option that varies, if there is only one and its values are numbers."""
    names = {name for result in results for name in result["options"]}
    if len(names) != 1:
        return None
    name = names.pop()
    values = {result["options"].get(name) for result in results}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return name if numbers and len(values) > 1 else None


def reach(results: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]], axis: str, goal: Goal) -> Any:
    """Steps to the target over a varied option. Lines connect values at which some seed reached it.

    A hollow mark means that not every seed reached it. An arrow at the end of the budget means that none did.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    values = {result["variant"]: result["options"][axis] for result in results}
    ticks = sorted(set(values.values()))
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for strategy, color in _colors(results).items():
        rows = [row for row in table if row["strategy"] == strategy and row["done"]]
        rows.sort(key=lambda row: values[row["variant"]])
        if not rows:
            continue
        medians = [statistics.median(row["steps_to"]) if row["reached"] else math.nan for row in rows]
        axes.plot([values[row["variant"]] for row in rows], medians, color=color, **_style(strategy))
        size, order = (4, 4) if strategy == "bptt" else (7, 2)  # another strategy's mark shows around that of BPTT
        for median, row in zip(medians, rows, strict=True):
            x, steps = values[row["variant"]], row["steps_to"] or row["steps"]
            if row["reached"]:
                face = color if row["reached"] == len(row["seeds"]) else "none"
                axes.plot([x, x], [min(steps), max(steps)], color=color, linewidth=1)
                axes.plot(x, median, "o", color=color, markersize=size, markerfacecolor=face, zorder=order)
            else:
                axes.plot(x, max(steps), marker=r"$\uparrow$", color=color, markersize=11, linestyle="none")
    axes.set_xscale("log" if ticks[0] > 0 else "linear")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()
    axes.set_xlabel(axis.replace("_", " "))
    axes.set_ylabel(f"steps until {goal.monitor.tag} is at {goal.target:g}")
    axes.grid(alpha=0.25)
    note = "hollow: not on every seed; arrow: on no seed, up to these steps"
    axes.legend(fontsize=9, frameon=False, title=note, title_fontsize=8)
    figure.tight_layout()
    return figure
