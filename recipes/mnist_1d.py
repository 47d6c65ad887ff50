"""MNIST-1D: ten classes of sequences of 40 numbers (Greydanus & Kobak, ICML 2024), classified at the last time step.

The package `mnist1d` (pip install "jaxtrain[mnist1d]") makes the data from a seed; nothing is downloaded.

python recipes/mnist_1d.py --strategy drtrl
python recipes/mnist_1d.py --strategy readout_only
python recipes/mnist_1d.py --cell gru --strategy bptt
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options
from jaxtrain.errors import ConfigError
from jaxtrain.nn.cells import CellName


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """MNIST-1D: sequences of 40 numbers in ten classes."""

    taps: int = 12
    """latest values that the network reads at each time step"""
    shift: int = 4
    """largest random shift of a training sequence, in time steps"""
    noise: float = 0.05
    """standard deviation of the noise on training sequences, whose own standard deviation is 1"""
    cell: CellName = "mini_gru"
    """type of the recurrent layer"""
    width: int | None = 64
    """units of a linear encoder before the first layer, and of an LRU's output; none: no encoder"""
    mlp: int = 128
    """units of a residual MLP after every recurrent layer; 0: none"""
    batch_size: int = 100
    """sequences per batch"""
    lr: float = 5e-3
    """learning rate of Adam"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    warmup: float = 0.05
    """updates over which the learning rate rises from zero; below 1: fraction of all updates"""
    max_steps: int = 1400
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self, counts=("taps",))
        if not 0 <= self.shift < TIME:
            raise ConfigError(f"--shift {self.shift}: expected 0 to {TIME - 1} time steps")
        if not self.noise >= 0:
            raise ConfigError(f"--noise {self.noise}: expected 0 or more")


TIME, TRAIN = 40, 3400
"""Time steps; the first of the 4,000 training sequences are trained on, the others are the validation set."""
CHANCE = {"accuracy": 0.1, "loss": math.log(10)}


def load():
    """The 4,000 training and 1,000 test sequences ``(N, 40)`` with their classes ``(N,)``."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError('the package mnist1d is not installed: pip install "jaxtrain[mnist1d]"') from None
    made = make_dataset(get_dataset_args())
    return [made[name].astype("f4" if name[0] == "x" else "i4") for name in ("x", "y", "x_test", "y_test")]


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools
    import jax
    import jax.numpy as jnp

    import jaxtrain as jt
    from jaxtrain.datasets import ArrayDataset

    def taps(x, key):
        past = jnp.pad(x, (config.taps - 1, 0))
        return jnp.stack([past[i : i + len(x)] for i in range(config.taps)], axis=-1)  # (T, taps)

    def augment(x, key):
        shift, noise = jax.random.split(key)
        x = jnp.roll(x, jax.random.randint(shift, (), -config.shift, config.shift + 1))
        return x + config.noise * jax.random.normal(noise, x.shape)

    class Classify(jt.Module):
        def build(self):
            return config.network(config.taps, 10, TIME)

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 10)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"accuracy": logits.argmax(-1) == y}

        def configure_optimizer(self):
            return config.optimizer(TIME)

        def group(self, name):
            return config.group(name)

    x, y, x_test, y_test = load()
    batches = partial(ArrayDataset, batch_size=config.batch_size, scored=1, seed=config.seed)
    data = jt.DataModule(
        batches(x[:TRAIN], y[:TRAIN], encoder=(augment, taps)),
        batches(x[TRAIN:], y[TRAIN:], encoder=taps, shuffle=False),
        batches(x_test, y_test, encoder=taps, shuffle=False),
    )
    fit = jt.Fit(config.make_strategy(), callbacks=config.callbacks(), **config.fit_options())
    return fit, Classify(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
