"""Starts several processes of a recipe on this machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.kit import forks

ROOT = Path(__file__).parents[1]
TIMEOUT = 15
"""Seconds after which a silent process counts as dead."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group:
    """Started processes, from the arguments of Python for each; ``texts`` holds the output of each."""

    def __init__(self, each: Sequence[Sequence[str]], folder: Path, **environ: str):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        prefix = f"output-{len(list(folder.glob('output-*')))}"
        self._files = [folder / f"{prefix}-{number}.txt" for number in range(len(each))]
        self.processes = []
        for words, path in zip(each, self._files, strict=True):
            command = [sys.executable, *words]
            with path.open("w") as file:
                self.processes.append(forks.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder))

    def wait(self, seconds: float = 240) -> list[int]:
        return [process.wait(seconds) for process in self.processes]

    @property
    def texts(self) -> list[str]:
        return [path.read_text() for path in self._files]

    def errors(self) -> list[list[str]]:
        """The lines with an error, for each process."""
        return [[line for line in text.splitlines() if "error: " in line] for text in self.texts]


def started(recipe: Path, each: Sequence[Sequence[str]], folder: Path, **environ: str):
    """Start a recipe, with flags for each process."""
    coordinator, count = f"127.0.0.1:{free_port()}", str(len(each))
    shared = ["--processes", count, "--coordinator", coordinator, "--process-timeout", str(TIMEOUT), "--no-progress"]
    words = [[str(recipe), *shared, "--process", str(number), *flags] for number, flags in enumerate(each)]
    return running(words, folder, **environ)


@contextmanager
def running(each: Sequence[Sequence[str]], folder: Path, **environ: str) -> Iterator[Group]:
    group = Group(each, folder, **environ)
    try:
        yield group
    finally:
        for process in group.processes:
            process.kill()
            process.wait()
