"""Time per step of a run that an ``ArrayDataset`` feeds, over the same run on one batch held in memory.

python benchmarks/feed.py
python benchmarks/feed.py --strategies bptt --only rows --rounds 30 --json feed.json

Both runs train the same network on batches of the same shapes, in turns in one process. "one batch" returns the same
arrays at every step, so it does no work for the data. A turn includes reading, shuffling and copying the batches to the
device; the next chunk is read while the device computes, as in ``Fit``. The network has 256 recurrent LIF neurons and
ten outputs. The data are images of 28 x 28 bytes in batches of 128: as a rate code over 10 time steps, and row by row.
"float32" are sequences of 28 x 28 without an encoder, which are 4 times the bytes. "memory map" reads the bytes from a
file that the operating system has in memory.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import brainpy.state
import brainstate
import braintools
import braintrace
import common
import jax.numpy as jnp
import numpy as np
import saiunit as u

import jaxtrain as jt
from jaxtrain.checkpoint.load import build
from jaxtrain.data.iterator import DataIterator
from jaxtrain.datasets import ArrayDataset, Bernoulli, Rows
from jaxtrain.engine.program import Program
from jaxtrain.strategies.registry import make_strategy

BATCH, IMAGES, MOST_OVERHEAD = 128, 12_800, 3.0
"""Sequences per batch, sequences of the data set, and the largest overhead in per cent."""
FEEDS = ("rate code", "memory map", "rows", "float32")


class Spiking(brainstate.nn.Module):
    """Recurrent leaky integrate-and-fire neurons with a leaky readout."""

    def __init__(self, n_in: int, n: int):
        super().__init__()
        self.current = braintrace.nn.Linear(n_in + n, n)
        self.neurons = brainpy.state.LIF(n, tau=10.0 * u.ms, spk_fun=braintools.surrogate.ReluGrad())
        self.readout = braintrace.nn.LeakyRateReadout(n, 10, tau=10.0 * u.ms)

    def update(self, x: Any) -> Any:
        spikes = self.neurons.get_spike()
        self.neurons(20.0 * self.current(jnp.concatenate([x, spikes], -1)) * u.mA)
        return self.readout(self.neurons.get_spike())


class Classify(jt.Module):
    environ = {"dt": 1.0 * u.ms}

    def __init__(self, n_in: int):
        self.n_in = n_in

    def build(self) -> Any:
        return Spiking(self.n_in, 256)

    def learning_step(self, forward: Any, x: Any, y: Any) -> Any:
        logits = forward(x)
        loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)
        return loss, {"accuracy": logits.argmax(-1) == y}

    def configure_optimizer(self) -> Any:
        return braintools.optim.Adam(1e-3)


class OneBatch:
    """The first batch of a data set at every step."""

    def __init__(self, data: Any):
        self.batch_first, self.held = data.batch_first, data.batch(0)

    def batch(self, step: int) -> Any:
        return self.held


def feeds(folder: Path) -> dict[str, tuple[int, Any]]:
    """For each way to feed: inputs of the network per time step, and the data set."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, 28, 28), np.uint8), rng.integers(0, 10, IMAGES)
    np.save(folder / "images.npy", images)
    stored = np.load(folder / "images.npy", mmap_mode="r")
    rate = {"batch_size": BATCH, "encoder": (lambda x, key: x.reshape(-1), Bernoulli(10))}
    return {
        "rate code": (784, ArrayDataset(images, labels, **rate)),
        "memory map": (784, ArrayDataset(stored, labels, **rate)),
        "rows": (28, ArrayDataset(images, labels, batch_size=BATCH, encoder=Rows())),
        "float32": (28, ArrayDataset(images / np.float32(255), labels, batch_size=BATCH, batch_first=True)),
    }


class Run:
    """Trains on a source as ``Fit`` does: the next chunk is read while the device computes. Called with steps."""

    def __init__(self, n_in: int, source: Any, strategy: str):
        module = Classify(n_in)
        build(module, 0)
        self.iterator = DataIterator(source, "train")
        self.program = Program(
            module, make_strategy(strategy), lambda x: x, self.iterator.example(), seed=0, clip=None, accumulate=1,
            nonfinite="raise", chunk="auto",
        )  # fmt: skip
        self.program.prepare()
        self.unit = self.program.chunk

    def __call__(self, steps: int) -> None:
        pending = None
        for done in range(0, steps, self.unit):
            batches = self.iterator.take(min(self.unit, steps - done))
            previous, pending = pending, self.program.train(batches, self.iterator.taken)
            if previous is not None:
                previous.fetch()
            if done + self.unit < steps:
                self.iterator.prefetch(self.unit)
        if pending is not None:
            pending.fetch()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--strategies", nargs="+", default=["drtrl", "bptt"], choices=["drtrl", "bptt"])
    parser.add_argument("--only", nargs="+", default=list(FEEDS), choices=FEEDS, metavar="FEED", help=", ".join(FEEDS))
    parser.add_argument("--rounds", type=int, default=15, help="turns of each run")
    parser.add_argument("--turn", type=float, default=2.0, help="seconds per turn")
    options = parser.parse_args()
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    print(f"{options.rounds} rounds; {common.machine()}")
    sections: dict[str, list[str]] = {}
    numbers: dict[str, Any] = {}
    goals: list[common.Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        for strategy in options.strategies:
            ways = feeds(Path(folder))
            for name in options.only:
                n_in, data = ways[name]
                runs = {"one batch": Run(n_in, OneBatch(data), strategy), name: Run(n_in, data, strategy)}
                timing = common.by_turns(runs, options.rounds, options.turn)
                title = f"{strategy}, {name}"
                sections[title] = common.timing_table(timing, ["one batch"])
                common.show({title: sections[title]})
                numbers[title] = {"seconds": timing.seconds, "cpu": timing.cpu}
                overhead = 100 * (timing.ratio(name, "one batch") - 1)
                goals.append(common.Goal(f"{title}: time over that of one batch, per cent", overhead, MOST_OVERHEAD))
    sections["Goals"] = common.goals_table(goals)
    common.show({"Goals": sections["Goals"]})
    if options.json:
        common.save("feed", sections, numbers, options.json, goals)


if __name__ == "__main__":
    main()
