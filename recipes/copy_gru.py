"""The copying task with a GRU, or another cell: recall ten digits after a long blank, with gradients made by any rule.

python recipes/copy_gru.py --strategy drtrl
python recipes/copy_gru.py --strategy bptt --time-lag 20 --max-steps 500
python recipes/copy_gru.py --strategy pp_prop --cell mini_gru
python recipes/copy_gru.py --preset tutorial
python recipes/copy_gru.py --resume last --max-steps 4000
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal

from jaxtrain import cli


@dataclass(frozen=True)
class Config(cli.Options):
    """The copying task with a GRU, or another cell: recall digits after a long blank."""

    time_lag: int = 50
    """blank time steps between the digits and the recall"""
    digits: int = 10
    """digits to recall"""
    batch_size: int = 64
    """sequences in a batch"""
    cell: Literal["gru", "lstm", "mgu", "mini_gru", "lru", "vanilla"] = "gru"
    """the recurrent layer: which rules are exact, and how biased the others are, depends on it"""
    hidden: int = 128
    """units of a layer"""
    layers: int = 1
    """recurrent layers"""
    lr: float = 3e-3
    """learning rate of Adam"""
    clip: float | None = 1.0
    """largest global norm of the gradient"""
    max_steps: int = 2000
    """steps to train, one batch each"""
    seed: int = 0
    """of initial values, of randomness in the model, and of the data"""
    chunk: Literal["auto"] | int = "auto"
    """steps run in one dispatch"""
    log_every: int = 50
    """steps between rows of the record"""
    validate_every: int | str = 200
    """steps between validations and figures"""
    checkpoint_every: int | str = 500
    """steps between checkpoints, or a time such as 10min; the last two and the best two by val/loss are kept"""

    def __post_init__(self):
        cli.check(self, counts=("hidden", "layers"), periods=("validate_every", "checkpoint_every"))


PRESETS = {"tutorial": {"lr": 1e-3, "clip": None, "max_steps": 200, "drtrl": {"vjp": "single-step"}}}
CHANCE = {"accuracy": 1 / 8, "loss": math.log(8)}  # guessing among the eight digits


def make(config: Config):
    """Fit, module and data of a run. JAX is imported here, so that --help does not wait for it."""
    import brainstate
    import braintools
    import braintrace

    import jaxtrain as jt

    cells = {
        "gru": braintrace.nn.GRUCell,
        "lstm": braintrace.nn.LSTMCell,
        "mgu": braintrace.nn.MGUCell,
        "mini_gru": braintrace.nn.MiniGRU,
        "lru": braintrace.nn.LRUCell,
        "vanilla": braintrace.nn.ValinaRNNCell,
    }

    class GRUNet(brainstate.nn.Module):
        """One time step, (B, 10) -> (B, 10): recurrent layers and a linear readout."""

        def __init__(self, n_in: int, hidden: int, layers: int, n_out: int):
            super().__init__()
            # An LRU is as wide outside as its input is; the others show their units.
            width = n_in if config.cell == "lru" else hidden
            widths = [n_in] + [width] * layers
            self.rnn = brainstate.nn.Sequential(*(cells[config.cell](i, hidden) for i in widths[:-1]))
            self.readout = braintrace.nn.Linear(width, n_out)

        def update(self, x):
            return self.readout(self.rnn(x))

    class CopyGRU(jt.Module):
        def build(self):
            return GRUNet(10, config.hidden, config.layers, 10)

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 10)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"accuracy": logits.argmax(-1) == y}

        def configure_optimizer(self):
            return braintools.optim.Adam(config.lr)

    callbacks: list[jt.Callback] = [jt.LearningRateMonitor(), jt.Throughput()]
    if config.run_dir is not None:
        checkpoint = jt.Checkpoint(every=config.checkpoint_every, best=("val/loss", 2), last=2)
        callbacks += [jt.CopyFigure(every=config.validate_every), jt.JSONL(), jt.TensorBoard(), checkpoint]
    if config.progress:
        callbacks.append(jt.ProgressBar())
    fit = jt.Fit(
        strategy=config.make_strategy(),
        max_steps=config.max_steps,
        clip=config.clip,
        seed=config.seed,
        chunk=config.chunk,
        log_every=config.log_every,
        validate_every=config.validate_every,
        callbacks=callbacks,
        run_dir=config.run_dir,
    )
    data = jt.CopyDataModule(config.time_lag, config.digits, config.batch_size, config.seed)
    return fit, CopyGRU(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS, chance=CHANCE))
