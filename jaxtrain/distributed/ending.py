"""How a program that trains in several processes ends, and how it notices that another process has ended."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import ConfigError, ProcessEnded, ProcessError
from .processes import count, index, is_first, jax_state, rank_prefix, reported

LEFT = "jaxtrain/left/"
LEAVE_SECONDS = 20
"""Seconds that the first process waits for the others to report why they end."""
BROKEN = re.compile(
    r"\b(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
    r"(?![^\n]*out of memory)[^\n]*(?i:\b(gloo|heartbeat|coordination service|barrier (failed|timed out)|broken pipe|"
    r"socket closed|connection (reset|closed|refused|aborted))\b|\bnccl\b[^\n]*(remote|connection|abort|time))"
)
"""Errors of JAX that a lost connection causes: a status and its message. JAX raises them as ValueError, too."""


@contextmanager
def explain_lost(where: Callable[[], str]) -> Iterator[None]:
    """Re-raise an error caused by a lost process as an error that says so.

    Args:
        where: Returns how far this process is, such as "step 100 of 600".

    Raises:
        ProcessError: The other process has reported why it failed.
        ProcessEnded: It has not.
    """
    try:
        yield
    except Exception as error:
        if count() == 1 or not (isinstance(error, ProcessEnded) or BROKEN.search(str(error))):
            raise
        raise reported() or ProcessEnded(f" (at {where()})") from error


def exit_code_of(error: BaseException) -> int:
    """The exit code of a program that ends with this error."""
    own = error.exit_code if isinstance(error, ConfigError | ProcessError) else 1
    return 130 if isinstance(error, KeyboardInterrupt) else own


def run(work: Callable[[], int]) -> int:
    """Run a program that may train in several processes.

    If one of several processes failed, it exits here, immediately: on a normal exit, JAX would wait for the others,
    which wait for this one.

    Args:
        work: The program; returns an exit code.

    Returns:
        The exit code.

    >>> code = jaxtrain.distributed.run(lambda: 0)  # then sys.exit(code)
    """
    try:
        code = work()
    except SystemExit as leaving:
        if count() == 1 or leaving.code in (None, 0):
            raise
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        if count() == 1:
            raise
        code, known = exit_code_of(error), isinstance(error, ProcessError)
        if known and os.environ.get("JAXTRAIN_TRACEBACK") != "1":
            print(f"{rank_prefix()}error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
    if count() > 1 and code not in (0, 143):
        _leave(code)
    return code


def _leave(code: int) -> None:
    """Exit. The first process exits last: JAX ends the others with its own message as soon as the first is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    # A process that has ended without a report is not waited for.
    client, others = jax_state().client, count() - 1 - (code == ProcessEnded.exit_code)
    with suppress(Exception):  # this process exits in any case
        if is_first():
            until = time.monotonic() + LEAVE_SECONDS
            while time.monotonic() < until and len(client.key_value_dir_get(LEFT)) < others:
                time.sleep(0.1)
            time.sleep(1)  # by then, those that reported have exited
        else:
            client.key_value_set(f"{LEFT}{index()}", "")
    os._exit(code)
