"""Time of a train step of Fit compared with PyTorch Lightning, for the same GRU on the same copying task.

python benchmarks/peers.py                                  # needs: pip install -e '.[bench]'
python benchmarks/peers.py --python OTHER/bin/python        # an interpreter that has torch and lightning

Each as its users would write it. Lightning: its Trainer with torch's GRU and Adam, batches that are tensors already, no
logger, no checkpoints, no progress bar. Fit: no loggers, no progress bar, and batches are created during training.
Lightning runs in another process, which waits while Fit runs; whole runs take turns. The reported time is that of the
steps after the first of a run, so that compilation and setup do not count. Lightning computes the gradient of BPTT. It
runs with torch's default number of threads and with one, since threads that wait for each other are slow on a busy
machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import common

HIDDEN, DEPTH, LR = 128, 10, 1e-3
LIGHTNING = "PyTorch Lightning, BPTT"
ONE_THREAD = f"{LIGHTNING}, one thread"
NEEDED = ("torch", "lightning")
MARK = "answer: "
"""Prefix of answers, because Lightning writes other lines to the same stream."""


# ------------------------------------------------------------------------------------- Lightning, without JAX


def serve(path: str, hidden: int, threads: int) -> None:
    """For every number of steps on standard input, train and print the seconds per step."""
    import numpy as np

    torch: Any = importlib.import_module("torch")
    lightning: Any = importlib.import_module("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # advice about data loading and a missing logger
    with np.load(path) as arrays:
        batches = [tuple(map(torch.from_numpy, pair)) for pair in zip(arrays["inputs"], arrays["targets"], strict=True)]
    marks: list[float] = []

    class Copy(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.GRU(DEPTH, hidden)
            self.readout = torch.nn.Linear(hidden, DEPTH)

        def training_step(self, batch, index):
            ids, targets = batch
            states, _ = self.rnn(torch.nn.functional.one_hot(ids, DEPTH).float())
            logits = self.readout(states[-len(targets) :])
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), LR)

        def on_train_batch_end(self, *args):
            marks.append(time.perf_counter())

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, quiet = Copy(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    versions = {name: importlib.metadata.version(name) for name in NEEDED} | {"threads": torch.get_num_threads()}
    print(MARK + json.dumps(versions), flush=True)
    for line in sys.stdin:
        steps = int(line)
        marks.clear()
        trainer = lightning.Trainer(max_steps=steps + 1, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(model, Repeated(batches, steps + 1))
        print(MARK + json.dumps((marks[-1] - marks[0]) / steps), flush=True)


class Repeated:
    """Repeats a list of batches. Lightning would treat a list as a collection of loaders."""

    def __init__(self, batches: list[Any], length: int):
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        return (self.batches[i % len(self.batches)] for i in range(self.length))


class Lightning:
    """The process in which Lightning runs. A call trains for a number of steps and returns the seconds per step."""

    def __init__(self, python: str, path: Path, hidden: int, threads: int = 0):
        command = [python, __file__, "--serve", str(path), "--hidden", str(hidden), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{LIGHTNING} ended with exit code {self.process.wait()}")

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


def missing(python: str) -> list[str]:
    """Names of the required packages that an interpreter does not have."""
    code = f"import importlib.util, json; print(json.dumps([n for n in {NEEDED} if not importlib.util.find_spec(n)]))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch and lightning")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="steps per run")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.hidden, options.threads)
    if options.rounds < 1 or options.steps < 20:
        parser.error("--rounds must be 1 or more and --steps 20 or more")
    if absent := missing(options.python):
        return print(f"skipped: {options.python} has no {' and no '.join(absent)}; pip install -e '.[bench]'")

    import numpy as np
    from copy_task import Setting

    setting = Setting(hidden=options.hidden)
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        batches = setting.batches(8)
        arrays = {"inputs": [ids for ids, _ in batches], "targets": [targets for _, targets in batches]}
        path, stacked = Path(root) / "batches.npz", {name: np.stack(a).astype(np.int64) for name, a in arrays.items()}
        np.savez(path, inputs=stacked["inputs"], targets=stacked["targets"])
        peers = {
            LIGHTNING: Lightning(options.python, path, options.hidden),
            ONE_THREAD: Lightning(options.python, path, options.hidden, threads=1),
        }
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
    table = common.table(["", "ms per step, median (quartiles)", "/ Lightning", "/ Lightning, one thread"], rows)
    versions = ", ".join(f"{name} {version}" for name, version in peers[LIGHTNING].versions.items())
    sections = {title: [*table, "", f"{versions}."]}
    print(common.machine())
    common.show(sections)
    if options.json:
        common.save("peers", sections, timing.seconds, options.json)


if __name__ == "__main__":
    main()
