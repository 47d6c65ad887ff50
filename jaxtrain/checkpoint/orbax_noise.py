"""Limits what Orbax does to the logging of the program that embeds jaxtrain.

If the root logger has no handler, each line that Orbax logs through absl calls basicConfig, and the program's own call
to basicConfig would have no effect. Orbax also logs errors to absl's logger that jaxtrain already raises or reports.

Orbax reads and writes leaves concurrently and closes its event loop at the first failure. The failures of the other
leaves would be reported again, at length, at some later moment, when the garbage collector or TensorStore's threads
run: by asyncio and absl, with the path of the step, and through sys.unraisablehook, without naming the origin.

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
"""Number of operations that are remembered; reports of older ones have arrived by then."""

_lock = threading.Lock()
_users: weakref.WeakSet[Any] = weakref.WeakSet()
_root: list[logging.Handler] = []  # absl's handler, if it was added to the root logger
_hooks: list[Callable[[Any], None]] = []  # our unraisablehook, and the hook that it wraps
_unsuccessful: tuple[str, ...] = ()
"""Path of the step of each read or save that is in progress or failed. Replaced as a whole, never mutated: threads of
Orbax and TensorStore read it concurrently."""


def suppress_while_used(user: object) -> None:
    """Suppress Orbax's messages until ``release(user)``."""
    with _lock:
        _users.add(user)
        if not logging.root.handlers:
            _root.append(absl.logging.get_absl_handler())
            logging.root.addHandler(_root[0])
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_wanted)
        if not _hooks or sys.unraisablehook is not _hooks[0]:
            _hooks[:] = _unless_late(sys.unraisablehook), sys.unraisablehook
            sys.unraisablehook = _hooks[0]


def release(user: object) -> None:
    """Restore everything if this was the last user. After a failure, the filters and the hook stay."""
    with _lock:
        _users.discard(user)
        if _users:
            return
        while _root:
            logging.root.removeHandler(_root.pop())
        if not _unsuccessful:
            for name in ("absl", "asyncio"):
                logging.getLogger(name).removeFilter(_is_wanted)
            if _hooks and sys.unraisablehook is _hooks[0]:  # else another hook was installed over it
                sys.unraisablehook = _hooks[1]
            _hooks.clear()


def begin(step: Path) -> None:
    """Suppress messages about a step that is read or saved, until ``succeeded`` is called: for good if it fails."""
    global _unsuccessful
    with _lock:
        _unsuccessful = (*_unsuccessful, str(step))[-MOST:]


def succeeded(step: Path) -> None:
    """Stop suppressing messages about a step, unless an earlier operation on it failed."""
    global _unsuccessful
    with _lock:
        paths = [*_unsuccessful]
        if str(step) in paths:
            paths.remove(str(step))
        _unsuccessful = tuple(paths)


def _is_wanted(record: logging.LogRecord) -> bool:
    if _users and f"{os.sep}orbax{os.sep}" in record.pathname:
        return False
    return not any(path in record.getMessage() for path in _unsuccessful)


def _unless_late(previous: Callable[[Any], None]) -> Callable[[Any], None]:
    def hook(event: Any) -> None:
        late = str(event.exc_value) == "Event loop is closed" and event.object is None
        if not (late and _unsuccessful):
            previous(event)

    return hook
