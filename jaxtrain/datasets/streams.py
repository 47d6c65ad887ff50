"""Tasks for learning from one endless stream, with an update at every time step."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..data.datamodule import DataModule
from .copy import SPLITS, as_integer
from .episodes import Episode, Episodes, EpisodeStream


class StreamCopy(Episodes):
    """Copying: ``digits`` symbols (one of eight), ``delay`` blanks, then ``digits`` cues to recall the symbols.

    Args:
        digits: Number of symbols, at least 1.
        delay: Number of blanks, in time steps.

    Raises:
        ValueError: A size is invalid.

    >>> task = StreamCopy(digits=2, delay=3)
    >>> task.make(rng, task.size(rng)).inputs.shape
    (7,)
    """

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
    """Adding problem: the target at the last time step is the sum of two marked inputs (Hochreiter & Schmidhuber 1997).

    Inputs are random numbers in [0, 1) and a mark. One number in each half of the episode is marked.

    Args:
        length: Time steps of an episode, at least 2.

    Raises:
        ValueError: ``length`` is invalid.

    >>> episode = Adding(length=10).make(rng, 10)
    >>> episode.inputs.shape, episode.weights.sum()
    ((10, 2), np.float32(1.0))
    """

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
    """Predict the next character of ``a^n b^n #`` at every time step, with n from 1 to ``most``.

    After # the target is #, as in the protocol of the published numbers that results are compared with.

    Args:
        most: Largest n.

    Raises:
        ValueError: ``most`` is invalid.

    >>> AnBn(most=4).make(rng, 2).inputs.tolist()  # a a b b #
    [0, 0, 1, 1, 2]
    """

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
    """Copying bits, scored at every time step (Benzing et al. 2019).

    Inputs are a start token, T bits and T + 1 blanks. Targets are T + 1 blanks, the start token and the T bits. For
    each episode, T = max(1, L - d) with d drawn from 0 ... 4.

    Args:
        length: Function that returns L, which a curriculum may change.

    >>> BinaryCopy(lambda: 4).make(rng, 4).inputs.shape
    (10,)
    """

    depth = n_in = n_out = 4  # bits 0 and 1, start 2, blank 3
    scores_all = True

    def __init__(self, length: Callable[[], int]):
        self.length = length

    def size(self, rng: np.random.Generator) -> int:
        return max(1, as_integer("length", self.length(), 1, "copying bits") - int(rng.integers(5)))

    def make(self, rng: np.random.Generator, size: int) -> Episode:
        symbols = np.append(np.int8(2), rng.integers(0, 2, size, np.int8))
        blank = np.full(size + 1, 3, np.int8)
        return Episode(np.concatenate([symbols, blank]), np.concatenate([blank, symbols]), None)


class StreamDataModule(DataModule):
    """An endless stream of episodes for each of ``batch_size`` sequences, with ``unroll`` time steps per batch.

    Use it with a rule that has ``update_every=1, stateful=True``.

    Args:
        episodes: A task, or a function that makes one from this data module. The task may read ``module.task``: a
            curriculum changes it, and episodes that begin later follow.
        batch_size: Sequences per batch.
        unroll: Time steps per batch.
        seed: Seed of the data.
        spread: Start each sequence at a random time step of its first episode.
        val_steps: Time steps of a held-out stream for validation, which starts from fresh hidden states; 0: no
            validation data.
        **task: Initial values of ``task``.

    Raises:
        ValueError: A size is invalid.

    >>> data = StreamDataModule(StreamCopy(digits=2, delay=3), batch_size=4, unroll=5)
    >>> next(data.train_data()).inputs.shape
    (5, 4)
    """

    batch_first = False

    def __init__(self, episodes: Episodes | Callable[["StreamDataModule"], Episodes], batch_size: int = 8,
                 unroll: int = 20, seed: int = 0, spread: bool = True, val_steps: int = 0,
                 **task: Any) -> None:  # fmt: skip
        super().__init__()
        self.task = dict(task)
        size = functools.partial(as_integer, task="a stream")
        self.batch_size, self.unroll = size("batch_size", batch_size, 1), size("unroll", unroll, 1)
        self.seed, self.val_steps = size("seed", seed, 0), size("val_steps", val_steps, 0)
        self.spread = spread
        self.episodes = episodes if isinstance(episodes, Episodes) else episodes(self)
        plain = {key: value for key, value in vars(self.episodes).items() if not callable(value)}
        self._identity = {
            "class": type(self).__qualname__, "episodes": type(self.episodes).__qualname__, **plain, **task,
            "batch_size": batch_size, "unroll": unroll, "seed": seed, "spread": spread, "val_steps": val_steps,
        }  # fmt: skip

    def train_data(self) -> EpisodeStream:
        return EpisodeStream(self.episodes, self.batch_size, self.unroll, self.seed, spread=self.spread)

    def val_data(self) -> list[Any] | None:
        if not self.val_steps:
            return None
        split = SPLITS.index("val")
        return [next(EpisodeStream(self.episodes, self.batch_size, self.val_steps, self.seed, split, spread=False))]

    def updates(self, batches: int, every: int) -> int:
        """Number of updates that a rule with ``update_every=every`` makes in the training data.

        There is one update per ``every`` time steps of a batch (the last group may be shorter), unless none of them is
        scored.

        Args:
            batches: Number of batches, from the start of the training data.
            every: Time steps per update.

        Returns:
            The number of updates in these batches.
        """
        starts = range(0, self.unroll, every)
        if self.episodes.scores_all:
            return batches * len(starts)
        stream, count = self.train_data(), 0
        for _ in range(batches):
            count += int(np.logical_or.reduceat(next(stream).weights.any(axis=1), starts).sum())
        return count

    def encode(self, x: Any, /) -> Any:
        """Return the ids ``x`` (B,) of one time step one-hot encoded, float32 (B, depth); vectors unchanged.

        Called while tracing.
        """
        if self.episodes.depth is None:
            return x
        import jax

        return jax.nn.one_hot(x, self.episodes.depth, dtype=np.float32)

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)
