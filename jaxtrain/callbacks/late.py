"""Late: events that a logger could not take because of a disk error, and that it gets later."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from ..utils.logging import log, one_line

if TYPE_CHECKING:
    from .base import Callback
    from .run import Run

MOST_LATE = 10_000
"""Largest number of events that may wait for one logger."""
READS = ("module", "params", "predict", "validate", "record", "generate")
"""What reads the model of a run."""
REPEATED = ("flush", "state")
"""Calls that are made again at the next save, so they need not wait."""
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.ENFILE, errno.EMFILE,
)  # fmt: skip
"""Errors of a write or an fsync. The error of an open names the file instead."""


class Late:
    """Queues of late events, one for each logger. Events are delivered in order, before any newer event."""

    def __init__(self) -> None:
        self._queues: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}
        self._warned: set[str] = set()

    def add(self, name: str, event: str, args: tuple[Any, ...], error: Exception) -> bool:
        """Queue an event, with one warning for each logger. Returns False if too many events wait."""
        if name not in self._warned:
            self._warned.add(name)
            log.warning("%s.%s failed: %s; pending events are queued and will be retried", name, event, one_line(error))
        if event in REPEATED:
            return True
        queue = self._queues.setdefault(name, [])
        queue.append((event, (_Past(args[0]), *args[1:])))
        return len(queue) <= MOST_LATE

    def retry(self, name: str, callback: Callback) -> None:
        """Deliver the late events of a logger. The first error is raised; that event and later ones stay queued."""
        queue = self._queues.get(name, [])
        while queue:
            event, args = queue[0]
            getattr(callback, event)(*args)
            del queue[0]
        self.forget(name)

    def forget(self, name: str) -> None:
        """Discard the late events of a logger."""
        self._queues.pop(name, None)


class _Past:
    """A run as a late event sees it: ``step`` and ``metrics`` as they were, everything else as it is now."""

    def __init__(self, run: Run):
        self._run, self.step, self.metrics = run, run.step, dict(run.metrics)

    def __getattr__(self, name: str) -> Any:
        if name in READS and self.step != self._run.step:
            raise RuntimeError(
                f"run.{name} in an event of step {self.step} that was delivered at step {self._run.step} after a disk "
                "error: its values no longer exist; read the model in a callback of another rank than 'record'"
            )
        return getattr(self._run, name)


def is_disk_error(error: Exception) -> bool:
    """Whether an event may be retried after this error.

    Sockets, and libraries that use them (urllib, requests, ssl), raise OSErrors or subclasses of their own, too. These
    are not retried, because each retry could cost a timeout.
    """
    if not isinstance(error, OSError) or type(error).__module__ != "builtins":
        return False
    return error.filename is not None or error.errno in DISK_ERRORS
