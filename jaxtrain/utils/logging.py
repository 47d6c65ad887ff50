"""What jaxtrain says to the person at the terminal: the logger ``"jaxtrain"``, written around a progress bar."""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TextIO

from ..distributed import processes

log = logging.getLogger("jaxtrain")


class _Console(logging.Handler):
    """Plain lines on stdout, warnings on stderr, without tearing a tqdm bar.

    Where the program that embeds jaxtrain has set up logging of its own, its handlers get the lines instead. (absl,
    which comes with Orbax, puts a handler on the root logger unasked: that is nobody's set-up.) Of several processes
    the first one speaks, and others warn.
    """

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        if not (processes.is_first() or warning):
            return
        theirs = [h for h in logging.getLogger().handlers if not type(h).__module__.startswith("absl")]
        if theirs:
            for handler in theirs:
                if handler not in log.handlers and record.levelno >= handler.level:  # one of both hears it once
                    handler.handle(record)
            return
        text = f"{processes.who()}{record.levelname.lower()}: " * warning + self.format(record)
        try:
            self._write(text, sys.stderr if warning else sys.stdout)
        except OSError as error:  # a run does not end for the sake of who reads along, as `| head` or a terminal
            if not _unheard(error):
                raise

    def _write(self, text: str, stream: TextIO) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            print(text, file=stream, flush=True)
        else:
            tqdm.tqdm.write(text, file=stream)
            stream.flush()


def heard(work: Callable[[], int]) -> int:
    """``work()``'s exit code, or that of its SystemExit (``--help``, usage). What it printed is flushed, and nothing is
    said where nobody reads any more, as after ``| head``: Python would say it at the exit, at length. Work that a
    closed pipe cut short has the code that a shell gives for SIGPIPE, 141."""
    try:
        code = work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BrokenPipeError as error:
        if not _unheard(error):
            raise
        return 141
    try:
        sys.stdout.flush()
    except OSError as error:
        if not _unheard(error):
            raise
    return code


def _unheard(error: OSError) -> bool:
    """Whether it is that nobody reads stdout or stderr any more; what is written there from now on goes nowhere."""
    if error.errno not in (errno.EPIPE, errno.EIO) or error.filename is not None:
        return False
    closed = [number for number in (1, 2) if _unread(number)]
    for number in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(closed)


def _unread(number: int) -> bool:
    """Whether a file descriptor is a pipe whose other end is closed, or a terminal that is gone."""
    poll = select.poll()
    poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def warn_of_foreign(cls: type, names: Mapping[str, str]) -> None:
    """A UserWarning for each method of a new class that another library would call, and jaxtrain never does.

    ``names``: what they are called there -> what to do here. A helper may be called so: this is no error.
    """
    for name in vars(cls):
        if name in names:
            # The class statement, from within its __init_subclass__.
            warnings.warn(f"{cls.__name__}.{name} is never called by jaxtrain; {names[name]}", stacklevel=3)


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message, which may be empty."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


if not log.handlers:
    log.addHandler(_Console())
    log.setLevel(logging.INFO)
    log.propagate = False
