"""Control: what is due, and whether the run ends: the same in all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from ..callbacks.run import Requests, Run
from ..distributed import processes
from ..distributed.ending import explain_lost
from ..utils.files import as_json
from .progress import Ending
from .schedule import Schedule
from .signals import Signals

SECONDS = 10
"""How long a process that failed waits for the others to fail too."""


@contextmanager
def in_all_processes() -> Iterator[None]:
    """Context of a run in every process. An error raised in it is reported to the others, which may wait for it."""
    processes.begin()
    with processes.report_failures():
        yield


def one_process() -> bool:
    """Whether this is the only process of the program."""
    return processes.count() == 1


class Control:
    """Combines the schedule, the clock, signals and the requests of callbacks.

    Clocks and callbacks may differ between processes, so all processes use those of the first one. Every process calls
    the same methods in the same order, and each of ``poll``, ``ending`` and ``take`` makes one exchange.
    """

    def __init__(self, schedule: Schedule, signals: Signals, run: Run):
        self.schedule, self._signals, self._run = schedule, signals, run

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return one_process()

    @property
    def writes(self) -> bool:
        """Whether this process writes files, which only the first one does."""
        return processes.is_first()

    def catch_signals(self) -> Any:
        """Context that catches signals. With several processes, JAX catches them, so that all end at the same step."""
        return self._signals if self.alone else nullcontext()

    def explain_lost(self) -> Any:
        """Context that re-raises an error caused by a lost process as one that says so, with the step."""
        run = self._run
        return explain_lost(lambda: f"step {run.step}" + (f" of {run.max_steps}" if run.max_steps else ""))

    def poll(self, step: int) -> Literal["boundary", "signal"] | None:
        """What is due once ``step`` is reached: a boundary, or only a signal; None if the next chunk may start.

        This runs before the metrics of the newest chunk are delivered. Requests made during that delivery wait for the
        next boundary, unless this step is one.
        """
        signal = self.poll_signal()
        self._exchange(clock=True)
        schedule = self.schedule
        requested = self._run.requests.any() or schedule.out_of_time or schedule.validate_now
        if requested or schedule.is_boundary(step):
            return "boundary"
        return None if signal is None else "signal"

    @property
    def signal(self) -> str | None:
        """The signal that ends the run, as of the last ``poll_signal``."""
        return self._signals.received

    def poll_signal(self) -> str | None:
        """The signal that ends the run. With several processes, it may have been sent to any of them."""
        if not self.alone and self._signals.received is None and processes.reached_preemption():
            self._signals.received = "SIGTERM"
        return self._signals.received

    def by_signal(self) -> Ending:
        """The ending of a run that a signal ends."""
        return Ending("interrupted" if self.signal == "SIGINT" else "terminated", self.signal)

    def ending(self, step: int, *, clock: bool = False) -> Ending | None:
        """Why the run ends at this boundary, apart from signals; None if it continues.

        Args:
            step: The step of the boundary.
            clock: Whether to read the clock again.
        """
        self._exchange(clock)
        if (reason := self._run.requests.stop) is not None:
            return Ending("stopped", reason, complete=True)
        if self.schedule.is_over(step):
            return Ending("finished", complete=True)
        return Ending("stopped", "max_time reached") if self.schedule.out_of_time else None

    def take_validation(self, step: int) -> bool:
        """Return True if a validation is due at this boundary. A request for one is cleared."""
        requested, self._run.requests.validate = self._run.requests.validate, False
        return requested or self.schedule.validation_due(step)

    def take(self, ending: Ending | None) -> tuple[Requests, Ending | None]:
        """Take the requests of callbacks to save and to change the task. Others wait for the next boundary.

        Args:
            ending: Why the run ends here. A late request to stop makes this ending complete.
        """
        self._exchange(clock=False)
        requests = self._run.requests
        if ending is not None and requests.stop is not None:
            ending = Ending(ending.status, ending.reason, complete=True)
        self._run.requests = Requests(validate=requests.validate, stop=requests.stop if ending is None else None)
        return requests, ending

    def all_failed(self, step: int) -> bool:
        """Whether all processes failed after this step, so that they can save it together."""
        return processes.barrier_within(f"error/{step}", SECONDS)

    def _exchange(self, clock: bool) -> None:
        """Make the first process's clock and requests those of all processes."""
        schedule, run = self.schedule, self._run
        now = schedule.read_clock() if clock else None
        if not self.alone:
            requests = as_json(vars(run.requests), f"what callbacks ask for at step {run.step}")
            now, requests = processes.broadcast([now, requests])
            run.requests = Requests(**requests)
        if now is not None:
            schedule.validate_now, schedule.out_of_time = now
