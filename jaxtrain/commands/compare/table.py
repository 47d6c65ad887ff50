"""What `jaxtrain compare` found, for people: a table in markdown, figures, and the same as JSON."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.files import write_json
from .runner import Judge

NEAR_CHANCE = 0.05
"""A result that has come less than this part of the way from chance to the target is said to be at chance."""
COLORS = ("#0b6e4f", "#3a5fb3", "#8a6d00", "#7a3a8e", "#00808a", "#c06000", "#5c7a1f", "#a0356f")
CONTROLS = {"bptt": "#b3423a", "readout_only": "#4d4d4d"}
"""Colors of what stands beside every rule: the same in every figure."""

Group = tuple[str, str, float | None]
"""Variant, rule, rate."""


def grouped(results: Sequence[Mapping[str, Any]]) -> dict[Group, list[Mapping[str, Any]]]:
    found: dict[Group, list[Mapping[str, Any]]] = {}
    for result in results:
        found.setdefault((result["variant"], result["rule"], result["lr"]), []).append(result)
    return found


def spread(values: Sequence[float], spell: Callable[[float], str]) -> str:
    """Median [least, most]; one value stands alone, none is a dash."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    middle = spell(statistics.median(known))
    return middle if len(known) == 1 else f"{middle} [{spell(min(known))}, {spell(max(known))}]"


def entry(group: Group, results: Sequence[Mapping[str, Any]], judge: Judge, chance: float | None) -> dict[str, Any]:
    """A line of the table: what is known of the seeds of one rule on one variant."""
    variant, rule, lr = group
    fine = [result for result in results if not result["failed"]]
    reached = [result["reached"] for result in fine if result["reached"]]
    found = {
        "variant": variant, "rule": rule, "lr": lr, "seeds": [result["seed"] for result in results],
        "failed": sorted({result["failed"] for result in results if result["failed"]}),
        "done": len(fine), "reached": len(reached),
        "value": [result["value"] for result in fine],
        "steps": [result["steps"] for result in fine],
        "until": [result["reached"][0] if result["reached"] else result["steps"] for result in fine],
        "steps_to": [step for step, _, _ in reached], "seconds_to": [seconds for _, seconds, _ in reached],
        "step_ms": [1000 * result["seconds"] / result["steps"] for result in fine if result["steps"]],
        "compile_seconds": [result["compile_seconds"] for result in fine],
        "peak_mb": [result["peak_mb"] for result in fine],
    }  # fmt: skip
    found["at_chance"] = _at_chance(found["value"], judge, chance)
    return found


def _at_chance(values: Sequence[float], judge: Judge, chance: float | None) -> bool:
    """Whether the best of them is near what guessing scores; unknown without a target or where guessing is unknown."""
    if chance is None or judge.target is None or not values or judge.target == chance:
        return False
    return max((value - chance) / (judge.target - chance) for value in values) < NEAR_CHANCE


def line(found: Mapping[str, Any]) -> list[str]:
    whole = lambda value: f"{value:,.0f}"  # noqa: E731
    total = len(found["seeds"])
    told = spread(found["value"], lambda value: f"{value:.4g}") + (" (chance)" if found["at_chance"] else "")
    if found["failed"]:
        number = f" ({total - found['done']} of {total})" if found["done"] else ""
        told = f"{told if found['done'] else ''} failed{number}: {'; '.join(found['failed'])}".strip()
    return [
        found["variant"], found["rule"], "" if found["lr"] is None else f"{found['lr']:g}", told,
        spread(found["steps"], whole), f"{found['reached']} of {total}", spread(found["steps_to"], whole),
        spread(found["seconds_to"], lambda value: f"{value:.1f}"),
        spread(found["step_ms"], lambda value: f"{value:.3g}"),
        spread(found["compile_seconds"], lambda value: f"{value:.1f}"),
        spread(found["peak_mb"], whole),
    ]  # fmt: skip


def markdown(table: Sequence[Mapping[str, Any]], judge: Judge, chance: float | None) -> str:
    tag, target = judge.monitor.tag, "the target" if judge.target is None else f"{judge.target:g}"
    head = ["variant", "rule", "lr", f"{tag} at the end", "steps", f"seeds at {target}", f"steps to {target}",
            f"seconds to {target}", "ms a step", "compile s", "host MiB"]  # fmt: skip
    guess = "not known to the recipe" if chance is None else f"{chance:.4g}"
    rows = [["", "chance", "", guess, *[""] * 7], *map(line, table)]
    kept = [i for i, name in enumerate(head) if any(row[i] for row in rows) or name == "rule"]
    if judge.target is None:
        kept = [i for i in kept if i not in (5, 6, 7)]
    cells = [[row[i].replace("|", r"\|") for i in kept] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def budget(judge: Judge) -> str:
    parts = [f"{judge.steps:,} steps"] if judge.steps is not None else []
    parts += [f"{judge.seconds:g} s of training"] if judge.seconds is not None else []
    stop = f", or until {judge.monitor.tag} is at {judge.target:g}" if judge.stop else ""
    return (" or ".join(parts) or "the recipe's own budget") + stop


def write(out: Path, results: Sequence[Mapping[str, Any]], judge: Judge, chance: float | None, command: str,
          missing: int = 0, note: str = "") -> str:  # fmt: skip
    """``compare.md``, ``.json`` and ``.png`` below ``out``; returns the markdown. ``missing``: trials not done yet;
    ``note``: what else a reader should know."""
    tuned = [result for result in results if result["tuning"]]
    final = [result for result in results if not result["tuning"]]
    table = [entry(group, found, judge, chance) for group, found in grouped(final).items()]
    made = [result.get("made") or {} for result in results]
    text = [
        f"`{command}`", "",
        f"{_made(made)}.",
        f"Budget of a trial: {budget(judge)}. Medians [least, most] over seeds {_seeds(final)}; seconds and "
        "milliseconds are of training alone, without what is compiled, validated, saved or drawn. "
        f"{judge.monitor.tag}: "
        f"{'less' if judge.monitor.mode == 'min' else 'more'} is better; {_first(judge)}", "",
        *([note, ""] if note else []),
        *([f"**Not whole: {missing} trials were not done yet.**", ""] if missing else []),
        markdown(table, judge, chance),
    ]  # fmt: skip
    if tuned:
        grid = [entry(group, found, judge, chance) for group, found in grouped(tuned).items()]
        text += [f"The rates were chosen by these trials of seeds {_seeds(tuned)} alone:", "",
                 markdown(grid, judge, chance)]  # fmt: skip
    done = "\n".join(text)
    (out / "compare.md").write_text(done)
    kept = {"command": command, "made": [dict(entry) for entry in _distinct(made)], "metric": judge.monitor.tag,
            "mode": judge.monitor.mode, "target": judge.target, "budget": budget(judge), "chance": chance,
            "missing": missing, "table": table}  # fmt: skip
    write_json(out / "compare.json", kept)
    curves(final, judge, chance).savefig(out / "compare.png", dpi=150, bbox_inches="tight", facecolor="white")
    (out / "reach.png").unlink(missing_ok=True)
    if judge.target is not None and (axis := numeric_axis(final)):
        reach(final, table, axis, judge).savefig(out / "reach.png", dpi=150, bbox_inches="tight", facecolor="white")
    return done


def _distinct(each: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for i, entry in enumerate(each) if entry not in each[:i]]


def _made(each: Sequence[Mapping[str, Any]]) -> str:
    """When trials were made, and with what; where they differ, all of it: some may have been kept from before."""

    def spelled(values: Sequence[Any]) -> str:
        return " / ".join(dict.fromkeys("unknown" if value is None else str(value) for value in values))

    names = dict.fromkeys(name for made in each for name in made.get("versions", {}))
    parts = [spelled(sorted((made.get("date") or "unknown") for made in each))]
    parts.append(", ".join(f"{n} {spelled([made.get('versions', {}).get(n) for made in each])}" for n in names))
    parts.append(f"{spelled([made.get('machine') for made in each])}, cores: {spelled([m.get('cores') for m in each])}")
    jobs = spelled([made.get("jobs") for made in each])
    return "; ".join(filter(None, [*parts, f"trials at once: {jobs}" if jobs not in ("1", "unknown") else ""]))


def _first(judge: Judge) -> str:
    when = "validation" if judge.monitor.tag.startswith("val/") else "row of the record"
    return (
        "no target was given." if judge.target is None else f"a seed is at {judge.target:g} at the first {when} there."
    )


def _seeds(results: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(seed) for seed in dict.fromkeys(result["seed"] for result in results))


# ------------------------------------------------------------------------------------------------------------- figures


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _colors(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    rules = dict.fromkeys(result["rule"] for result in results)
    others = itertools.cycle(COLORS)
    return {rule: CONTROLS.get(rule) or next(others) for rule in rules}


def _line(rule: str) -> dict[str, Any]:
    """BPTT is dashed, above the others: a rule whose gradient is BPTT's shows through."""
    return {"label": rule, "linewidth": 1.6, **({"linestyle": "--", "zorder": 3} if rule == "bptt" else {})}


def curves(results: Sequence[Mapping[str, Any]], judge: Judge, chance: float | None) -> Any:
    """The metric over steps and over seconds: a row of panels a variant, a line a rule, its seeds as a band."""
    variants, colors = list(dict.fromkeys(result["variant"] for result in results)), _colors(results)
    figure = _figure(9, 2.9 * len(variants) + 0.4)
    for i, variant in enumerate(variants):
        for j, what in enumerate(("steps", "seconds of training")):
            axes = figure.add_subplot(len(variants), 2, 2 * i + j + 1)
            for rule, color in colors.items():
                own = [r["curve"] for r in results if (r["variant"], r["rule"]) == (variant, rule) and r["curve"]]
                _band(axes, [[(point[j], point[2]) for point in curve] for curve in own], rule, color)
            if chance is not None:
                axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", label="chance")
            if judge.target is not None:
                axes.axhline(judge.target, color="black", linewidth=0.8, linestyle="--")
            axes.set_xlabel(what)
            axes.set_title(variant, fontsize=10)
            axes.grid(alpha=0.25)
            if j == 0:
                axes.set_ylabel(judge.monitor.tag)
                if axes.get_legend_handles_labels()[0]:
                    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _band(axes: Any, curves: Sequence[Sequence[tuple[float, float]]], rule: str, color: str) -> None:
    """The median over seeds and, from least to most, a band, from where every seed has a value; a curve that has ended
    keeps its last one."""
    if not curves:
        return
    at = np.unique([x for curve in curves for x, _ in curve])
    each = [np.interp(at, *zip(*curve, strict=True), left=math.nan) for curve in curves]
    known = ~np.isnan(each).any(axis=0)
    at, each = at[known], np.array(each)[:, known]
    axes.plot(at, np.median(each, axis=0), color=color, **_line(rule))
    axes.fill_between(at, each.min(axis=0), each.max(axis=0), color=color, alpha=0.18, linewidth=0)


def numeric_axis(results: Sequence[Mapping[str, Any]]) -> str | None:
    """The one option that varies, where it is a number."""
    names = {name for result in results for name in result["options"]}
    if len(names) != 1:
        return None
    name = names.pop()
    values = {result["options"].get(name) for result in results}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return name if numbers and len(values) > 1 else None


def reach(results: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]], axis: str, judge: Judge) -> Any:
    """Steps to the target over an option that varies; a hollow mark: not every seed came there within its budget."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    values = {result["variant"]: result["options"][axis] for result in results}
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    for rule, color in _colors(results).items():
        own = [(values[found["variant"]], found) for found in table if found["rule"] == rule and found["done"]]
        own.sort(key=lambda pair: pair[0])
        if not own:
            continue
        xs, ys = [x for x, _ in own], [found["until"] for _, found in own]
        middle = [statistics.median(y) for y in ys]
        axes.plot(xs, middle, color=color, **_line(rule))
        for x, y, (_, found) in zip(xs, ys, own, strict=True):
            solved = found["reached"] == len(found["seeds"])
            axes.plot([x, x], [min(y), max(y)], color=color, linewidth=1)
            size, above = (4, 4) if rule == "bptt" else (7, 2)  # a mark that another rule's shows around
            face = color if solved else "white"
            axes.plot(x, statistics.median(y), "o", color=color, markersize=size, markerfacecolor=face, zorder=above)
    axes.set_xscale("log" if min(values.values()) > 0 else "linear")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_xticks(sorted(set(values.values())), [f"{value:g}" for value in sorted(set(values.values()))])
    axes.minorticks_off()
    axes.set_xlabel(axis.replace("_", " "))
    axes.set_ylabel(f"steps until {judge.monitor.tag} is at {judge.target:g}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, frameon=False, title="hollow: not on every seed", title_fontsize=8)
    figure.tight_layout()
    return figure
