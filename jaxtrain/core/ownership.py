"""Exclusive use of models: one thread at a time traces and runs them, and a run in progress owns its module.

Tracing uses state of the whole process (brainstate's random numbers and environment).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class RunInProgress(Protocol):
    """What can be asked about a run in progress."""

    def trains(self, module: Any) -> bool: ...
    def shares(self, module: Any) -> bool: ...
    def uses(self, callback: Any) -> bool: ...
    def describe(self) -> str: ...


runs: list[RunInProgress] = []
"""Runs in progress in the thread that holds ``alone``, each before the runs that its callbacks start."""
_lock = threading.RLock()
_owner = ""


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Context or decorator in which only the current thread may trace and run models. It is reentrant.

    Args:
        what: The operation, for messages.

    Raises:
        RuntimeError: Another thread is in this context.
    """
    global _owner
    if not _lock.acquire(blocking=False):
        raise RuntimeError(
            f"{what}: {_owner or 'another thread'} is running, and models are traced with state that all threads of a "
            "process share: call one after the other, or each in its own process (multiprocessing's 'spawn')"
        )
    before, _owner = _owner, _owner or f"{what} in thread {threading.current_thread().name!r}"
    try:
        yield
    finally:
        _owner = before
        _lock.release()


def step_by_step[T](iterator: Iterator[T], what: str) -> Iterator[T]:
    """An iterator that is ``alone`` while it computes an item, but not between two items."""
    while True:
        with alone(what):
            item = next(iterator, None)
        if item is None:
            return
        yield item
        del item  # or it would be kept while the next one is computed


@contextmanager
def under_way(live: RunInProgress) -> Iterator[None]:
    """Context during which a run trains its module."""
    runs.append(live)
    try:
        yield
    finally:
        runs.remove(live)


def run_of(module: Any) -> Any:
    """The run in progress that trains ``module``, or None.

    Raises:
        RuntimeError: A run trains the module's model, or a part of it, as part of another module.
    """
    for live in reversed(runs):
        if live.trains(module):
            return live
        if live.shares(module):
            raise RuntimeError(
                f"{live.describe()}, and this {type(module).__name__} has its model or a part of it: read it with "
                "run.predict(data), run.validate(data) or run.params(), or wait for the end of the run"
            )
    return None


def refuse_in_use(module: Any, what: str, callbacks: Iterable[Any] = ()) -> None:
    """Raise RuntimeError if a run in progress trains this module or a part of it, or uses one of these callbacks."""
    if (live := run_of(module)) is not None:
        raise RuntimeError(f"{what}: {live.describe()}: wait for its end, or use a new module")
    for callback in callbacks:
        if any(live.uses(callback) for live in runs):
            name = type(callback).__name__
            raise RuntimeError(f"{what}: a run in progress uses this {name}: create another {name}")
