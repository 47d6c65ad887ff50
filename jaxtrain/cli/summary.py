"""Text about a run: the summary that a recipe prints at its end, and values in short form. Does not import JAX."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.result import Result
    from .config import Options


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and short texts of the values of nested tables: `strategy_fields.window`, `1`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", short(value)


def short(value: Any) -> str:
    """The value as text; floats have six digits."""
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def summary(result: Result, config: Options, script: Path, root: Path, chance: Mapping[str, float]) -> str:
    """How the run ended, the last value of every metric, and commands that show its logs and resume it.

    ``root``: the directory of the numbered runs of the recipe ``script``. ``chance``: metric name -> what guessing
    scores.
    """
    reason = f" ({result.reason})" if result.reason else ""
    lines = ["", f"{result.status} at step {result.step}{reason}, strategy {config.strategy}"]
    for part in ("train", "val", "test"):
        scores = []
        for tag, value in result.metrics.items():
            head, _, name = tag.partition("/")
            if head == part and not isinstance(value, list):
                guess = f" (chance {chance[name]:.4g})" if name in chance else ""
                scores.append(f"{name} {value:.4g}{guess}")
        if scores:
            lines.append(f"{part:<8}{', '.join(scores)}")
    lines += _seeds(result.summary)
    if inexact := result.summary.get("inexact"):
        lines.append(f"inexact the data restarted and differs from the data before step {', '.join(map(str, inexact))}")
    run_dir = relative(Path(result.run_dir or config.run_dir or ""))  # a fork's directory differs from the config's
    command = [_python(), str(relative(script)), "--run-dir", str(run_dir), "--resume", "last"]
    budgets = {name: getattr(config, name, None) for name in ("max_steps", "epochs")}
    given = [(name, value) for name, value in budgets.items() if isinstance(value, int) and value > 0]
    if result.status == "finished" and given:  # a recipe whose max_steps is 0 counts epochs
        name, value = given[0]
        command += [f"--{name.replace('_', '-')}", str(2 * value)]
    logs = root.parent if run_dir.is_relative_to(root) else run_dir
    lines += [
        f"run     {run_dir}",
        f"logs    tensorboard --logdir {shlex.quote(str(logs))}",
        f"resume  {shlex.join(command)}",
    ]
    return "\n".join(lines)


def _seeds(summary: Mapping[str, Any]) -> list[str]:
    """For a multi-seed run: the seeds, the frozen ones, and the range of each validation and test metric."""
    if "seeds" not in summary:
        return []
    frozen = summary["frozen"]
    stopped = f"; frozen after a nonfinite value: {', '.join(map(str, frozen))}" if frozen else ""
    lines = [f"seeds   {', '.join(map(str, summary['seeds']))}{stopped}"]
    spread = []
    for tag, values in summary["per_seed"].items():
        finite = [value for value in values if not isinstance(value, list) and math.isfinite(value)]
        if tag.startswith(("val/", "test/")) and finite:
            spread.append(f"{tag.removeprefix('val/')} {min(finite):.4g} to {max(finite):.4g}")
    return [*lines, f"spread  {', '.join(spread)}"] if spread else lines


def relative(path: Path) -> Path:
    """Relative to the working directory if it lies below."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _python() -> str:
    path = relative(Path(sys.executable))
    return "python" if path.is_absolute() else str(path)
