"""The copying task with a GRU, or another cell: recall ten digits after a long blank, with gradients made by any rule.

python recipes/copy_gru.py --strategy drtrl
python recipes/copy_gru.py --strategy bptt --time-lag 20 --max-steps 500
python recipes/copy_gru.py --strategy pp_prop --cell mini_gru
python recipes/copy_gru.py --preset tutorial
python recipes/copy_gru.py --preset long --strategy drtrl
python recipes/copy_gru.py --resume last --max-steps 4000
"""

import math
import sys
from dataclasses import dataclass

from jaxtrain import cli
from jaxtrain.options import NetworkOptions, TrainingOptions, check_options


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """The copying task with a GRU, or another cell: recall digits after a long blank."""

    time_lag: int = 50
    """blank time steps between the digits and the recall"""
    digits: int = 10
    """digits to recall"""

    def __post_init__(self):
        check_options(self)


PRESETS = {
    "tutorial": {"lr": 1e-3, "clip": None, "max_steps": 200, "drtrl": {"vjp": "single-step"}},
    "long": {
        "lr": 1.5e-3, "decay": "cosine", "max_steps": 30_000, "log_every": 500, "validate_every": 2500,
        "checkpoint_every": 5000, "drtrl": {"window": 10},
    },
}  # fmt: skip
CHANCE = {"accuracy": 1 / 8, "loss": math.log(8)}  # guessing among the eight digits


def make(config: Config):
    """Fit, module and data of a run. JAX is imported here, so that --help does not wait for it."""
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

    callbacks = config.callbacks(config.run_dir, config.progress)
    if config.run_dir is not None and config.validate_every is not None:
        callbacks.append(jt.CopyFigure(every=config.validate_every))
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, run_dir=config.run_dir, **config.fit_options())
    data = jt.CopyDataModule(config.time_lag, config.digits, config.batch_size, config.seed)
    return fit, CopyGRU(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS, chance=CHANCE))
