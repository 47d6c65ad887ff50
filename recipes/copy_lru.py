"""The copying task with a linear recurrent unit (LRU), on which D-RTRL is exact: recall digits after any blank.

python recipes/copy_lru.py --strategy drtrl
python recipes/copy_lru.py --strategy readout_only --max-steps 2000
python recipes/copy_lru.py --time-lag 500
python recipes/copy_lru.py --time-lag 5000 --batch-size 16
"""

import math
import sys
from dataclasses import dataclass

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options
from jaxtrain.errors import ConfigError
from jaxtrain.nn.cells import CellName


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """The copying task with a linear recurrent unit, on which D-RTRL is exact. It solves the task."""

    time_lag: int = 50
    """blank time steps between the digits and the recall"""
    digits: int = 10
    """digits to recall"""
    val_batches: int = 4
    """batches per validation"""
    stop_at: float | None = 0.99
    """validation accuracy at which the run ends; none: train to max_steps"""
    cell: CellName = "lru"
    """type of the recurrent layer"""
    hidden: int = 32
    """units per layer; with many units, a fixed random recurrence (readout_only) is nearly as good"""
    lr: float = 2e-2
    """learning rate of Adam"""
    max_steps: int = 400
    """train steps, one batch each"""
    log_every: int = 25
    """steps between log entries"""
    validate_every: int | str | None = 25
    """steps between validations"""
    checkpoint_every: int | str = 100
    """steps between checkpoints, or a time such as 10min; the best two by val/loss are kept as well"""

    def __post_init__(self):
        check_options(self, counts=("digits", "val_batches"))
        if self.stop_at is not None and not 0 < self.stop_at <= 1:
            raise ConfigError(f"--stop-at {self.stop_at:g}: expected a part of 1, as 0.99 for 99 %, or none")


CHANCE = {"accuracy": 1 / 8, "loss": math.log(8)}  # guessing among the eight digits


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools

    import jaxtrain as jt

    memory = config.time_lag + config.digits  # time steps from a digit to its recall

    class CopyLRU(jt.Module):
        def build(self):
            return config.network(10, 10, memory)

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 10)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"accuracy": logits.argmax(-1) == y}

        def configure_optimizer(self):
            return config.optimizer(memory)

        def group(self, name):
            return config.group(name)

    callbacks = config.callbacks()
    if config.stop_at is not None:
        callbacks.append(jt.EarlyStopping("val/accuracy", patience=config.max_steps, threshold=config.stop_at))
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, **config.fit_options())
    data = jt.datasets.CopyDataModule(
        config.time_lag, config.digits, config.batch_size, config.seed, config.val_batches
    )
    return fit, CopyLRU(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
