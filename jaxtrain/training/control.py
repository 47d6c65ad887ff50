"""Control: what ends a stretch of chunks, and the run, decided alike in all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..callbacks.run import Requests, Run
from ..distributed import processes
from ..utils.files import as_json
from .progress import Ending
from .schedule import Schedule
from .signals import Signals

SECONDS = 10
"""How long a process with an error waits for the others to have one too."""


@dataclass(frozen=True)
class Due:
    """Why the loop stops between two chunks: a signal, an event, or both."""

    signal: str | None
    event: bool


@dataclass(frozen=True)
class Orders:
    """What callbacks asked for, to be done now."""

    save: bool
    task: dict[str, Any] | None


class Control:
    """Reads the schedule, the clock, signals and what callbacks ask for.

    Clocks and callbacks of several processes may differ, so all take those of the first one. Every process calls the
    same methods in the same order, and each call that changes the view makes one exchange between them.
    """

    def __init__(self, schedule: Schedule, signals: Signals, run: Run):
        self.schedule, self._signals, self._run = schedule, signals, run

    def poll(self, step: int) -> Due | None:
        """What is due once ``step`` is reached; None where the next chunk may begin.

        Requests are read before the metrics of the last chunk are delivered. Where a signal is all that is due, what
        callbacks ask for during that delivery waits, as it would have without the signal.
        """
        signal = self.poll_signal()
        self._exchange(clock=True)
        schedule = self.schedule
        asked = self._run.requests.any() or schedule.out_of_time or schedule.validate_now
        event = asked or schedule.is_boundary(step)
        return Due(signal, event) if event or signal is not None else None

    @property
    def signal(self) -> str | None:
        """The signal that ends the run, as far as it is known."""
        return self._signals.received

    def poll_signal(self) -> str | None:
        """The signal that ends the run: one that has come to any of the processes."""
        # JAX catches SIGTERM for several processes: handlers of their own would act at different steps.
        if processes.count() > 1 and self._signals.received is None and processes.reached_preemption():
            self._signals.received = "SIGTERM"
        return self._signals.received

    def ending(self, step: int, *, clock: bool = False) -> Ending | None:
        """Why the run ends at this boundary, signals apart; None where it goes on.

        Args:
            step: The step of the boundary.
            clock: Whether to look at the clock anew.
        """
        self._exchange(clock)
        if (reason := self._run.requests.stop) is not None:
            return Ending("stopped", reason, complete=True)
        if self.schedule.is_over(step):
            return Ending("finished", complete=True)
        return Ending("stopped", "max_time reached") if self.schedule.out_of_time else None

    def take_validation(self, step: int) -> bool:
        """Whether a validation is due at this boundary; a request for one is taken with that."""
        asked, self._run.requests.validate = self._run.requests.validate, False
        return asked or self.schedule.validation_due(step)

    def take(self, ending: Ending | None) -> tuple[Orders, Ending | None]:
        """Take what callbacks asked for. Requests for a validation wait for the next boundary, and so does a stop.

        Args:
            ending: Why the run ends here; a stop that comes too late for that still makes the run complete.
        """
        self._exchange(clock=False)
        asked = self._run.requests
        if ending is not None and asked.stop is not None:
            ending = Ending(ending.status, ending.reason, complete=True)
        self._run.requests = Requests(validate=asked.validate, stop=asked.stop if ending is None else None)
        return Orders(asked.save, asked.task), ending

    def all_failed(self, step: int) -> bool:
        """Whether all processes have an error after this step: then they can save together."""
        return processes.barrier_within(f"error/{step}", SECONDS)

    def _exchange(self, clock: bool) -> None:
        schedule, run = self.schedule, self._run
        now = schedule.look() if clock else None
        if processes.count() > 1:
            asked = as_json(vars(run.requests), f"what callbacks ask for at step {run.step}")
            now, asked = processes.broadcast([now, asked])
            run.requests = Requests(**asked)
        if now is not None:
            schedule.validate_now, schedule.out_of_time = now
