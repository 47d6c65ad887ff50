"""Predict a stream of numbers while it arrives, and learn from it: one prediction per line, of the line to come.

sensor | python recipes/live.py --run-dir checkpoints/sensor --journal checkpoints/sensor.txt
python recipes/live.py --run-dir checkpoints/sensor --listen 7007      # lines from a TCP connection to 127.0.0.1:7007
python recipes/live.py --run-dir checkpoints/sensor --values 3         # three numbers per line

For each line of numbers, it prints the number of the line (counted from 0) and the prediction of the next line. The
next line is then the target from which it learns. Strategy and network are options; by default D-RTRL with an update at
every time step. A line that does not hold --values finite numbers is reported on stderr, and otherwise ignored.

The same command continues after a restart, from the last save: there is one every --save-every lines, at the end of the
input, and after SIGTERM or Ctrl-C.

With --journal FILE, each line is handed to the operating system before it is used. After a restart, the lines since the
last save are read from the file, and their predictions are printed again: nothing is lost, and the session continues
bit for bit, if the process was killed. The file is forced to the disk before each save, so after a power failure, lines
since the last save may be lost; the file and the save still fit. It grows with the stream.

Without a journal, the lines since the last save are lost after a kill, and the last line after SIGTERM or Ctrl-C, whose
target had not arrived. Their number is printed at the restart: the file "received" in the run directory counts the
lines that were used.

Lines that the sender had written but this program had not read are unknown to it, with and without a journal. It reads
no further than the line that it uses, so the rest stays in the pipe as long as somebody holds it open; in a connection
it is lost. A sender that must know compares the number of the last prediction with its own.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from jaxtrain.cli.options import NetworkOptions, check_options, streamed
from jaxtrain.errors import ConfigError

ROOT = Path("checkpoints/live")


@dataclass(frozen=True)
class Config(NetworkOptions):
    """Predict a stream of numbers while it arrives, and learn from it."""

    values: int = 1
    """numbers per line"""
    hidden: int = 64
    """units per layer"""
    lr: float = 3e-3
    """learning rate of Adam"""
    clip: float | None = 1.0
    """largest global norm of the gradient"""
    seed: int = 0
    """seed of the initial values"""
    save_every: int = 1000
    """lines between saves"""
    journal: str | None = None
    """file to which each line is written before it is used"""
    listen: int | None = None
    """port on 127.0.0.1 whose connections send the lines, one connection at a time; 0: any free port; none: stdin"""

    def __post_init__(self):
        check_options(self, counts=("values", "save_every"))
        if self.listen is not None and not 0 <= self.listen < 2**16:
            raise ConfigError(f"--listen {self.listen}: expected a port from 0 to 65535")


def make(config: Config):
    """Create Fit, module and an example of a time step. JAX is imported here, so that --help does not load it."""
    import braintools
    import jax.numpy as jnp
    import numpy as np

    import jaxtrain as jt

    class Next(jt.Module):
        def build(self):
            return config.network(config.values, config.values, 10)

        def learning_step(self, forward, x, y):
            return jnp.square(forward(x) - y).mean(-1)

        def configure_optimizer(self):
            return braintools.optim.Adam(config.lr)

    fit = jt.Fit(streamed(config.make_strategy()), clip=config.clip, seed=config.seed, run_dir=config.run_dir)
    line = np.zeros((1, config.values), np.float32)
    return fit, Next(), (line, line)


class Journal:
    """A file with every line that was used."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with open(path, "rb") as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)  # a line that a full disk cut off was not used
        self.lines = content[:whole].decode().splitlines()

    def replayed(self, steps: int) -> list[str]:
        """The lines after the first ``steps``, which a session has used up to its last save."""
        if len(self.lines) < steps:
            raise ConfigError(f"--journal holds {len(self.lines)} lines, and the run has used {steps}: it is another's")
        return self.lines[steps:]

    def add(self, line: str) -> None:
        data = f"{line}\n".encode()
        if os.write(self._file, data) != len(data):
            raise OSError("--journal: the disk is full")

    def before_save(self) -> None:
        os.fsync(self._file)


class Counter:
    """A file with the number of lines that were used, for a stream without a journal."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def replayed(self, steps: int) -> list[str]:
        """Report the lines that were lost, and count from the last save."""
        lost = int(os.pread(self._file, 20, 0) or steps) - steps
        if lost > 0:
            print(f"{lost} lines were used after the last save, and are lost (--journal keeps them)", file=sys.stderr)
        self._count = steps
        return []

    def add(self, line: str) -> None:
        self._count += 1
        os.pwrite(self._file, b"%20d" % self._count, 0)

    def before_save(self) -> None: ...


def lines(port: int | None) -> Iterator[str]:
    """The lines of stdin, or of the connections to a port. Nothing beyond a line is read before the line is used."""
    if port is None:
        with open(0, "rb", buffering=0, closefd=False) as file:
            yield from (line.decode(errors="replace") for line in file)
        return
    with socket.create_server(("127.0.0.1", port)) as server:
        print(f"listening on 127.0.0.1:{server.getsockname()[1]}", file=sys.stderr, flush=True)
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rb", buffering=0) as file:
                # A connection that breaks may cut a number off.
                yield from (line.decode(errors="replace") for line in file if line.endswith(b"\n"))


def numbers(line: str, count: int) -> list[float]:
    """The numbers of a line, or [] with a message if it does not hold as many."""
    try:
        found = [float(word) for word in line.split()]
    except ValueError:
        found = []
    if len(found) != count or not all(abs(value) < 1e30 for value in found):
        print(f"ignored {line.strip()[:40]!r}: expected {count} finite numbers", file=sys.stderr)
        return []
    return found


def run(config: Config, resume: str) -> None:
    """Predict and learn until the input ends."""
    import numpy as np

    fit, module, example = make(config)
    with fit.online(module, example, resume=resume, config=config.saved()) as live:
        record = Journal(config.journal) if config.journal else Counter(Path(str(live.run_dir)) / "received")
        previous, count = None, live.steps

        def use(line: str) -> None:
            nonlocal previous, count
            if not (values := numbers(line, config.values)):
                return
            if count >= known:
                record.add(line.strip())
            value = np.array([values], np.float32)
            if previous is not None:
                live.step(previous, value)
                if live.steps % config.save_every == 0:
                    record.before_save()
                    live.save()
            forecast = " ".join(f"{number:.9g}" for number in live.predict(value)[0])
            print(count, forecast, flush=True)
            previous, count = value, count + 1

        again = record.replayed(live.steps)
        known = live.steps + len(again)
        for line in again:
            use(line)
        for line in lines(config.listen):
            use(line)
        if config.journal is None and previous is not None:
            live.step(previous)  # without its target; a journal has it, and the next start learns from it
        record.before_save()


def main() -> int:
    """Parse the command line, and run."""
    from jaxtrain.cli.parse import parse
    from jaxtrain.cli.run_dirs import fresh_run
    from jaxtrain.utils.compilation_cache import use_compilation_cache

    argv = sys.argv[1:]
    options, flags, start = parse(
        Config, {}, argv if "--resume" in argv else [*argv, "--resume", "last"], "live.py", ROOT
    )
    config = cast(Config, options)
    if flags["dry_run"] or flags["processes"] != 1:
        raise ConfigError("live.py has no --dry-run and no --processes: leave them out")
    run_dir = start.run_dir or fresh_run(ROOT, f"{config.strategy}-seed{config.seed}")
    logging.basicConfig(stream=sys.stderr, format="%(message)s")  # stdout has the predictions alone
    use_compilation_cache()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(replace(config, run_dir=str(run_dir)), str(start.resume))
    return 0


if __name__ == "__main__":
    from jaxtrain.cli.failures import guarded

    sys.exit(guarded(main))
