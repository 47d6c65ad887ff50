"""Japanese vowels: nine speakers told apart by utterances of 7 to 29 frames of 12 features (Kudo et al. 1999).

The package `aeon` (pip install "jaxtrain[aeon]") contains the files JapaneseVowels_TRAIN.ts and
JapaneseVowels_TEST.ts; they are read without importing it. `--data DIR` names another folder. Every fifth training
utterance is held out for validation, unless `--all-data` is given.

The network is trained on the mean of its scores over an utterance, which online rules credit with `readout_memory`.

python recipes/vowels.py --strategy drtrl
python recipes/vowels.py --strategy readout_only
python recipes/vowels.py --strategy bptt --seeds 5
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options
from jaxtrain.errors import ConfigError
from jaxtrain.nn.cells import CellName
from jaxtrain.utils.extras import data_in


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """Japanese vowels: the speaker of an utterance, decided by the mean score of its frames."""

    rule_defaults = {
        rule: {"readout_memory": True} for rule in ("drtrl", "pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward")
    }

    data: str | None = None
    """folder of JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts; none: that of the installed package aeon"""
    all_data: bool = False
    """train on the validation utterances as well, without a validation"""
    taps: int = 3
    """latest frames that the network reads at each time step"""
    noise: float = 0.6
    """standard deviation of the noise on training features, whose own standard deviation is 1"""
    offset: float = 0.5
    """standard deviation of noise that is the same in all frames of a training utterance"""
    cell: CellName = "mini_gru"
    """type of the recurrent layer"""
    hidden: int = 64
    """units per layer"""
    batch_size: int = 27
    """sequences per batch"""
    lr: float = 5e-3
    """learning rate of Adam"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    weight_decay: float = 0.1
    """decoupled weight decay of matrices (AdamW)"""
    max_steps: int = 600
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self, counts=("taps",))
        for name in ("noise", "offset"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected 0 or more")


SPEAKERS, LENGTHS = 9, (18, 29)
CHANCE = {"accuracy": 1 / SPEAKERS, "loss": math.log(SPEAKERS)}


def folder_of(config: Config) -> Path:
    """The folder of the files."""
    if config.data is not None:
        return Path(config.data)
    return data_in(
        "aeon", "datasets", "data", "JapaneseVowels", package="aeon", extra="aeon", instead="pass --data DIR"
    )


def read(path: Path):
    """The utterances ``(T_i, 12)`` of a file, and their speakers ``(N,)``, counted from 0.

    After the line ``@data``, a line has 12 features separated by ``:``, each a series of numbers, and the speaker.
    """
    import numpy as np

    try:
        lines = path.read_text().split("@data\n", 1)[1].splitlines()
    except OSError as error:
        raise ConfigError(f"--data: {path} cannot be read: {error.strerror}") from None
    rows = [line.rsplit(":", 1) for line in lines if line]
    utterances = [np.array([part.split(",") for part in row.split(":")], "float32").T for row, _ in rows]
    return utterances, np.array([int(speaker) - 1 for _, speaker in rows], "int32")


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import brainstate
    import braintools
    import braintrace
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxtrain as jt
    from jaxtrain.datasets import bucket
    from jaxtrain.nn import Running

    folder = folder_of(config)
    (x, y), (x_test, y_test) = (read(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    frames = np.concatenate(x)
    x, x_test = ([(one - frames.mean(0)) / frames.std(0) for one in every] for every in (x, x_test))
    held_out = np.arange(len(x)) % 5 == 0  # the file is sorted by speaker

    class Pooled(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            network = config.network(12 * config.taps, SPEAKERS, LENGTHS[-1])
            size = network.readout.in_size[-1]
            network.readout = brainstate.nn.Identity()  # linear, so it may read the mean instead of each frame
            self.pool = Running(network, size, mean=True)
            self.readout = braintrace.nn.Linear(size, SPEAKERS)

        def update(self, x):
            return self.readout(self.pool(x))

    class Classify(jt.Module):
        def build(self):
            return Pooled()

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 9), the mean so far
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"accuracy": logits.argmax(-1) == y}

        def configure_optimizer(self):
            return config.optimizer(LENGTHS[-1])

        def group(self, name):
            return config.group(name)

    def noisy(x, key):
        frame, utterance = jax.random.split(key)
        x = x + config.offset * jax.random.normal(utterance, x.shape[-1:])
        return x + config.noise * jax.random.normal(frame, x.shape)

    def taps(x, key):
        past = jnp.pad(x, ((config.taps - 1, 0), (0, 0)))
        return jnp.concatenate([past[i : i + len(x)] for i in range(config.taps)], axis=-1)  # (T, 12 taps)

    def batches(x, y, which, **options):
        x, y = [one for one, chosen in zip(x, which, strict=True) if chosen], [int(one) for one in y[which]]
        own = dict(batch_size=config.batch_size, lengths=LENGTHS, scored=1, seed=config.seed, last="pad")
        return bucket(x, y, **own, **options)

    data = jt.DataModule(
        batches(x, y, ~held_out | config.all_data, encoder=(noisy, taps)),
        None if config.all_data else batches(x, y, held_out, encoder=taps, shuffle=False),
        batches(x_test, y_test, np.ones(len(x_test), bool), encoder=taps, shuffle=False),
    )
    callbacks = config.callbacks(validates=not config.all_data)
    validate_every = None if config.all_data else config.validate_every
    fit = jt.Fit(
        config.make_strategy(), callbacks=callbacks, **{**config.fit_options(), "validate_every": validate_every}
    )
    return fit, Classify(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
