"""The Result of a run, and what result.json holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .result import Result, Status

if TYPE_CHECKING:
    pass
from ..callbacks.run import Run
from ..callbacks.throughput import peak_rss_mb
from ..core.metrics import LANES
from ..engine.program import Program
from ..utils.digests import digest
from .loop import Loop


def _lanes_of(run: Run, program: Program, status: Status) -> dict[str, Any]:
    """Of a run of several seeds: which, which were frozen, and the last value of every tag for each."""
    assert program.lanes is not None
    values = {tag.removeprefix(LANES): value for tag, value in run.metrics.items() if tag.startswith(LANES)}
    frozen = None if status == "failed" else program.lanes.frozen(program.values)
    return {"seeds": list(program.lanes.seeds), "frozen": frozen, "lanes": values}


def summarize(loop: Loop, status: Status, report: dict[str, Any], best: dict[str, Any] | None, total: float) -> Result:
    """What a run came to. After a failure the state may be half donated, so it has no digest."""
    run = loop.run
    seconds = {**loop.seconds, "compile": loop.program.compile_seconds, "total": total}
    seconds["train"] = total - sum(seconds[key] for key in ("validate", "checkpoint", "compile"))
    steps = run.step - (run.restored_step or 0)
    whole = None
    if status != "failed":
        params, train = loop.program.state()
        whole = digest({**params, **train})
    part = lambda prefix: {  # noqa: E731
        name.removeprefix(prefix): value for name, value in run.metrics.items() if name.startswith(prefix)
    }
    summary = {
        "status": status,
        "reason": loop.reason,
        "step": run.step,
        "strategy": run.config["strategy"],
        "train": part("train/"),
        "val": part("val/"),
        "best": best,
        "digest": whole,
        "saved": loop.saved,
        "inexact": loop.inexact,
        "dropped": loop.callbacks.dropped,
        **({} if loop.program.lanes is None else _lanes_of(run, loop.program, status)),
        "seconds": seconds,
        "steps_per_second": steps / max(seconds["train"], 1e-9),
        "peak_rss_mb": peak_rss_mb(),
        "params": sum(entry["count"] for entry in report["parameters"].values()),
        "versions": run.config["versions"],
        "config": run.config["config"],
    }
    return Result(
        status=status, step=run.step, reason=loop.reason, metrics=dict(run.metrics), history=loop.history,
        run_dir=run.run_dir, best=best, digest=whole, saved=loop.saved, report=report, summary=summary,
    )  # fmt: skip
