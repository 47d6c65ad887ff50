"""How far a run is, and why it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["finished", "stopped", "interrupted", "terminated", "failed"]
Stage = Literal["between steps", "validation"]


@dataclass(frozen=True)
class Ending:
    """Why a run ended."""

    status: Status
    reason: str | None = None
    complete: bool = False
    """Whether the run is over. A run that a signal or the clock ended continues when it is resumed."""


@dataclass
class Progress:
    """State of the loop beyond ``Run.step``, which counts the steps whose metrics have been delivered."""

    dispatched: int = 0
    """Steps dispatched to the device."""
    stage: Stage = "between steps"
    """What comes next: a chunk of steps, or the rest of a boundary whose validation a signal interrupted."""
    restored_stage: Stage = "between steps"
    """The stage in the checkpoint that the run was restored from."""
    ending: Ending | None = None
    """None while the run continues."""
    seconds: dict[str, float] = field(default_factory=lambda: {"validate": 0.0, "test": 0.0, "checkpoint": 0.0})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent in this context to ``seconds``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """The progress as checkpoint metadata."""
        ending = self.ending
        over = None if ending is None or not ending.complete else [ending.status, ending.reason]
        return {"stage": self.stage, "ending": over}

    def load_state(self, meta: dict[str, Any]) -> None:
        """Restore the progress from checkpoint metadata."""
        self.dispatched = meta["step"]
        self.stage = self.restored_stage = meta["stage"]
