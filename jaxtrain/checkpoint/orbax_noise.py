"""What Orbax does to the process beside saving, kept from the program that embeds jaxtrain.

Where the root logger has no handler, each line that Orbax logs through absl calls basicConfig, as if that program had,
whose own call would then do nothing. Its errors are written to absl's logger, and raised or named by jaxtrain as well.
And it reads and writes leaves side by side and closes its event loop at the first that fails: what becomes of the
others would be told a second time, at length, at some moment of the garbage collector or of TensorStore's threads, by
asyncio, with the path of the step, and through sys.unraisablehook, with nothing that says whose it is.

So while a store is in use the root logger has absl's handler, and these lines are dropped. When none is, all is as
before, unless a read or a save failed: what is told of that one stays silent for good.
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
"""Failed reads and saves that are remembered: the reports of older ones have come by now."""

_lock = threading.Lock()
_users: weakref.WeakSet[Any] = weakref.WeakSet()
_root: list[logging.Handler] = []
_hooks: list[Callable[[Any], None]] = []  # ours, and what it stands before
# Replaced whole, never changed: the threads of Orbax and of TensorStore read them while they grow and shrink.
_under_way: tuple[str, ...] = ()
_failed: tuple[str, ...] = ()


def hold(user: object) -> None:
    """``user`` uses Orbax from now on, until ``release``."""
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
            if _hooks and sys.unraisablehook is _hooks[0]:  # else somebody's own stands before it
                sys.unraisablehook = _hooks[1]
            _hooks.clear()


def begin(step: Path) -> None:
    """A step is read or saved from now on."""
    global _under_way
    with _lock:
        _under_way = (*_under_way, str(step))


def end(step: Path, well: bool) -> None:
    """It is over; where not ``well``, more may be said of it at any time, by Orbax's threads through absl, too."""
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
