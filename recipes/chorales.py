"""Four-part chorales of J. S. Bach: the notes of the next beat, predicted from those of all beats before it.

The package `music21` (pip install "jaxtrain[music21]") contains the scores as compressed MusicXML; they are read
without importing it. `--data DIR` names another folder of .mxl files.

python recipes/chorales.py --strategy drtrl
python recipes/chorales.py --strategy readout_only
python recipes/chorales.py --strategy bptt
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from music.musicxml import NOTES, piano_roll, read_score

from jaxtrain import cli
from jaxtrain.cli import NetworkOptions, TrainingOptions, check_options
from jaxtrain.errors import ConfigError
from jaxtrain.nn.cells import CellName
from jaxtrain.utils.extras import data_in


@dataclass(frozen=True)
class Config(TrainingOptions, NetworkOptions):
    """Bach's chorales: 88 notes, each on or off, at every beat."""

    data: str | None = None
    """folder of .mxl files; none: Bach's chorales in the installed package music21"""
    shift: int = 5
    """largest random transposition of a training chorale, in semitones"""
    drop: float = 0.1
    """probability that a note is missing in the input of a training chorale"""
    sample: str | None = None
    """folder for MIDI, WAV and PNG of a continued validation chorale, written at the end of the run"""
    cell: CellName = "mini_gru"
    """type of the recurrent layer"""
    hidden: int = 256
    """units per layer"""
    width: int | None = 128
    """units of a linear encoder before the first layer, and of an LRU's output; none: no encoder"""
    nonlinear: bool = True
    """apply a GELU after the encoder"""
    mlp: int = 256
    """units of a residual MLP after every recurrent layer; 0: none"""
    batch_size: int = 16
    """sequences per batch"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    max_steps: int = 1500
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self)
        if not 0 <= self.shift <= 12:
            raise ConfigError(f"--shift {self.shift}: expected 0 to 12 semitones")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"--drop {self.drop}: expected a probability below 1")


PARTS, MEMORY, LENGTHS = 4, 32, (64, 96)
"""Parts of a chorale; beats that the network should bridge; padded lengths, beside the longest."""

PROMPT, CONTINUED = 16, 48
"""Beats of a chorale that --sample continues, and of the continuation."""

CHANCE = {"loss": 11.34}
"""Nats per beat of independent notes with their frequencies in the training set, on the validation set of music21."""


def folder_of(config: Config) -> Path:
    """The folder of the files."""
    if config.data is not None:
        return Path(config.data)
    return data_in("music21", "corpus", "bach", package="music21", extra="music21", instead="pass --data DIR")


def load(folder: Path):
    """The rolls ``(T_i, 88)`` of the scores with four parts, in the order of their file names.

    Copies are left out, so that the test set holds no training chorale: rolls that are equal but for a transposition.
    """
    import numpy as np

    scores = [read_score(path) for path in sorted(folder.glob("*.mxl"))]
    rolls = [piano_roll(score) for score in scores if len(score.findall("part")) == PARTS]
    distinct = {np.argwhere(np.roll(roll, -roll.any(0).argmax(), 1)).tobytes(): roll for roll in reversed(rolls)}
    if len(distinct) < 5:
        raise ConfigError(f"{folder} has {len(distinct)} .mxl files with {PARTS} parts; expected 5 or more")
    return list(distinct.values())[::-1]


def split(rolls):
    """Training, validation and test set: of five neighbours in the order of names, three, one and one."""
    return [[roll for i, roll in enumerate(rolls) if i % 5 in of] for of in ((0, 1, 2), (3,), (4,))]


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jaxtrain as jt
    from jaxtrain.datasets import bucket

    train, val, test = split(load(folder_of(config)))
    beats = np.concatenate(train)
    frequency = (beats.sum(0) + 1) / (len(beats) + 2)

    def pairs(roll, key):
        """The notes before each beat, silence at first, and its own."""
        y = roll.astype(jnp.float32)
        return jnp.pad(y, ((1, 0), (0, 0)))[:-1], y

    def varied(roll, key):
        """Transposed as a whole, and without some notes of the input."""
        shift, drop = jax.random.split(key)
        x, y = pairs(jnp.roll(roll, jax.random.randint(shift, (), -config.shift, config.shift + 1), axis=1), key)
        return x * (jax.random.uniform(drop, x.shape) >= config.drop), y

    class Next(jt.Module):
        def build(self):
            network = config.network(NOTES, NOTES, MEMORY)
            readout = network.readout.weight  # begins with the frequencies of the notes
            readout.value = {**readout.value, "bias": jnp.asarray(np.log(frequency / (1 - frequency)), jnp.float32)}
            return network

        def learning_step(self, forward, x, y):
            return optax.sigmoid_binary_cross_entropy(forward(x), y).sum(-1)  # (B,), nats of the 88 notes of a beat

        def configure_optimizer(self):
            return config.optimizer(MEMORY)

        def group(self, name):
            return config.group(name)

    def batches(rolls, **options):
        longest = max(map(len, rolls))
        lengths = sorted({min(length, longest) for length in (*LENGTHS, longest)})
        return bucket(rolls, batch_size=config.batch_size, lengths=lengths, seed=config.seed, last="pad", **options)

    data = jt.DataModule(
        batches(train, encoder=varied),
        batches(val, encoder=pairs, shuffle=False),
        batches(test, encoder=pairs, shuffle=False),
    )
    callbacks = config.callbacks()
    if config.sample is not None:
        from music.continuation import Continue

        callbacks.append(Continue(Path(config.sample), val[0][:PROMPT], CONTINUED, PARTS))
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, **config.fit_options())
    return fit, Next(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, chance=CHANCE))
