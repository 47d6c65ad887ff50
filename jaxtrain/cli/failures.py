"""Turns errors of a command into one line on stderr and an exit code."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..distributed import processes
from ..distributed.ending import exit_code_of
from ..errors import ConfigError
from ..utils.logging import calls_of, run_main

STDLIB = (Path(os.__file__).parent, Path(os.__file__).parent / "pathlib")
EXPECTED = (ValueError, TypeError, RuntimeError, OSError, LookupError, ArithmeticError, ModuleNotFoundError)


def guarded(work: Callable[[], int]) -> int:
    """Run a command and print expected errors in one line.

    Args:
        work: The command; returns its exit code.

    Returns:
        The exit code of `work`; 2 after a ConfigError, 75 if another process of several has ended, 1 after another
        error that jaxtrain raised deliberately, 130 after Ctrl-C.

    Raises:
        Exception: Any error of the user's code or a bug in jaxtrain, so that Python prints its traceback. With
            `JAXTRAIN_TRACEBACK=1` every error is raised.

    >>> guarded(lambda: 0)
    0
    """
    show_traceback = os.environ.get("JAXTRAIN_TRACEBACK") == "1"
    try:
        return run_main(work)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError as error:
        return _print(f"not enough memory: {_text(error) or 'an allocation failed'}", 1)
    except EXPECTED as error:
        if show_traceback or not (isinstance(error, ConfigError) or is_deliberate(error)):
            raise
        notes = [note for note in getattr(error, "__notes__", []) if "JAX_TRACEBACK_FILTERING" not in note]
        return _print("; ".join([_text(error), *notes]), exit_code_of(error))


def _print(message: str, code: int) -> int:
    print(" ".join(f"{processes.rank_prefix()}error: {message}".split()), file=sys.stderr)
    return code


def _text(error: BaseException) -> str:
    """The message alone: str() of a KeyError has quotes around it, that of an OSError begins with its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def is_deliberate(error: BaseException) -> bool:
    """Return True if jaxtrain raised the error on purpose, or if the system denied it a file.

    False means a bug, or an error in the user's code.
    """
    calls = calls_of(error)
    files = [file for file, _ in calls]
    if isinstance(error, OSError):
        while files and (str(files[-1]).startswith("<frozen") or files[-1].parent in STDLIB):
            files.pop()
    if not files or not files[-1].is_relative_to(Path(__file__).parents[1]):
        return False
    # A `raise` statement, rather than an operation that failed.
    raised = dis.opname[calls[-1][1].tb_frame.f_code.co_code[calls[-1][1].tb_lasti]] == "RAISE_VARARGS"
    return raised or isinstance(error, OSError)
