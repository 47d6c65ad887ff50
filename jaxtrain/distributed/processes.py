"""Several processes that train one model: how they start, and exchange values.

All communication uses JAX's coordination service and costs the devices nothing. Every process calls the same functions
in the same order. If a process dies, the service or a broken connection ends the others (`ending.py`). A process that
fails reports the reason before it ends.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import ConfigError, ProcessEnded, ProcessError

SECONDS = 100
"""Seconds of silence after which a process counts as dead."""
_SLICE_MS, _KEPT = 1000, 1000
_FAILED = "jaxtrain/failed"
_run, _turns = 0, itertools.count()
_polls = itertools.count(1)


def jax_state() -> Any:
    """JAX's distributed state, or None if there is one process. Does not import JAX."""
    module = sys.modules.get("jax._src.distributed")
    state = getattr(module, "global_state", None)
    return state if getattr(state, "client", None) is not None else None


def count() -> int:
    """Number of processes of the run: 1 unless ``start`` or ``jax.distributed.initialize`` was called."""
    state = jax_state()
    return 1 if state is None else state.num_processes


def index() -> int:
    """Number of this process, starting at 0."""
    state = jax_state()
    return 0 if state is None else state.process_id


def is_first() -> bool:
    """Return True in process 0, which writes files and prints log messages."""
    return index() == 0


def rank_prefix() -> str:
    """Prefix that names this process in output; empty if there is only one."""
    return "" if count() == 1 else f"process {index()}: "


# ------------------------------------------------------------------------------------------------------ starting


def check(processes: Any, process: int | None, coordinator: str | None, seconds: int) -> None:
    """Raise ConfigError if the options of ``start`` are invalid or do not fit together."""
    if processes == "auto":
        if process is not None or coordinator is not None:
            raise ConfigError("--processes auto takes the process and the coordinator from the job: leave them out")
    elif processes == 1:
        if process not in (None, 0):
            raise ConfigError(f"--process {process}: expected --processes N with it, the number of all processes")
    elif type(processes) is not int or processes < 1:
        raise ConfigError(f"--processes {processes}: expected a whole number, 1 or more, or auto")
    elif process is None or coordinator is None:
        which = "0 or 1" if processes == 2 else f"0 to {processes - 1}"
        raise ConfigError(f"--processes {processes} needs --process {which} and --coordinator HOST:PORT")
    elif not 0 <= process < processes:
        raise ConfigError(f"--processes {processes} --process {process}: expected 0 to {processes - 1}")
    elif not re.fullmatch(r"\S+:\d{1,5}", coordinator):
        raise ConfigError(f"--coordinator {coordinator}: expected HOST:PORT, on which process 0 listens")
    if seconds < 1:
        raise ConfigError(f"--process-timeout {seconds}: expected seconds, 1 or more")


def start(processes: Any, process: int | None = None, coordinator: str | None = None, seconds: int = SECONDS) -> None:
    """Join the other processes, before JAX is used; print an error and exit if not all have joined within ``seconds``.

    With "auto", JAX reads the settings of SLURM, Open MPI or Kubernetes. Raises ConfigError if the options are invalid
    and RuntimeError if the processes cannot be joined.
    """
    check(processes, process, coordinator, seconds)
    if processes == 1:
        return
    import jax

    options, where = {}, "from the job's environment"
    if processes != "auto":
        options = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
        options["cluster_detection_method"] = "deactivate"
        where = f"process {process} of {processes} at {coordinator}"
    what = f"the processes cannot be joined ({where})"
    late = f"{what}: not all joined within {seconds} s; are all started, with the same --processes and --coordinator?"
    timer = threading.Timer(seconds, _exit_with_error, (late,))
    timer.daemon = True
    timer.start()
    try:
        if process == 0:
            _refuse_port_in_use(coordinator)
        # JAX aborts a process on timeout with a message of its own; twice the time lets ours come first.
        jax.distributed.initialize(**options, initialization_timeout=2 * seconds, heartbeat_timeout_seconds=seconds)
        jax.local_devices()  # exchanges the devices, now that all processes are here
    except Exception as error:
        text = " ".join(str(error).split())
        if "should be defined" in text or "must be defined" in text:
            text = "JAX finds no SLURM, Open MPI or Kubernetes job; give --processes, --process and --coordinator"
        raise RuntimeError(f"{what}: {text[:300]}") from error
    finally:
        timer.cancel()


def _refuse_port_in_use(coordinator: str | None) -> None:
    port = str(coordinator).rpartition(":")[2]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise RuntimeError(f"port {port} cannot be used ({error.strerror}); choose another") from None


def _exit_with_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(1)


# --------------------------------------------------------------------------------------------- exchanging values


def begin() -> None:
    """Begin a run in all processes, so that messages and failures of earlier runs do not affect it."""
    global _run, _turns
    _run, _turns = _run + 1, itertools.count()


def _key(*parts: Any) -> str:
    return "/".join(map(str, ("jaxtrain", _run, *parts)))


def broadcast(value: Any = None) -> Any:
    """Return the first process's JSON ``value`` in every process."""
    if count() == 1:
        return value
    turn, client = next(_turns), jax_state().client
    if is_first():
        client.key_value_set(_key(turn), json.dumps(value))
        if turn >= _KEPT:  # no process is so far behind: devices synchronise more often
            client.key_value_delete(_key(turn - _KEPT))
        return value
    return json.loads(_wait(_key(turn)))


def gather(value: Any = None) -> list[Any]:
    """Return the JSON values of all processes in the first process, and an empty list in the others."""
    if count() == 1:
        return [value]
    turn, client = next(_turns), jax_state().client
    if not is_first():
        client.key_value_set(_key(turn, index()), json.dumps(value))
        return []
    return [value, *(json.loads(_wait(_key(turn, other))) for other in range(1, count()))]


def barrier() -> None:
    """Barrier: continue when all processes have arrived."""
    gather()
    broadcast()


def barrier_within(name: str, seconds: float) -> bool:
    """Barrier with a timeout: return True if all processes reach the barrier ``name`` within ``seconds``."""
    if count() == 1:
        return True
    try:
        jax_state().client.wait_at_barrier(_key(name), int(1000 * seconds))
        return True
    except Exception:  # the client raises one kind of error for everything
        return False


def _wait(key: str) -> str:
    """Wait for the value that another process sets under ``key``. Has no timeout: JAX detects dead processes."""
    client = jax_state().client
    while True:
        try:
            return client.blocking_key_value_get(key, _SLICE_MS)
        except Exception as error:
            failure = reported()
            if failure is not None or "DEADLINE_EXCEEDED" not in str(error):
                raise failure or ProcessEnded() from error


def reported() -> ProcessError | None:
    """The first failure that another process has reported, or None."""
    with suppress(Exception):  # there is none, or the service cannot be reached
        client = jax_state().client
        entries = [*client.key_value_dir_get(_key("failed")), *client.key_value_dir_get(_FAILED)]
        _, other, text = min(json.loads(text) for _, text in entries)
        return ProcessError(f"process {other} failed: {text}")
    return None


@contextmanager
def report_failures(*, ends: bool = False) -> Iterator[None]:
    """Report an error raised in this context to the processes that wait for this one in the current run.

    If the error ``ends`` this process, processes that wait in any run get the report.
    """
    try:
        yield
    except BaseException as error:
        if count() > 1 and not isinstance(error, ProcessError):
            text = " ".join(str(error).split()) or type(error).__name__
            try:
                failure = json.dumps([time.time(), index(), text[:500]])
                key = f"{_FAILED}/{index()}" if ends else _key("failed", index())
                jax_state().client.key_value_set(key, failure, allow_overwrite=True)
            except Exception as failed:
                error.add_note(f"jaxtrain: this error could not be reported to the other processes: {failed}")
        raise


def reached_preemption() -> bool:
    """Whether any process has received SIGTERM. All call this at the same points and get the same answer.

    JAX catches the signal (its preemption service); with a handler of our own the processes could disagree. Orbax's
    ``reached_preemption`` makes the same query, but logs a line in every process.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_polls))


def allgather(array: Any) -> Any:
    """Gather a device array that spans processes, as numpy; return other arrays unchanged.

    All processes must call it.
    """
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return array
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)
