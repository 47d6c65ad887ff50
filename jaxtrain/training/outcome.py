"""The Result of a run, and what result.json holds."""

from __future__ import annotations

from typing import Any

from ..callbacks.checkpoint import best_of
from ..callbacks.run import Run
from ..callbacks.throughput import peak_rss_mb
from ..core.metrics import SEEDS
from ..engine.optimizer import accumulated_batches
from ..utils.digests import digest
from ..utils.logging import log
from .prepare import Prepared
from .result import Result, Status
from .workload import Workload


def summarize(
    prepared: Prepared, status: Status, history: list[dict[str, Any]], saved: bool | None, total: float
) -> Result:
    """The result of a run.

    Args:
        prepared: The run.
        status: How it ended; after a failure the state may be lost, so it has no digest.
        history: The rows of the record.
        saved: Whether the newest state is on disk.
        total: Seconds that the run took.
    """
    workload, run, progress = prepared.workload, prepared.run, prepared.progress
    program = workload.program
    seconds = {**progress.seconds, "compile": program.compile_seconds, "total": total}
    seconds["train"] = total - sum(seconds[key] for key in ("validate", "checkpoint", "compile"))
    steps = run.step - (run.restored_step or 0)
    whole = None
    if status != "failed":
        params, train = program.state()
        whole = digest({**params, **train})
    summary = {
        "status": status,
        "reason": None if progress.ending is None else progress.ending.reason,
        "step": run.step,
        "strategy": run.config["strategy"],
        "train": _below(run.metrics, "train/"),
        "val": _below(run.metrics, "val/"),
        "best": best_of(workload.settings.checkpoint),
        "digest": whole,
        "saved": saved,
        "inexact": workload.inexact,
        "dropped": run.callbacks.dropped,
        **_seeds_of(workload, run, status),
        "seconds": seconds,
        "steps_per_second": steps / max(seconds["train"], 1e-9),
        "peak_rss_mb": peak_rss_mb(),
        "params": sum(entry["count"] for entry in prepared.report["parameters"].values()),
        "versions": run.config["versions"],
        "config": run.config["config"],
        **_unused(workload, status),
    }
    shared = {name: summary[name] for name in ("status", "reason", "step", "best", "digest", "saved")}
    where = {"run_dir": run.run_dir, "report": prepared.report, "summary": summary}
    return Result(**shared, **where, metrics=dict(run.metrics), history=history)


def _below(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _seeds_of(workload: Workload, run: Run, status: Status) -> dict[str, Any]:
    """For a run of several seeds: which, which were frozen, and the last value of every tag for each."""
    seed_axis = workload.program.seed_axis
    if seed_axis is None:
        return {}
    frozen = None if status == "failed" else seed_axis.frozen(workload.program.values)
    return {"seeds": list(seed_axis.seeds), "frozen": frozen, "lanes": _below(run.metrics, SEEDS)}


def _unused(workload: Workload, status: Status) -> dict[str, Any]:
    """The number of batches at the end that made no update, which is also logged."""
    accumulate, program = workload.settings.accumulate, workload.program
    if accumulate == 1 or status == "failed":
        return {}
    values, seed_axis = program.values, program.seed_axis
    unused = accumulated_batches(values if seed_axis is None else seed_axis.first_live(values)[1])
    if unused and status in ("finished", "stopped"):
        log.info("the last %d batches made no update: accumulate=%d", unused, accumulate)
    return {"unused_batches": unused}
