"""The copying task with a GRU, or another cell: recall ten digits after a long blank, with gradients of any rule.

python recipes/copy_gru.py --strategy drtrl                       # nine minutes on two cores
python recipes/copy_gru.py --strategy drtrl --preset short        # half a minute
python recipes/copy_gru.py --preset short --strategy bptt --time-lag 20
python recipes/copy_gru.py --strategy pp_prop --cell mini_gru
python recipes/copy_gru.py --preset tutorial
python recipes/copy_gru.py --resume last

D-RTRL differentiates the recall as one window, in which it is exact. Before it, the rule's trace is used.
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """The copying task with a GRU, or another cell: recall digits after a long blank."""

    rule_defaults = {"drtrl": {"window": 10}}

    time_lag: int = 50
    """blank time steps between the digits and the recall"""
    digits: int = 10
    """digits to recall"""
    lr: float = 2.5e-3
    """learning rate of Adam"""
    warmup: float = 0.025
    """updates over which the learning rate rises from zero; below 1: fraction of all updates"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    max_steps: int = 40_000
    """train steps, one batch each"""
    log_every: int = 100
    """steps between log entries"""
    validate_every: int | str | None = 1000
    """steps between validations and figures"""
    checkpoint_every: int | str = 2000
    """steps between checkpoints, or a time such as 10min; the best two by val/loss are kept as well"""

    def __post_init__(self):
        check_options(self)


SHORT = {
    "decay": "constant", "warmup": 0, "max_steps": 2000, "log_every": 50, "validate_every": 200,
    "checkpoint_every": 500,
}  # fmt: skip
PRESETS = {
    "short": {**SHORT, "lr": 3e-3, "drtrl": {"window": 1}},
    "tutorial": {**SHORT, "lr": 1e-3, "clip": None, "max_steps": 200, "drtrl": {"window": 1, "vjp": "single-step"}},
}
CHANCE = {"accuracy": 1 / 8, "loss": math.log(8)}  # guessing among the eight digits


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools

    import jaxtrain as jt

    memory = config.time_lag + config.digits  # time steps from a digit to its recall

    class CopyGRU(jt.Module):
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
    if config.run_dir is not None and config.validate_every is not None:
        callbacks.append(jt.callbacks.CopyFigure(every=config.validate_every))
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, **config.fit_options())
    data = jt.datasets.CopyDataModule(config.time_lag, config.digits, config.batch_size, config.seed)
    return fit, CopyGRU(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS, chance=CHANCE))
