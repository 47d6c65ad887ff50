"""What a run returns: its status, exit code and metrics."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .signals import exit_code

Status = Literal["finished", "stopped", "interrupted", "terminated", "failed"]


EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1, "interrupted": 130, "terminated": 143}
"""Of a run that a signal ended it is that of the signal, where ``reason`` names one."""


@dataclass(repr=False)
class Result:
    """What ``fit.run`` returns.

    ``status``: finished, stopped (by a callback or the clock), interrupted (Ctrl-C) or terminated (by another signal,
    which ``reason`` names); a run that failed raises, and says "failed" in result.json.
    ``history``: the rows of the record that this process wrote. ``metrics``: the last value of every tag, below
    ``seeds/`` a list, a number of each seed.
    ``saved``: whether the newest state is on disk (None without a run directory). ``report``: the pre-flight report.
    ``summary``: what result.json holds.
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
        """0, or 128 and the number of the signal that ended the run (130 of Ctrl-C, 143 of SIGTERM, 138 of SIGUSR1);
        1 where the newest state is not on disk."""
        if self.saved is False:
            return 1
        by_signal = self.status in ("interrupted", "terminated") and self.reason in signal.Signals.__members__
        return exit_code(str(self.reason)) if by_signal else EXIT_CODES[self.status]

    def __repr__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        shown = [f"{tag}={value:.4g}" for tag, value in self.metrics.items() if tag.startswith(("train/", "val/"))][:6]
        where = [] if self.run_dir is None else [f"in {self.run_dir}"]
        return f"<Result {', '.join([f'{self.status} at step {self.step}{why}', *shown, *where])}>"
