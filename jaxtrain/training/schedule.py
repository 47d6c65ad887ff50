"""Schedule: when events are due. It depends only on the step, except for periods given as a time."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..period import Period


def total_steps(max_steps: int | None, max_epochs: int | None, epoch_length: int | None) -> int | None:
    """Number of steps of a whole run; None if only the clock or a callback ends it."""
    totals = [] if max_steps is None else [max_steps]
    if max_epochs is not None:
        if epoch_length is None:
            raise ValueError("Fit(max_epochs=...) needs train data with a length; give max_steps instead")
        totals.append(max_epochs * epoch_length)
    return min(totals, default=None)


def unused_batches(total: int | None, accumulate: int, epochs: bool = False) -> list[str]:
    """A note for the report if the last batches of a run make no update.

    Args:
        total: Number of steps of the run, or None if unknown.
        accumulate: Number of batches per update.
        epochs: Whether the run is as long as a number of epochs.

    Raises:
        ValueError: The run has too few batches for an update.
    """
    if total is None or total % accumulate == 0:
        return []
    whole = total - total % accumulate
    if not whole:
        raise ValueError(f"Fit(accumulate={accumulate}): a run of {total} batches would make no update; give more")
    instead = " in place of max_epochs" if epochs else ""
    return [
        f"accumulate={accumulate}: the last {total - whole} of {total} batches make no update; choose "
        f"max_steps={whole} or max_steps={whole + accumulate}{instead}"
    ]


class Schedule:
    """The boundaries of a run, and the chunks between them.

    A chunk ends at every multiple of ``chunk`` and at every boundary, so chunks do not depend on the step from which a
    run was resumed. The clock starts when the schedule is created.

    Args:
        chunk: Largest number of steps of a chunk.
        total: Number of steps of the whole run; None if only the clock or a callback ends it.
        max_time: Time after which the run ends, or None.
        validate_every: Period of validations, or None.
        epoch_length: Steps per epoch, or None if unknown.
        boundaries: Other periods with boundaries.
        epochs_are_boundaries: Whether the end of an epoch is a boundary.

    Raises:
        ValueError: A period counts epochs, but ``epoch_length`` is None.
    """

    def __init__(self, *, chunk: int, total: int | None, max_time: Period | None, validate_every: Period | None,
                 epoch_length: int | None, boundaries: Iterable[Period],
                 epochs_are_boundaries: bool = False):  # fmt: skip
        self.chunk, self.total, self.epoch_length = chunk, total, epoch_length
        self.validate_every = validate_every
        self._max_time = max_time
        periods = [*boundaries, *([validate_every] if validate_every else [])]
        if epochs_are_boundaries and epoch_length:
            periods.append(Period(1, "epoch"))
        self._periods = [period for period in periods if period.unit != "time"]
        for period in self._periods:
            period.steps(epoch_length)  # raises now, not at the first event
        self._started = self._validated = time.monotonic()
        self.validate_now = self.out_of_time = False
        """What ``look`` returned last."""

    def next_boundary(self, step: int) -> int | None:
        """The first boundary after ``step``; None if there is none."""
        due = [period.next(step, self.epoch_length) for period in self._periods]
        return min((boundary for boundary in (*due, self.total) if boundary is not None), default=None)

    def length(self, step: int) -> int:
        """Number of steps of the chunk that starts at ``step``."""
        n = self.chunk - step % self.chunk
        boundary = self.next_boundary(step)
        return n if boundary is None else max(0, min(n, boundary - step))

    def is_boundary(self, step: int) -> bool:
        return self.is_over(step) or any(period.due(step, self.epoch_length) for period in self._periods)

    def is_over(self, step: int) -> bool:
        return self.total is not None and step >= self.total

    def is_epoch_end(self, step: int) -> bool:
        return bool(self.epoch_length) and step > 0 and step % self.epoch_length == 0

    def validation_due(self, step: int) -> bool:
        if self.validate_every is None:
            return False
        if self.validate_every.unit == "time":
            return self.validate_now
        return self.validate_every.due(step, self.epoch_length)

    def read_clock(self) -> tuple[bool, bool]:
        """Read the clock: whether a validation is due by time, and whether ``max_time`` has passed."""
        every, now = self.validate_every, time.monotonic()
        self.validate_now = every is not None and every.unit == "time" and now - self._validated >= every.n
        self.out_of_time = self._max_time is not None and now - self._started >= self._max_time.n
        return self.validate_now, self.out_of_time

    def validated(self) -> None:
        """Start the time to the next validation."""
        self._validated, self.validate_now = time.monotonic(), False
