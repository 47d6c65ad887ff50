"""Integrating noise: a regression that is scored at every time step.

python recipes/integrator.py --strategy drtrl
python recipes/integrator.py --cell mini_gru --chrono 1000 --lr 1e-2
python recipes/integrator.py --strategy bptt
"""

import sys
from dataclasses import dataclass
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options
from jaxtrain.nn.cells import CellName


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """Integrating noise: a regression that is scored at every time step."""

    time: int = 100
    """time steps per sequence"""
    scale: float = 0.1
    """standard deviation of the noise; that of the integral is larger by the square root of the time"""
    cell: CellName = "lru"
    """type of the recurrent layer"""
    width: int | None = 16
    """units of a linear encoder before the first layer, and of an LRU's output; none: no encoder"""
    hidden: int = 64
    """units per layer"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    max_steps: int = 500
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self, counts=("time",))


CHANCE = {"loss": 1.0}  # guessing zero


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import jax.numpy as jnp
    import numpy as np

    import jaxtrain as jt

    class Noise:
        """Batches of (noise, its integral). Each depends only on the step."""

        def __init__(self, split: int, length: int | None = None):
            self.split, self.length = split, length

        def batch(self, step: int):
            rng = np.random.default_rng((config.seed, self.split, step))
            x = config.scale * rng.normal(size=(config.time, config.batch_size, 1)).astype(np.float32)
            return x, np.cumsum(x, axis=0)

        def __len__(self):
            if self.length is None:
                raise TypeError("endless")
            return self.length

    class Integrator(jt.Module):
        def build(self):
            return config.network(1, 1, config.time)

        def learning_step(self, forward, x, y):
            error = forward(x) - y  # (B, 1)
            # Relative to the target's variance, which grows with time: guessing zero gives 1.
            relative = jnp.square(error).mean(-1) / (config.scale**2 * (config.time + 1) / 2)
            return relative, {"mae": jnp.abs(error).mean(-1)}

        def configure_optimizer(self):
            return config.optimizer(config.time)

        def group(self, name):
            return config.group(name)

    callbacks = config.callbacks()
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, **config.fit_options())
    return fit, Integrator(), jt.DataModule(Noise(0), Noise(1, 4), batch_first=False)


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
