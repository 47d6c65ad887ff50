"""Time of a train step of Fit compared with PyTorch, with and without Lightning, for the same GRU and copying task.

python benchmarks/peers.py                                  # needs: pip install -e '.[bench]'
python benchmarks/peers.py --python OTHER/bin/python        # an interpreter that has torch and lightning

Each as its users would write it, with torch's GRU and Adam, and batches that are tensors already. Lightning: its
Trainer, no logger, no checkpoints, no progress bar. The loop: forward, backward and optimizer, nothing else. Fit: no
loggers, no progress bar, and batches are created during training.

PyTorch runs in other processes, which wait while Fit runs; whole runs take turns. The reported time is that of the
steps after the first of a run, so that compilation and setup do not count. PyTorch computes the gradient of BPTT. It
runs with its default number of threads and with one, since threads that wait for each other are slow on a busy machine,
and on a GPU if it finds one.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import common

HIDDEN, DEPTH, LR = 128, 10, 1e-3
NEEDED = {"lightning": ("torch", "lightning"), "loop": ("torch",)}
"""Packages that each way to train with PyTorch needs."""
NAMES = {"lightning": "PyTorch Lightning", "loop": "PyTorch loop"}
MARK = "answer: "
"""Prefix of answers, because Lightning writes other lines to the same stream."""


# ------------------------------------------------------------------------------------------ PyTorch, without JAX


def serve(path: str, hidden: int, threads: int, way: str) -> None:
    """For every number of steps on standard input, train and print the seconds per step."""
    import numpy as np

    torch: Any = importlib.import_module("torch")
    with np.load(path) as arrays:
        batches = [tuple(map(torch.from_numpy, pair)) for pair in zip(arrays["inputs"], arrays["targets"], strict=True)]
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = {"lightning": lightning_run, "loop": loop_run}[way](torch, make_network(torch, hidden), batches)
    versions = {name: importlib.metadata.version(name) for name in NEEDED[way]} | {"threads": torch.get_num_threads()}
    print(MARK + json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(MARK + json.dumps(run(int(line))), flush=True)


def make_network(torch: Any, hidden: int) -> Any:
    """A torch module that maps a batch, ids (T, B) and targets (scored, B), to its loss."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.GRU(DEPTH, hidden)
            self.readout = torch.nn.Linear(hidden, DEPTH)

        def forward(self, ids, targets):
            states, _ = self.rnn(torch.nn.functional.one_hot(ids, DEPTH).float())
            logits = self.readout(states[-len(targets) :])
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return Network()


def now(torch: Any) -> float:
    """Seconds, when all computations are done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def lightning_run(torch: Any, network: Any, batches: list[Any]) -> Callable[[int], float]:
    lightning: Any = importlib.import_module("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # advice about data loading and a missing logger
    marks: list[float] = []

    class Copy(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch, index):
            return self.network(*batch)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), LR)

        def on_train_batch_end(self, outputs, batch, index):
            if index in (0, self.trainer.max_steps - 1):
                marks.append(now(torch))

    model, quiet = Copy(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"

    def run(steps: int) -> float:
        marks.clear()
        trainer = lightning.Trainer(
            max_steps=steps + 1, accelerator=accelerator, devices=1, enable_model_summary=False, **quiet
        )
        trainer.fit(model, Repeated(batches, steps + 1))
        return (marks[-1] - marks[0]) / steps

    return run


def loop_run(torch: Any, network: Any, batches: list[Any]) -> Callable[[int], float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    def run(steps: int) -> float:
        optimizer, started = torch.optim.Adam(network.parameters(), LR), 0.0
        for i in range(steps + 1):
            ids, targets = (part.to(device) for part in batches[i % len(batches)])
            optimizer.zero_grad()
            network(ids, targets).backward()
            optimizer.step()
            if i == 0:
                started = now(torch)
        return (now(torch) - started) / steps

    return run


class Repeated:
    """Repeats a list of batches. Lightning would treat a list as a collection of loaders."""

    def __init__(self, batches: list[Any], length: int):
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        return (self.batches[i % len(self.batches)] for i in range(self.length))


class Peer:
    """A process in which PyTorch runs. A call trains for a number of steps and returns the seconds per step."""

    def __init__(self, way: str, python: str, path: Path, hidden: int, threads: int = 0):
        command = [python, __file__, "--serve", str(path), "--hidden", str(hidden), "--threads", str(threads)]
        command += ["--way", way]
        self.name = NAMES[way]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")

    def __call__(self, steps: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------------------------------ Fit


def fit_run(strategy: str, setting: Any) -> Any:
    from copy_task import Copy

    import jaxtrain as jt

    class WithoutVal(jt.datasets.CopyDataModule):
        def val_data(self) -> Any:
            return None

    data = WithoutVal(setting.time - 2 * setting.scored, setting.scored, setting.batch)

    class Clock(jt.Callback):
        def __init__(self):
            self.marks: list[tuple[int, float]] = []

        def on_chunk_end(self, run, metrics):
            self.marks.append((run.step, time.perf_counter()))

    def run(steps: int) -> float:
        clock = Clock()
        fit = jt.Fit(strategy, max_steps=steps, chunk=10, callbacks=[clock], loggers=(), progress=False)
        fit.run(Copy(setting), data)
        (first, started), (last, ended) = clock.marks[0], clock.marks[-1]
        return (ended - started) / (last - first)

    return run


def missing(python: str, packages: Iterable[str]) -> list[str]:
    """Names of those packages that an interpreter does not have."""
    names = list(packages)
    code = f"import importlib.util, json; print(json.dumps([n for n in {names} if not importlib.util.find_spec(n)]))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch and lightning")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="steps per run")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=list(NEEDED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.hidden, options.threads, options.way)
    if options.rounds < 1 or options.steps < 20:
        parser.error("--rounds must be 1 or more and --steps 20 or more")
    ways = []
    for way, packages in NEEDED.items():
        if absent := missing(options.python, packages):
            lacks = f"{options.python} has no {' and no '.join(absent)}; pip install -e '.[bench]'"
            print(f"skipped: {NAMES[way]}: {lacks}")
        else:
            ways.append(way)
    if not ways:
        return None

    import numpy as np
    from copy_task import Setting

    setting = Setting(hidden=options.hidden)
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        batches = setting.batches(8)
        arrays = {"inputs": [ids for ids, _ in batches], "targets": [targets for _, targets in batches]}
        path, stacked = Path(root) / "batches.npz", {name: np.stack(a).astype(np.int64) for name, a in arrays.items()}
        np.savez(path, inputs=stacked["inputs"], targets=stacked["targets"])
        peers: dict[str, Peer] = {}
        for way, (threads, text) in itertools.product(ways, {0: "", 1: ", one thread"}.items()):
            peers[NAMES[way] + text] = Peer(way, options.python, path, options.hidden, threads)
        try:
            runs = {**peers, **{f"Fit, {name}": fit_run(name, setting) for name in ("bptt", "drtrl")}}
            timing = common.by_turns_of_runs(runs, options.rounds, options.steps)
        finally:
            for peer in peers.values():
                peer.close()
    rows = []
    for name in timing.seconds:
        low, median, high = (1e3 * value for value in timing.quartiles(name))
        ratios = [f"{timing.ratio(name, reference):.3f}" for reference in peers]
        rows.append([name, f"{median:.1f} ({low:.1f} to {high:.1f})", *ratios])
    title = f"gru, hidden {setting.hidden}, {setting.warm} + {setting.scored} time steps, batch {setting.batch}"
    table = common.table(["", "ms per step, median (quartiles)", *(f"/ {name}" for name in peers)], rows)
    first = next(iter(peers.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    sections = {title: [*table, "", f"{versions}."]}
    print(common.machine())
    common.show(sections)
    if options.json:
        common.save("peers", sections, timing.seconds, options.json)


if __name__ == "__main__":
    main()
