"""Learning from one endless stream, with an update at every time step: copy, adding, or a^n b^n.

python recipes/copy_stream.py
python recipes/copy_stream.py --strategy readout_only
python recipes/copy_stream.py --preset adding
python recipes/copy_stream.py --preset anbn
python recipes/copy_stream.py --cell gru --hidden 64 --width none --mlp 0

A train step is a segment of the stream: 20 time steps, with an update at every scored one. Sequences are not aligned;
--no-spread aligns them, as in the protocol of SK-RTRL, which introduced these tasks. Hidden states and traces continue
between segments and are cleared at the start of an episode. Metrics cover scored time steps only and are computed
before the update: accuracy of the recall in copy, mse of the sum in adding, and in a^n b^n "next", the fraction of
correctly predicted characters.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli.options import NetworkOptions, TrainingOptions, check_options, streamed, time_steps_of
from jaxtrain.nn.cells import CellName


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """Learning from one endless stream, with an update at every time step."""

    task: Literal["copy", "adding", "anbn"] = "copy"
    """task of the stream"""
    digits: int = 5
    """copy: symbols to recall"""
    delay: int = 40
    """copy: blanks before the recall"""
    length: int = 100
    """adding: time steps of an episode"""
    most: int = 16
    """anbn: the largest n"""
    unroll: int = 20
    """time steps per segment of the stream; one segment is one train step"""
    spread: bool = True
    """sequences start at different positions of an episode; --no-spread: all at its beginning"""
    val_steps: int = 0
    """time steps of a held-out stream for validation, from fresh hidden states; 0: no validation"""
    cell: CellName = "lru"
    """type of the recurrent layer"""
    hidden: int = 64
    """units per layer"""
    width: int | None = 32
    """units of a linear encoder before the first layer, and of an LRU's output; none: no encoder"""
    mlp: int = 64
    """units of a residual MLP after every recurrent layer; 0: none"""
    r_min: float | None = 0.9
    """smallest initial modulus of an LRU's poles; none: from the memory that the task needs"""
    r_max: float | None = 0.999
    """largest initial modulus of an LRU's poles; none: from the memory that the task needs"""
    batch_size: int = 8
    """parallel sequences of the stream"""
    lr: float = 1e-3
    """learning rate of Adam"""
    max_steps: int = 1000
    """segments of the stream to train on"""
    validate_every: int | str | None = None
    """segments between validations, with --val-steps"""

    def __post_init__(self):
        check_options(self, counts=("unroll", "digits", "most"), updates=self.max_steps * self.unroll)


GATED = {"cell": "mini_lstm", "chrono": 100.0, "width": None, "mlp": 0}
PRESETS = {
    "adding": {"task": "adding", **GATED, "lr": 1e-2},
    "anbn": {"task": "anbn", "lr": 3e-3, "decay": "cosine"},
}
# Guessing among eight symbols; always predicting 1. The best possible score in a^n b^n is 0.948, because the change
# from a to b cannot be predicted before n = 16.
CHANCE = {"accuracy": 1 / 8, "mse": 1 / 6}


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools
    import jax.numpy as jnp

    import jaxtrain as jt
    from jaxtrain.datasets import Adding, AnBn, StreamCopy

    episodes = {
        "copy": lambda: StreamCopy(config.digits, config.delay),
        "adding": lambda: Adding(config.length),
        "anbn": lambda: AnBn(config.most),
    }[config.task]()
    memory = {"copy": config.delay + config.digits, "adding": config.length, "anbn": config.most}[config.task]
    strategy = streamed(config.make_strategy())

    class Stream(jt.Module):
        def build(self):
            return config.network(episodes.n_in, episodes.n_out, memory)

        def learning_step(self, forward, x, y):
            out = forward(x)  # (B, n_out)
            if config.task == "adding":
                error = jnp.square(out - y).mean(-1)
                return error, {"mse": error}
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(out, y)  # (B,)
            return loss, {"accuracy" if config.task == "copy" else "next": out.argmax(-1) == y}

        def configure_optimizer(self):
            every = time_steps_of(strategy, config.unroll)
            return config.optimizer(memory, lambda: data.updates(config.max_steps, every))

        def group(self, name):
            return config.group(name)

    validates = config.val_steps > 0
    callbacks = config.callbacks(validates)
    fit = jt.Fit(strategy, callbacks=callbacks, **config.fit_options())
    data = jt.datasets.StreamDataModule(
        episodes, config.batch_size, config.unroll, config.seed, config.spread, config.val_steps
    )
    return fit, Stream(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS, chance=CHANCE))
