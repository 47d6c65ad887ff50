"""faults.c built and preloaded: processes whose changes to a directory are counted and broken."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNT, KILL, HALF, FAIL = range(4)
ERRORS = {"ENOSPC": (FAIL, errno.ENOSPC), "EIO": (FAIL, errno.EIO)}
MODES = {"count": (COUNT, 0), "kill": (KILL, 0), "half": (HALF, 0), **ERRORS}


def missing() -> str | None:
    """Why the library cannot be built here."""
    if sys.platform != "linux":
        return "the preloaded library needs Linux"
    return None if shutil.which("cc") else "the preloaded library needs a C compiler, cc"


def build(folder: Path) -> Path:
    target = folder / "faults.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(target), str(HERE / "faults.c")]
    done = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@dataclass(frozen=True)
class Fault:
    """What happens at the calls ``first`` to ``last`` of those that match ``call`` and ``path`` ("": all)."""

    mode: str
    first: int = 0
    last: int = 0
    call: str = ""
    path: str = ""

    def key(self) -> str:
        which = f"{self.call} {self.path}".strip()
        return f"{self.mode} {self.first}" + (f"-{self.last}" if self.last != self.first else "") + f" {which}".rstrip()

    def order(self) -> dict[str, Any]:
        mode, error = MODES[self.mode]
        return {**asdict(self), "mode": mode, "error": error}


@dataclass(frozen=True)
class Call:
    """One line of the library's report."""

    name: str
    path: str

    def kind(self) -> str:
        """The path as a pattern for all files of its kind."""
        path = re.sub(r"[0-9a-f]{32}", "*", self.path)
        path = re.sub(r"events\.out\..*", "events.out.*", path)
        return re.sub(r"\d{8,}", "*", path)


def calls(log: Path) -> list[Call]:
    return [Call(*line.removesuffix(" !").split(" ", 2)[1:]) for line in log.read_text().splitlines()]


def arm(directory: Path, fault: dict[str, Any], log: int) -> None:
    """In a process with the library: from now on, changes below the directory meet the fault (``Fault.order``)."""
    arguments = [fault[key] for key in ("mode", "first", "last", "error", "call", "path")]
    encoded = [value.encode() if isinstance(value, str) else value for value in arguments]
    arm = ctypes.CDLL(None).faults_arm
    arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_char_p,
                    ctypes.c_char_p, ctypes.c_int]  # fmt: skip
    assert arm(str(directory).encode(), *encoded, log) == 0


class Server:
    """See server.py. ``run`` is one run of the tiny recipe in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], logs: Path):
        self.process, self.logs = process, logs

    def run(self, directory: Path, fault: Fault | None = None, resume: str = "last") -> dict[str, Any]:
        log = self.logs / f"{directory.name}.log"
        order = {"dir": str(directory), "resume": resume, "fault": fault and fault.order(), "log": str(log)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return {**answer, "calls": calls(log) if fault else []}


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Builds the library, and serves; ``folder`` gets its reports."""
    environment = {**os.environ, "LD_PRELOAD": str(build(folder))}
    command = [sys.executable, str(HERE / "server.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Server(process, folder)
        process.stdin.close()
