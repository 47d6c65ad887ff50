"""Pipeline: chunks of steps on their way through the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.metrics import Pending
from .progress import Progress
from .workload import Workload


@dataclass(frozen=True)
class Chunk:
    """Steps that were dispatched together."""

    metrics: Pending
    batches: list[Any]


class Pipeline:
    """Dispatches chunks, and hands each on while the next one computes.

    At most one chunk is in flight once ``previous`` has been called, and none once ``drain`` has.

    Args:
        workload: The programs and the data.
        progress: Counts the dispatched steps.
        keep: Called before each dispatch, which overwrites the model's values.
    """

    def __init__(self, workload: Workload, progress: Progress, keep: Callable[[], None] | None = None):
        self._workload, self._progress, self._keep = workload, progress, keep
        self._chunks: deque[Chunk] = deque()
        self.failure: Exception | None = None
        """An error of the data. The whole steps before it count, so it is not raised at once."""

    def dispatch(self, n: int) -> None:
        """Dispatch the next ``n`` steps; where the data fails, those before the failure."""
        iterator, start = self._workload.iterator, self._progress.dispatched
        try:
            batches = iterator.take(n)
        except Exception as error:
            self.failure = error
            batches = iterator.take(iterator.ready)
        if not batches:
            return
        if self._keep is not None:
            self._keep()
        self._chunks.append(Chunk(self._workload.program.train(batches, start), batches))
        self._progress.dispatched += len(batches)

    def previous(self) -> Chunk | None:
        """The chunk before the newest one, whose metrics are next; None where there is none."""
        return self._chunks.popleft() if len(self._chunks) > 1 else None

    def drain(self) -> Chunk | None:
        """The last chunk in flight; None where there is none."""
        return self._chunks.popleft() if self._chunks else None

    def prefetch(self, n: int) -> None:
        """Make the batches of the next ``n`` steps while the device computes."""
        self._workload.iterator.prefetch(n)
