"""Copying that gets longer once it is learned: blanks, digits, or bits from an endless stream.

python recipes/copy_curriculum.py                                # 3 digits over blanks of 0 to 120
python recipes/copy_curriculum.py --task digits                  # 1 to 10 digits, without a blank
python recipes/copy_curriculum.py --task binary --preset lru     # bits, with an update at every time step
python recipes/copy_curriculum.py --task binary --preset gru

Sequences are padded to a few lengths, so a curriculum compiles only a few programs. The binary task is that of Benzing
et al. (2019): an endless stream of episodes of T bits, T = max(1, L - 0 ... 4), with a loss and an update at every time
step. L grows by one when a moving average (decay 0.999 per time step) of the loss, in bits per time step, falls below
0.15; the average then restarts at 0.3. The log shows L as task/length.
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli.options import NetworkOptions, TrainingOptions, check_options, streamed, time_steps_of

LAGS = (0, 2, 5, 10, 20, 40, 80, 120)


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """Copying that gets longer once it is learned."""

    task: Literal["lag", "digits", "binary"] = "lag"
    """what grows: the blank, the number of digits, or the number of bits in a stream"""
    lags: tuple[int, ...] = LAGS
    """lag: blank time steps of each stage"""
    digits: int = 3
    """lag: digits to recall"""
    most_digits: int = 10
    """digits: number of digits in the last stage"""
    threshold: float = 0.98
    """lag, digits: accuracy over --over steps at which a stage is completed"""
    over: int = 25
    """lag, digits: number of steps over which accuracy is averaged"""
    bits: float = 0.15
    """binary: moving average of bits per time step at which L grows"""
    unroll: int = 10
    """binary: time steps per segment of the stream; one segment is one train step"""
    chunk: Literal["auto"] | int = 25
    """steps per dispatch; a task changes at the end of a dispatch"""
    max_steps: int = 6000
    """train steps; binary: segments of the stream"""
    val_batches: int = 4
    """lag, digits: batches per validation"""

    def __post_init__(self):
        most = self.max_steps * self.unroll if self.task == "binary" else None
        check_options(self, counts=("digits", "most_digits", "over", "unroll", "val_batches"), updates=most)


BINARY = {
    "task": "binary", "batch_size": 16, "chunk": 5, "max_steps": 5000, "validate_every": None,
    "log_every": 100, "checkpoint_every": 1000,
}  # fmt: skip
LRU = {"cell": "lru", "hidden": 64, "width": 64, "mlp": 128, "r_min": 0.9, "r_max": 0.999}
PRESETS = {
    "lru": {**BINARY, **LRU, "lr": 1e-3},
    "gru": {**BINARY, "cell": "gru", "hidden": 128, "lr": 1e-3, "decay": "cosine", "max_steps": 10_000},
}
CHANCE = {"accuracy": 1 / 8}  # guessing among the eight digits


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools

    import jaxtrain as jt
    from jaxtrain.datasets import BinaryCopy

    binary = config.task == "binary"
    # Time steps from an input to its recall; for the bit stream, about the length that the curriculum will reach.
    memory = 50 if binary else (max(config.lags) if config.task == "lag" else 0) + config.digits
    strategy = streamed(config.make_strategy()) if binary else config.make_strategy()

    class Copy(jt.Module):
        def build(self):
            return config.network(4, 4, memory) if binary else config.network(10, 10, memory)

        def learning_step(self, forward, x, y):
            logits = forward(x)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"bits": loss / math.log(2)} if binary else {"accuracy": logits.argmax(-1) == y}

        def configure_optimizer(self):
            return config.optimizer(memory, updates)

        def group(self, name):
            return config.group(name)

    if binary:
        stages = [{"length": length} for length in range(1, 201)]
        # A logged value is the mean over a segment and stands for each of its time steps.
        keep = 0.999**config.unroll
        curriculum = jt.callbacks.Curriculum(stages, "train/bits", config.bits, ema=keep, restart=0.3, then="stay")
        data = stream = jt.datasets.StreamDataModule(
            lambda module: BinaryCopy(lambda: module.task["length"]), config.batch_size, config.unroll, config.seed,
            length=1,
        )  # fmt: skip
        updates = lambda: stream.updates(config.max_steps, time_steps_of(strategy, config.unroll))  # noqa: E731
    else:
        if config.task == "lag":
            stages = [{"time_lag": lag, "num_digits": config.digits} for lag in config.lags]
        else:
            stages = [{"time_lag": 0, "num_digits": digits} for digits in range(1, config.most_digits + 1)]
        curriculum = jt.callbacks.Curriculum(stages, "train/accuracy", config.threshold, over=config.over)
        updates = None
        most = max(stage["num_digits"] for stage in stages)
        longest = max(stage["time_lag"] + 2 * stage["num_digits"] for stage in stages)
        data = jt.datasets.PaddedCopyDataModule(
            stages[0]["time_lag"], stages[0]["num_digits"], config.batch_size, config.seed, config.val_batches,
            lengths=_sizes(2 * stages[0]["num_digits"], longest), digits=_sizes(1, most),
        )  # fmt: skip
    callbacks = [curriculum, *config.callbacks(validates=not binary)]
    fit = jt.Fit(strategy, callbacks=callbacks, **config.fit_options())
    return fit, Copy(), data


def _sizes(least: int, most: int) -> tuple[int, ...]:
    """Sizes to pad to. Each is three times the previous one."""
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(min(3 * sizes[-1], most))
    return tuple(sizes)


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS, chance=CHANCE))
