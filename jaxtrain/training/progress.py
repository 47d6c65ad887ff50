"""How far a run is, and why it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from .result import Status

Stage = Literal["between steps", "validation"]


@dataclass(frozen=True)
class Ending:
    """Why a run ended."""

    status: Status
    reason: str | None = None
    complete: bool = False
    """Whether the run is over. One that a signal or the clock ended goes on when it is resumed."""


@dataclass
class Progress:
    """Where a run is beyond the steps whose metrics are delivered, which ``Run.step`` counts."""

    dispatched: int = 0
    """Steps dispatched to the device."""
    stage: Stage = "between steps"
    """What comes next: a chunk of steps, or the validation that a signal ended, and the rest of its boundary."""
    restored_stage: Stage = "between steps"
    """The stage in the checkpoint that the run was restored from."""
    ending: Ending | None = None
    """None while the run goes on."""
    seconds: dict[str, float] = field(default_factory=lambda: {"validate": 0.0, "checkpoint": 0.0})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent in here to ``seconds``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """What a checkpoint's metadata holds of the progress."""
        ending = self.ending
        over = None if ending is None or not ending.complete else [ending.status, ending.reason]
        return {"stage": self.stage, "ending": over}

    def load_state(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's metadata."""
        self.dispatched = meta["step"]
        self.stage = self.restored_stage = meta["stage"]
