"""One thread at a time, since models are traced with state of the whole process (brainstate's random numbers and
environment); and the runs under way, whose modules are theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class RunUnderWay(Protocol):
    """What may be asked of a run that trains a module."""

    def trains(self, module: Any) -> bool: ...
    def shares(self, module: Any) -> bool: ...
    def tells(self, callback: Any) -> bool: ...
    def describe(self) -> str: ...


runs: list[Any] = []
"""Under way, in the thread that is in ``alone``: a run that a callback starts comes behind the one that called it."""
_lock = threading.RLock()
_owner = ""


@contextmanager
def alone(what: str) -> Iterator[None]:
    """While this thread, and no other, traces and runs models; also a decorator. A callback may enter again.

    Args:
        what: what is done, for the message.

    Raises:
        RuntimeError: another thread is in here.
    """
    global _owner
    if not _lock.acquire(blocking=False):
        raise RuntimeError(
            f"{what}: {_owner or 'another thread'} is at work, and models are traced with state that all threads of a "
            "process share: call one after the other, or each in a process of its own (multiprocessing's 'spawn')"
        )
    before, _owner = _owner, _owner or f"{what} in thread {threading.current_thread().name!r}"
    try:
        yield
    finally:
        _owner = before
        _lock.release()


@contextmanager
def under_way(live: RunUnderWay) -> Iterator[None]:
    """While a run trains its module."""
    runs.append(live)
    try:
        yield
    finally:
        runs.remove(live)


def run_of(module: Any) -> Any:
    """The run under way that trains this module. Raises RuntimeError where one trains its model under another."""
    for live in reversed(runs):
        if live.trains(module):
            return live
        if live.shares(module):
            raise RuntimeError(
                f"{live.describe()}, whose model, or a part of it, this {type(module).__name__} has: read it by "
                "run.predict(data), run.validate(data) or run.params(), or wait for the end of the run"
            )
    return None


def refuse_in_use(module: Any, what: str, callbacks: Iterable[Any] = ()) -> None:
    """Raise RuntimeError where a run under way trains this module or a part of it, or tells one of these callbacks."""
    if (live := run_of(module)) is not None:
        raise RuntimeError(f"{what}: {live.describe()}: wait for its end, or give a new module")
    for callback in callbacks:
        if any(live.tells(callback) for live in runs):
            name = type(callback).__name__
            raise RuntimeError(f"{what}: a run under way tells this {name} of its events: give a {name} of its own")
