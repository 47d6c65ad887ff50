"""Japanese vowels: nine speakers told apart by utterances of 7 to 29 frames of 12 features (Kudo et al. 1999).

The package `aeon` (pip install "jaxtrain[aeon]") contains the files JapaneseVowels_TRAIN.ts and
JapaneseVowels_TEST.ts; they are read without importing it. `--data DIR` names another folder.

python recipes/vowels.py --strategy drtrl
python recipes/vowels.py --strategy readout_only
python recipes/vowels.py --strategy bptt --seeds 5
"""

import math
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from jaxtrain import cli
from jaxtrain.cli.options import NetworkOptions, TrainingOptions, check_options
from jaxtrain.errors import ConfigError


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """Japanese vowels: the speaker of an utterance, decided by the scores of all frames."""

    data: str | None = None
    """folder of JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts; none: that of the installed package aeon"""
    noise: float = 0.3
    """standard deviation of the noise on training features, whose own standard deviation is 1"""
    hidden: int = 64
    """units per layer"""
    batch_size: int = 27
    """sequences per batch"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    max_steps: int = 800
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self)
        if not self.noise >= 0:
            raise ConfigError(f"--noise {self.noise}: expected 0 or more")


SPEAKERS, LENGTHS = 9, (16, 22, 29)
CHANCE = {"accuracy": 1 / SPEAKERS, "loss": math.log(SPEAKERS)}


def folder_of(config: Config) -> Path:
    """The folder of the files."""
    if config.data is not None:
        return Path(config.data)
    package = find_spec("aeon")
    if package is None or package.origin is None:
        raise ConfigError('the package aeon is not installed: pip install "jaxtrain[aeon]", or pass --data DIR')
    return Path(package.origin).parent / "datasets" / "data" / "JapaneseVowels"


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
    import braintools
    import jax
    import numpy as np

    import jaxtrain as jt
    from jaxtrain.datasets import bucket

    folder = folder_of(config)
    (x, y), (x_test, y_test) = (read(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    frames = np.concatenate(x)
    x, x_test = ([(one - frames.mean(0)) / frames.std(0) for one in every] for every in (x, x_test))
    held_out = np.arange(len(x)) % 5 == 0  # the file is sorted by speaker

    class Classify(jt.Module):
        def build(self):
            return config.network(12, SPEAKERS, LENGTHS[-1])

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 9)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"accuracy": jt.metrics.Accuracy(jax.nn.log_softmax(logits), y, decide="sum")}

        def configure_optimizer(self):
            return config.optimizer(LENGTHS[-1])

        def group(self, name):
            return config.group(name)

    def noisy(x, key):
        return x + config.noise * jax.random.normal(key, x.shape)

    def batches(x, y, which, **options):
        x, y = [one for one, chosen in zip(x, which, strict=True) if chosen], [int(one) for one in y[which]]
        return bucket(x, y, batch_size=config.batch_size, lengths=LENGTHS, seed=config.seed, last="pad", **options)

    data = jt.DataModule(
        batches(x, y, ~held_out, encoder=noisy),
        batches(x, y, held_out, shuffle=False),
        batches(x_test, y_test, np.ones(len(x_test), bool), shuffle=False),
    )
    fit = jt.Fit(config.make_strategy(), callbacks=config.callbacks(), **config.fit_options())
    return fit, Classify(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
