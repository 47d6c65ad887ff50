"""Result: what a run returns and writes to result.json."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..callbacks.checkpoint import best_of
from ..callbacks.run import Run
from ..callbacks.throughput import peak_rss_mb
from ..core.metrics import SEEDS, numbers
from ..engine.optimizer import accumulated_batches
from ..utils.digests import digest
from ..utils.logging import log
from .prepare import Prepared
from .progress import Status
from .signals import exit_code
from .workload import Workload

EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 130, "terminated": 143}
"""Exit codes by status. If ``reason`` names a signal, its own exit code is used instead."""


@dataclass(repr=False)
class Result:
    """What ``Fit.run`` returns.

    Attributes:
        status: "finished"; "stopped" by a callback or by ``max_time``; "interrupted" by Ctrl-C; or "terminated" by
            another signal. A run that fails raises its error; its result.json has the status "failed".
        step: Number of completed steps.
        reason: Why the run stopped, or the name of the signal, for example "SIGTERM".
        metrics: The last value of every tag. Tags under ``seeds/`` have a list with one number per seed.
            A metric with several values, such as a confusion matrix, is a nested list.
        history: Log entries that this process wrote.
        run_dir: The run directory, or None.
        best: Monitored tag, score and step of the best validation, or None.
        digest: A digest of parameters and training state, equal for equal runs.
        saved: Whether the newest state is on disk; None without a run directory.
        report: The preflight report.
        summary: The contents of result.json.

    Example::

        result = fit.run(module, data)
        print(result.status, result.step, result.metrics["val/loss"])
        code = result.exit_code  # a script ends with sys.exit(code)
    """

    status: Status
    step: int
    reason: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    run_dir: Path | None = None
    best: dict[str, Any] | None = None
    digest: str | None = None
    saved: bool | None = None
    report: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Exit code for the process.

        1 if the newest state could not be saved. 128 plus the signal's number if a signal ended the run: 130 for
        Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1. Otherwise 0.
        """
        if self.saved is False:
            return 1
        by_signal = self.status in ("interrupted", "terminated") and self.reason in signal.Signals.__members__
        return exit_code(str(self.reason)) if by_signal else EXIT_CODES[self.status]

    def __repr__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        values = numbers(self.metrics).items()
        shown = [f"{tag}={value:.4g}" for tag, value in values if tag.startswith(("train/", "val/", "test/"))][:6]
        where = [] if self.run_dir is None else [f"in {self.run_dir}"]
        return f"<Result {', '.join([f'{self.status} at step {self.step}{why}', *shown, *where])}>"


def summarize(
    prepared: Prepared, status: Status, history: list[dict[str, Any]], saved: bool | None, seconds: float
) -> Result:
    """The result of a run.

    Args:
        prepared: The run.
        status: How it ended. After a failure the state may be lost, so the result has no digest.
        history: The log entries.
        saved: Whether the newest state is on disk.
        seconds: Duration of the run.
    """
    workload, run, progress = prepared.workload, prepared.run, prepared.progress
    times = {**progress.seconds, "compile": workload.program.compile_seconds, "total": seconds}
    times["train"] = seconds - sum(times[key] for key in ("validate", "test", "checkpoint", "compile"))
    steps = run.step - (run.restored_step or 0)
    summary = {
        "status": status,
        "reason": None if progress.ending is None else progress.ending.reason,
        "step": run.step,
        "strategy": run.config["strategy"],
        "train": _below(run.metrics, "train/"),
        "val": _below(run.metrics, "val/"),
        "test": _below(run.metrics, "test/"),
        "best": best_of(workload.settings.checkpoint),
        "digest": None,
        "saved": saved,
        "inexact": workload.inexact,
        "dropped": run.callbacks.dropped,
        "seconds": times,
        "steps_per_second": steps / max(times["train"], 1e-9),
        "peak_rss_mb": peak_rss_mb(),
        "params": sum(entry["count"] for entry in prepared.report["parameters"].values()),
        "versions": run.config["versions"],
        "config": run.config["config"],
        **_of_state(workload, run, status),
    }
    shared = {name: summary[name] for name in ("status", "reason", "step", "best", "digest", "saved")}
    own = {"metrics": dict(run.metrics), "history": history, "run_dir": run.run_dir, "report": prepared.report}
    return Result(**shared, **own, summary=summary)


def _below(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _of_state(workload: Workload, run: Run, status: Status) -> dict[str, Any]:
    """The part of the summary that depends on the program's final state, which a failed run may have lost.

    With several seeds: the seeds, the frozen ones, and the last metrics of each seed. With ``accumulate``: the number
    of batches after the last update.
    """
    program, accumulate, failed = workload.program, workload.settings.accumulate, status == "failed"
    values, seed_axis, summary = program.values, program.seed_axis, {}
    if not failed:
        params, train = program.state()
        summary["digest"] = digest({**params, **train})
    if seed_axis is not None:
        frozen = None if failed else seed_axis.frozen(values)
        summary |= {"seeds": list(seed_axis.seeds), "frozen": frozen, "per_seed": _below(run.metrics, SEEDS)}
    if accumulate > 1 and not failed:
        unused = accumulated_batches(values if seed_axis is None else seed_axis.first_live(values)[1])
        if unused and status in ("finished", "stopped"):
            log.info("the last %d batches made no update: accumulate=%d", unused, accumulate)
        summary["unused_batches"] = unused
    return summary
