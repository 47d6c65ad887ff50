"""Limits what Orbax does to the logging of the program that embeds jaxtrain.

If the root logger has no handler, each line that Orbax logs through absl calls basicConfig, and the program's own call
to basicConfig would have no effect. Orbax also logs errors to absl's logger that jaxtrain already raises or reports.

Orbax reads and writes leaves concurrently and closes its event loop at the first failure. The failures of the other
leaves would be reported again, at length, at some later moment, when the garbage collector or TensorStore's threads
run: by asyncio, with the path of the step, and through sys.unraisablehook, without naming the origin.

Therefore, while a store is in use, the root logger has absl's handler, and these messages are dropped. When no store is
in use, everything is restored. Only messages about a read or save that failed stay suppressed.
"""

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import absl.logging

MOST = 64
"""Number of failed reads and saves that are remembered; reports of older ones have arrived by then."""

_lock = threading.Lock()
_users: weakref.WeakSet[Any] = weakref.WeakSet()
_root: list[logging.Handler] = []
_hooks: list[Callable[[Any], None]] = []  # our unraisablehook, and the hook that it wraps
# Replaced as a whole, never mutated: threads of Orbax and TensorStore read them concurrently.
_under_way: tuple[str, ...] = ()
_failed: tuple[str, ...] = ()


def hold(user: object) -> None:
    """Mark ``user`` as using Orbax until ``release``."""
    with _lock:
        if user in _users:
            return
        _users.add(user)
        if not logging.root.handlers:
            logging.root.addHandler(absl.logging.get_absl_handler())
            _root.append(absl.logging.get_absl_handler())
        logging.getLogger("absl").addFilter(_not_orbax)
        logging.getLogger("asyncio").addFilter(_not_under_way)
        if not _hooks or sys.unraisablehook is not _hooks[0]:
            _hooks[:] = _unless_late(sys.unraisablehook), sys.unraisablehook
            sys.unraisablehook = _hooks[0]


def release(user: object) -> None:
    with _lock:
        _users.discard(user)
        if _users:
            return
        while _root:
            logging.root.removeHandler(_root.pop())
        logging.getLogger("absl").removeFilter(_not_orbax)
        if not _failed:
            logging.getLogger("asyncio").removeFilter(_not_under_way)
            if _hooks and sys.unraisablehook is _hooks[0]:  # else another hook was installed over it
                sys.unraisablehook = _hooks[1]
            _hooks.clear()


def begin(step: Path) -> None:
    """Mark a step as being read or saved."""
    global _under_way
    with _lock:
        _under_way = (*_under_way, str(step))


def end(step: Path, well: bool) -> None:
    """Mark an operation as finished. After a failure (``well`` is False), its late log messages are suppressed.

    Orbax's threads may report a failed operation at any later time, also through absl.
    """
    global _under_way, _failed
    with _lock:
        if not well:
            _failed = (*(path for path in _failed if path != str(step)), str(step))[-MOST:]
            logging.getLogger("absl").addFilter(_not_failed)
        _under_way = tuple(path for path in _under_way if path != str(step))


def _not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_failed(record: logging.LogRecord) -> bool:
    return not any(path in record.getMessage() for path in _failed)


def _not_under_way(record: logging.LogRecord) -> bool:
    return not any(path in record.getMessage() for path in (*_under_way, *_failed))


def _unless_late(before: Callable[[Any], None]) -> Callable[[Any], None]:
    def hook(what: Any) -> None:
        late = str(what.exc_value) == "Event loop is closed" and what.object is None
        if not late or not (_under_way or _failed):
            before(what)

    return hook
