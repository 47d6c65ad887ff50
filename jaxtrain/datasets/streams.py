"""Tasks to learn from one endless stream, with an update at every time step."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..data.iterator import DataModule
from .copy import SPLITS, as_integer
from .episodes import Episode, Episodes, EpisodeStream


class StreamCopy(Episodes):
    """``digits`` symbols of eight, a ``delay`` of blanks, then as many cues, at which the symbols are recalled."""

    depth = n_in = 10  # symbols 0 to 7, blank 8, cue 9
    n_out = 8
    scores_all = False

    def __init__(self, digits: int = 5, delay: int = 40):
        self.digits, self.delay = as_integer("digits", digits, 1), as_integer("delay", delay, 0)

    def size(self, rng: np.random.Generator) -> int:
        return self.digits

    def make(self, rng: np.random.Generator, size: int) -> Episode:
        symbols = rng.integers(0, 8, size)
        length = 2 * size + self.delay
        inputs, targets = np.full(length, 8, np.int8), np.zeros(length, np.int8)
        weights = np.zeros(length, np.float32)
        inputs[:size], inputs[-size:], targets[-size:], weights[-size:] = symbols, 9, symbols, 1.0
        return Episode(inputs, targets, weights)


class Adding(Episodes):
    """Random numbers in [0, 1), of which two are marked, one in each half: their sum is asked for at the last time step
    (Hochreiter & Schmidhuber 1997)."""

    n_in, n_out = 2, 1
    scores_all = False

    def __init__(self, length: int = 100):
        self.length = as_integer("length", length, 2, "adding")

    def size(self, rng: np.random.Generator) -> int:
        return self.length

    def make(self, rng: np.random.Generator, size: int) -> Episode:
        inputs = np.zeros((size, 2), np.float32)
        inputs[:, 0] = rng.random(size, np.float32)
        inputs[[rng.integers(0, size // 2), rng.integers(size // 2, size)], 1] = 1.0
        targets, weights = np.zeros((size, 1), np.float32), np.zeros(size, np.float32)
        targets[-1], weights[-1] = inputs[:, 0] @ inputs[:, 1], 1.0
        return Episode(inputs, targets, weights)


class AnBn(Episodes):
    """The next character of ``a^n b^n #``, n from 1 to ``most``, at every time step; after # comes #, as in the
    protocol whose numbers are compared with."""

    depth = n_in = n_out = 3
    scores_all = True

    def __init__(self, most: int = 16):
        self.most = as_integer("most", most, 1, "a^n b^n")

    def size(self, rng: np.random.Generator) -> int:
        return int(rng.integers(1, self.most + 1))

    def make(self, rng: np.random.Generator, size: int) -> Episode:
        inputs = np.repeat(np.array([0, 1, 2], np.int8), [size, size, 1])
        return Episode(inputs, np.append(inputs[1:], np.int8(2)), None)


class BinaryCopy(Episodes):
    """Copying bits, scored at every time step (Benzing et al. 2019): a start token, T bits, T + 1 blanks in; T + 1
    blanks, the start token and the bits out. ``length()`` is L of the curriculum: T = max(1, L - 0 ... 4), drawn for
    every episode."""

    depth = n_in = n_out = 4  # bits 0 and 1, start 2, blank 3
    scores_all = True

    def __init__(self, length: Callable[[], int]):
        self.length = length

    def size(self, rng: np.random.Generator) -> int:
        return max(1, as_integer("length", self.length(), 1, "copying bits") - int(rng.integers(5)))

    def make(self, rng: np.random.Generator, size: int) -> Episode:
        said = np.append(np.int8(2), rng.integers(0, 2, size, np.int8))
        blank = np.full(size + 1, 3, np.int8)
        return Episode(np.concatenate([said, blank]), np.concatenate([blank, said]), None)


class StreamDataModule(DataModule):
    """An endless stream of a task's episodes in ``lanes`` lanes, ``piece`` time steps a batch.

    ``episodes``: a task, or what makes one of this module, which may then read ``module.task``: a curriculum changes
    it, and episodes that begin later follow. ``val_steps``: time steps of a held-out stream to validate with, from
    fresh hidden states; 0: no validation data. For a rule with ``update_every=1, carry="carry"``.

    Raises ValueError for sizes that are none.
    """

    batch_first = False

    def __init__(self, episodes: Episodes | Callable[["StreamDataModule"], Episodes], lanes: int = 8, piece: int = 20,
                 seed: int = 0, spread: bool = True, val_steps: int = 0, **task: Any) -> None:  # fmt: skip
        super().__init__()
        self.task = dict(task)
        size = functools.partial(as_integer, task="a stream")
        self.lanes, self.piece = size("lanes", lanes, 1), size("piece", piece, 1)
        self.seed, self.val_steps = size("seed", seed, 0), size("val_steps", val_steps, 0)
        self.spread = spread
        self.episodes = episodes if isinstance(episodes, Episodes) else episodes(self)
        plain = {key: value for key, value in vars(self.episodes).items() if not callable(value)}
        self._identity = {
            "class": type(self).__qualname__, "episodes": type(self.episodes).__qualname__, **plain, **task,
            "lanes": lanes, "piece": piece, "seed": seed, "spread": spread, "val_steps": val_steps,
        }  # fmt: skip

    def train_data(self) -> EpisodeStream:
        return EpisodeStream(self.episodes, self.lanes, self.piece, self.seed, spread=self.spread)

    def val_data(self) -> list[Any] | None:
        if not self.val_steps:
            return None
        split = SPLITS.index("val")
        return [next(EpisodeStream(self.episodes, self.lanes, self.val_steps, self.seed, split, spread=False))]

    def updates(self, pieces: int, every: int) -> int:
        """Updates that a rule with ``update_every=every`` makes in the first ``pieces`` of the training data: one for
        every so many time steps of a piece, unless nothing is scored in them."""
        edges = range(0, self.piece, every)
        if self.episodes.scores_all:
            return pieces * len(edges)
        stream, found = self.train_data(), 0
        for _ in range(pieces):
            found += int(np.logical_or.reduceat(next(stream).weights.any(axis=1), edges).sum())
        return found

    def encode(self, x: Any) -> Any:
        """Ids (B,) of one time step as one-hot (B, depth), vectors as they are; traced."""
        if self.episodes.depth is None:
            return x
        import jax

        return jax.nn.one_hot(x, self.episodes.depth, dtype=np.float32)

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)
