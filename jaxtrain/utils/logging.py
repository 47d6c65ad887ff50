"""The logger ``"jaxtrain"``: info to stdout, warnings to stderr, without breaking a progress bar."""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ..distributed import processes

log = logging.getLogger("jaxtrain")


class _Console(logging.Handler):
    """Prints plain lines to stdout and warnings to stderr, without breaking a tqdm bar.

    If the program that embeds jaxtrain has configured logging, its handlers receive the records instead. A root handler
    from absl does not count: absl, a dependency of Orbax, installs it unasked. With several processes, the first one
    prints everything and the others print only warnings.
    """

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        if not (processes.is_first() or warning):
            return
        theirs = [h for h in logging.getLogger().handlers if not type(h).__module__.startswith("absl")]
        if theirs:
            for handler in theirs:
                if handler not in log.handlers and record.levelno >= handler.level:  # never emit a record twice
                    handler.handle(record)
            return
        text = f"{processes.rank_prefix()}{record.levelname.lower()}: " * warning + self.format(record)
        try:
            self._write(text, sys.stderr if warning else sys.stdout)
        except OSError as error:  # a lost reader (`| head`, a terminal) must not end the run
            if not _has_lost_reader(error):
                raise

    def _write(self, text: str, stream: TextIO) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            print(text, file=stream, flush=True)
        else:
            tqdm.tqdm.write(text, file=stream)
            stream.flush()


def run_main(work: Callable[[], int]) -> int:
    """Run ``work`` and return its exit code, or that of its SystemExit (``--help``, usage errors).

    Output is flushed. If nobody reads it any more, as after ``| head``, no error is printed; Python would print a
    traceback at exit. If a closed pipe interrupted the work, the exit code is 141, as a shell reports for SIGPIPE.
    """
    try:
        code = work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BrokenPipeError as error:
        if not _has_lost_reader(error):
            raise
        return 141
    try:
        sys.stdout.flush()
    except OSError as error:
        if not _has_lost_reader(error):
            raise
    return code


def _has_lost_reader(error: OSError) -> bool:
    """Return True if the error means that stdout or stderr has no reader any more: a closed pipe, or a lost terminal.

    Such a stream is redirected to /dev/null.
    """
    if error.errno not in (errno.EPIPE, errno.EIO) or error.filename is not None:
        return False
    poll = select.poll()
    poll.register(1, 0)
    poll.register(2, 0)
    closed = [number for number, events in poll.poll(0) if events & (select.POLLERR | select.POLLHUP)]
    for number in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(closed)


def warn_of_foreign(cls: type, names: Mapping[str, str]) -> None:
    """Issue a UserWarning for each method of a new class that another library would call but jaxtrain never calls.

    A helper may have such a name, so this is not an error.

    Args:
        cls: The class.
        names: Names of methods in the other library, each with what to do in jaxtrain.
    """
    for name in vars(cls):
        if name in names:
            # stacklevel 3: the class statement, seen from its __init_subclass__.
            warnings.warn(f"{cls.__name__}.{name} is never called by jaxtrain; {names[name]}", stacklevel=3)


def calls_of(error: BaseException) -> list[tuple[Path, TracebackType]]:
    """The file and the traceback of each call that an error passed through, the innermost last."""
    calls, call = [], error.__traceback__
    while call is not None:
        calls.append((Path(call.tb_frame.f_code.co_filename), call))
        call = call.tb_next
    return calls


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, if any."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


if not log.handlers:
    log.addHandler(_Console())
    if log.level == logging.NOTSET:  # a level that the program set before stays
        log.setLevel(logging.INFO)
    log.propagate = False
