"""Handwritten digits, 8 x 8 pixels, as spike rates for recurrent leaky integrate-and-fire neurons.

The package `scikit-learn` (pip install "jaxtrain[digits]") contains the file digits.csv.gz, 1,797 images of ten digits;
it is read without importing the package. `--data FILE` names another one. The split is that of scikit-learn's example
"Recognizing hand-written digits": the first 898 images are for training, the last 899 are the test set. Every fifth
image of the first half is held out for validation.

python recipes/digits.py --strategy pp_prop
python recipes/digits.py --strategy readout_only
python recipes/digits.py --strategy bptt --seeds 5
"""

import gzip
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jaxtrain import cli
from jaxtrain.cli import TrainingOptions, check_options
from jaxtrain.errors import ConfigError
from jaxtrain.utils.extras import data_in


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Handwritten digits: ten classes, decided by the scores of all time steps."""

    data: str | None = None
    """the file digits.csv.gz, with 64 pixels from 0 to 16 and the digit in each line; none: that of the installed
    package scikit-learn"""
    time: int = 25
    """time steps; the spike rate of an input is the brightness of its pixel"""
    hidden: int = 128
    """neurons"""
    batch_size: int = 64
    """images per batch"""
    lr: float = 5e-3
    """learning rate of Adam"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    max_steps: int = 400
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self, counts=("time", "hidden"))


TAU = 10.0
"""Time constant of neurons and readout, in milliseconds. A time step is 1 ms."""
CHANCE = {"accuracy": 0.1, "loss": math.log(10)}


def file_of(config: Config) -> Path:
    """The file of the images."""
    if config.data is not None:
        return Path(config.data)
    return data_in(
        "sklearn", "datasets", "data", "digits.csv.gz", package="scikit-learn", extra="digits", instead="--data FILE"
    )


def read(path: Path):
    """The brightness ``(N, 64)`` of the pixels, from 0 to 1, and the digits ``(N,)``."""
    import numpy as np

    try:
        table = np.loadtxt(gzip.decompress(path.read_bytes()).decode().splitlines(), delimiter=",", ndmin=2)
    except OSError as error:
        raise ConfigError(f"--data: {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"--data: {path} is no table of numbers: {error}") from None
    if table.shape[1] != 65:
        raise ConfigError(f"--data: {path} has {table.shape[1]} columns; expected 64 pixels and the digit")
    return (table[:, :64] / 16).astype("f4"), table[:, 64].astype("i4")


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import brainpy.state
    import brainstate
    import braintools
    import braintrace
    import jax.numpy as jnp
    import numpy as np
    import saiunit as u

    import jaxtrain as jt
    from jaxtrain.datasets import ArrayDataset, Bernoulli

    class Spiking(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.current = braintrace.nn.Linear(64 + config.hidden, config.hidden)
            options: dict[str, Any] = {"tau": TAU * u.ms, "spk_fun": braintools.surrogate.ReluGrad()}
            self.neurons = brainpy.state.LIF(config.hidden, **options)
            self.readout = braintrace.nn.Linear(config.hidden, 10)

        def init_state(self, batch_size=None, **_):
            shape = (config.hidden,) if batch_size is None else (batch_size, config.hidden)
            self.filtered = brainstate.HiddenState(jnp.zeros(shape, "f4"))  # spikes, low-pass filtered for the readout

        def update(self, x):
            self.neurons(20.0 * self.current(jnp.concatenate([x, self.neurons.get_spike()], -1)) * u.mA)
            self.filtered.value = math.exp(-1 / TAU) * self.filtered.value + self.neurons.get_spike()
            return self.readout(self.filtered.value)

    class Classify(jt.Module):
        environ = {"dt": 1.0 * u.ms}

        def build(self):
            return Spiking()

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 10)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            rate = self.model.neurons.get_spike().mean(-1)  # spikes of a neuron in a time step
            return loss, {"accuracy": jt.metrics.Accuracy(logits, y, decide="sum"), "firing_rate": rate}

        def configure_optimizer(self):
            return config.optimizer(config.time)

    x, y = read(file_of(config))
    half = len(x) // 2
    held_out = np.arange(half) % 5 == 0
    batches = partial(ArrayDataset, batch_size=config.batch_size, encoder=Bernoulli(config.time), seed=config.seed)
    data = jt.DataModule(
        batches(x[:half][~held_out], y[:half][~held_out]),
        batches(x[:half][held_out], y[:half][held_out], shuffle=False),
        batches(x[half:], y[half:], shuffle=False),
    )
    fit = jt.Fit(config.make_strategy(), callbacks=config.callbacks(), **config.fit_options())
    return fit, Classify(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
