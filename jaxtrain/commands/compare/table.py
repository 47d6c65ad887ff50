"""The table of `jaxtrain compare` in markdown and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.files import write_json
from ..output import markdown, save_figure
from .figures import curves, numeric_axis, reach
from .runner import Goal

NEAR_CHANCE = 0.05
"""A result counts as chance if it covers less than this fraction of the distance from chance to the target."""

Result = Mapping[str, Any]


def rows(results: Sequence[Result], goal: Goal, chance: float | None) -> list[dict[str, Any]]:
    """The rows of the table: one per variant, strategy and rate, with the values of all seeds."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault((result["variant"], result["strategy"], result["lr"]), []).append(result)
    return [_row(group, goal, chance) for group in groups.values()]


def _row(results: Sequence[Result], goal: Goal, chance: float | None) -> dict[str, Any]:
    done = [result for result in results if not result["failed"]]
    reached = [result["reached"] for result in done if result["reached"]]
    values = [result["value"] for result in done]
    return {
        **{name: results[0][name] for name in ("variant", "strategy", "lr")},
        "seeds": [result["seed"] for result in results],
        "failed": sorted({result["failed"] for result in results if result["failed"]}),
        "test": [score for result in done if (score := result.get("test", {}).get(goal.test_metric)) is not None],
        "done": len(done), "reached": len(reached), "value": values, "at_chance": _at_chance(values, goal, chance),
        "steps": [result["steps"] for result in done],
        "until": [result["reached"][0] if result["reached"] else result["steps"] for result in done],
        "steps_to": [step for step, _, _ in reached], "seconds_to": [seconds for _, seconds, _ in reached],
        "step_ms": [1000 * result["seconds"] / result["steps"] for result in done if result["steps"]],
        "compile_seconds": [result["compile_seconds"] for result in done],
        "peak_mb": [result["peak_mb"] for result in done],
    }  # fmt: skip


def _at_chance(values: Sequence[float], goal: Goal, chance: float | None) -> bool:
    """Return True if the best value is near chance. False if there is no target, or chance is unknown."""
    if chance is None or goal.target is None or not values or goal.target == chance:
        return False
    return max((value - chance) / (goal.target - chance) for value in values) < NEAR_CHANCE


def spread(values: Sequence[float], spec: str) -> str:
    """Median [minimum, maximum] in a format; a single value alone, "-" for none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    median, least, most = (f"{value:{spec}}" for value in (statistics.median(known), min(known), max(known)))
    return median if len(known) == 1 else f"{median} [{least}, {most}]"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table as text."""
    total = len(row["seeds"])
    value = spread(row["value"], ".4g") + (" (chance)" if row["at_chance"] else "")
    if row["failed"]:
        number = f" ({total - row['done']} of {total})" if row["done"] else ""
        value = f"{value if row['done'] else ''} failed{number}: {'; '.join(row['failed'])}".strip()
    return [
        row["variant"], row["strategy"], "" if row["lr"] is None else f"{row['lr']:g}", value,
        spread(row["test"], ".4g"), spread(row["steps"], ",.0f"), f"{row['reached']} of {total}",
        spread(row["steps_to"], ",.0f"), spread(row["seconds_to"], ".1f"), spread(row["step_ms"], ".3g"),
        spread(row["compile_seconds"], ".1f"), spread(row["peak_mb"], ",.0f"),
    ]  # fmt: skip


def _markdown(table: Sequence[Mapping[str, Any]], goal: Goal, chance: float | None) -> str:
    target = "the target" if goal.target is None else f"{goal.target:g}"
    to_target = [f"seeds at {target}", f"steps to {target}", f"seconds to {target}"]
    test = f"test/{goal.test_metric}"
    head = ["variant", "strategy", "lr", f"{goal.monitor.tag} at the end", test, "steps", *to_target, "ms per step",
            "compile s", "host MiB"]  # fmt: skip
    hidden = [] if any(row["test"] for row in table) else [test]
    hidden += to_target if goal.target is None else []
    guess = "unknown" if chance is None else f"{chance:.4g}"
    lines = [["", "chance", "", guess, *[""] * 8], *map(cells, table)]
    shown = [i for i in range(len(head)) if any(line[i] for line in lines) and head[i] not in hidden]
    return markdown([head[i] for i in shown], [[line[i] for i in shown] for line in lines])


def write(out: Path, results: Sequence[Result], goal: Goal, chance: float | None, command: str, missing: int = 0,
          notes: Sequence[str] = ()) -> str:  # fmt: skip
    """Write ``compare.md``, ``.json`` and ``.png`` to ``out``, and ``reach.png`` if one number varies.

    Args:
        out: The directory.
        results: The results.
        goal: The metric, the target and the budget.
        chance: What guessing scores, or None if unknown.
        command: The command line, which the table names.
        missing: Number of trials that are not done.
        notes: Paragraphs above the table.

    Returns:
        The markdown.
    """
    tuning, final = ([result for result in results if result["tuning"] is part] for part in (True, False))
    table = rows(final, goal, chance)
    better = "lower" if goal.monitor.mode == "min" else "higher"
    text = [
        f"`{command}`",
        f"Environment: {_environment(results)}.",
        f"Budget of a trial: {_budget(goal)}. Medians [min, max] over seeds {_seeds(final)}. Seconds and milliseconds "
        "measure training only, without compilation, validation, saves and figures. "
        f"{goal.monitor.tag}: {better} is better; a seed counts from its first value at the target.",
        *notes,
        _markdown(table, goal, chance),
    ]
    if tuning:
        text += [
            f"The learning rates were selected on these trials of seeds {_seeds(tuning)}, which are not used above:",
            _markdown(rows(tuning, goal, chance), goal, chance),
        ]
    page = "\n\n".join(paragraph.rstrip("\n") for paragraph in text) + "\n"
    (out / "compare.md").write_text(page)
    write_json(out / "compare.json", {
        "command": command, "environment": _environment(results), "metric": goal.monitor.tag, "mode": goal.monitor.mode,
        "target": goal.target, "budget": _budget(goal), "chance": chance, "missing": missing, "table": table,
    })  # fmt: skip
    save_figure(curves(final, goal, chance), out / "compare.png")
    (out / "reach.png").unlink(missing_ok=True)
    if goal.target is not None and (axis := numeric_axis(final)):
        save_figure(reach(final, table, axis, goal), out / "reach.png")
    return page


def _environment(results: Sequence[Result]) -> str:
    """When and with what the trials were run. If they differ, since some were kept from before, all values."""
    each = [result.get("environment", {}) for result in results]
    names = dict.fromkeys(name for environment in each for name in environment)
    values = {name: sorted({str(environment.get(name, "unknown")) for environment in each}) for name in names}
    return ", ".join(f"{name} {' / '.join(found)}" for name, found in values.items()) or "unknown"


def _budget(goal: Goal) -> str:
    parts = [f"{goal.steps:,} steps"] if goal.steps is not None else []
    parts += [f"{goal.seconds:g} s of training"] if goal.seconds is not None else []
    stop = f", or until {goal.monitor.tag} reaches {goal.target:g}" if goal.stop else ""
    return (" or ".join(parts) or "the recipe's own") + stop


def _seeds(results: Sequence[Result]) -> str:
    return ", ".join(str(seed) for seed in dict.fromkeys(result["seed"] for result in results))
