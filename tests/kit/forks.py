"""Start `python ...` by forking a process that has already imported everything, which saves the imports.

`Popen` and `run` take the arguments of their namesakes in `subprocess` that the tests use, for commands that begin with
`sys.executable`. The forking process has imported JAX but has no backend and no threads, so a child behaves like a new
process. Use `subprocess` to test what a program does before or while it imports JAX.
"""

import atexit
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT
TimeoutExpired, CompletedProcess = subprocess.TimeoutExpired, subprocess.CompletedProcess

PRELOADED = ["jax", "brainstate", "braintools", "braintrace", "optax", "orbax.checkpoint", "matplotlib.figure"]
PRELOADED += ["tensorboardX.event_file_writer", "tqdm", "jaxtrain.training.fit", "jaxtrain.loggers.tensorboard"]
PRELOADED += ["jaxtrain.cli", "tests.small"]

# OpenBLAS would start threads at import, and a process with threads cannot be forked safely.
FORKS_WITH = {"OPENBLAS_NUM_THREADS": "1"}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def _become(words: list[str], folder: str, environ: dict[str, str], streams: list[Connection]) -> None:
    """Do what the interpreter does with its command line."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    logging.root.handlers.clear()  # of the process that forks
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    first, sys.argv = words[0], words
    sys.path[:0] = filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))
    try:
        if first == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
        elif first == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, folder)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _start_server() -> None:
    before = dict(os.environ)
    os.environ.update(FORKS_WITH)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def cpu_seconds() -> float:
    """CPU seconds of all children that have ended."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is None or not Path(f"/proc/{server}/stat").exists():
        return 0.0
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime and cstime


class Popen:
    """A forked process. What it writes to a pipe is read as text."""

    def __init__(self, args: Sequence[Any], *, cwd: Any = None, env: Mapping[str, str] | None = None,
                 stdout: Any = None, stderr: Any = None, text: bool = True):  # fmt: skip
        self.stdout: Any = None
        self.stderr: Any = None
        self.args = [str(word) for word in args]
        if self.args[0] != sys.executable:
            raise ValueError(f"{self.args[0]}: expected {sys.executable}")
        environ = dict(os.environ if env is None else env)
        names = {name for name in (*environ, *os.environ) if name.startswith("JAX_")}
        if changed := {name for name in names if environ.get(name) != os.environ.get(name)}:
            raise ValueError(f"{sorted(changed)}: JAX has read them before the fork; use subprocess")
        _start_server()
        self.stdout, out = self._end(stdout, 1)
        self.stderr, err = (None, os.dup(out)) if stderr == STDOUT else self._end(stderr, 2)
        streams = [Connection(fd, readable=False) for fd in (os.open(os.devnull, os.O_RDONLY), out, err)]
        self._process = _context.Process(target=_become, daemon=True,
                                         args=(self.args[1:], str(cwd or Path.cwd()), environ, streams))  # fmt: skip
        self._process.start()
        for stream in streams:
            stream.close()

    @staticmethod
    def _end(where: Any, own: int) -> tuple[Any, int]:
        """The readable end of a pipe, if any, and the descriptor for the child."""
        if where == PIPE:
            reads, writes = os.pipe()
            return open(reads), writes
        return None, os.dup(own if where is None else where.fileno())

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(stream.read if stream else lambda: None) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except BaseException:  # also an interrupt: the readers wait until the process has ended
                self.kill()
                raise
        self._close()
        return texts[0].result(), texts[1].result()

    def _close(self) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended since then
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        self._close()

    __del__ = _close


def run(args: Sequence[Any], *, timeout: float = 300, capture_output: bool = False, **options: Any) -> Any:
    """A `subprocess.CompletedProcess`."""
    if capture_output:
        options |= {"stdout": PIPE, "stderr": PIPE}
    process = Popen(args, **options)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return CompletedProcess(process.args, process.returncode, out, err)
