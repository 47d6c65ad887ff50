"""What a recipe says at the end of a run. No JAX in here."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.result import Result
    from .recipe import Options


def summary(result: Result, config: Options, script: Path, root: Path, chance: Mapping[str, float]) -> str:
    """How the run ended, the last value of every metric, and the commands that show it and go on with it.

    ``root``: where numbered runs of the recipe ``script`` lie. ``chance``: metric name -> what guessing scores.
    """
    why = f" ({result.reason})" if result.reason else ""
    lines = ["", f"{result.status} at step {result.step}{why}, strategy {config.strategy}"]
    for part in ("train", "val"):
        scores = []
        for tag, value in result.metrics.items():
            head, _, name = tag.partition("/")
            if head == part:
                guess = f" (chance {chance[name]:.4g})" if name in chance else ""
                scores.append(f"{name} {value:.4g}{guess}")
        if scores:
            lines.append(f"{part:<8}{', '.join(scores)}")
    lines += _seeds(result.summary)
    if inexact := result.summary.get("inexact"):
        lines.append(f"inexact the data began anew and differs from that before step {', '.join(map(str, inexact))}")
    run_dir = _short(Path(result.run_dir or config.run_dir or ""))  # a fork has a directory of its own
    command = [_python(), str(_short(script)), "--run-dir", str(run_dir), "--resume", "last"]
    steps = getattr(config, "max_steps", None)
    if result.status == "finished" and isinstance(steps, int):
        command += ["--max-steps", str(2 * steps)]
    logs = root.parent if run_dir.is_relative_to(root) else run_dir
    lines += [
        f"run     {run_dir}",
        f"logs    tensorboard --logdir {shlex.quote(str(logs))}",
        f"go on   {shlex.join(command)}",
    ]
    return "\n".join(lines)


def _seeds(summary: Mapping[str, Any]) -> list[str]:
    """Of a run of several seeds: what above is a mean of."""
    if "seeds" not in summary:
        return []
    frozen = summary["frozen"]
    stopped = f"; frozen since something was not finite: {', '.join(map(str, frozen))}" if frozen else ""
    lines = [f"seeds   {', '.join(map(str, summary['seeds']))}{stopped}"]
    spread = []
    for tag, values in summary["lanes"].items():
        finite = [value for value in values if math.isfinite(value)]
        if tag.startswith("val/") and finite:
            spread.append(f"{tag.removeprefix('val/')} {min(finite):.4g} to {max(finite):.4g}")
    return [*lines, f"spread  {', '.join(spread)}"] if spread else lines


def _short(path: Path) -> Path:
    """Relative to where we are, if it lies below."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _python() -> str:
    path = _short(Path(sys.executable))
    return "python" if path.is_absolute() else str(path)
