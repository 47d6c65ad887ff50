"""Endless streams of consecutive episodes for each sequence of a batch, split into segments of equal length."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..core.module import Phases


class Episode(NamedTuple):
    """One episode of T time steps.

    Attributes:
        inputs: ``(T, ...)``.
        targets: ``(T, ...)``.
        weights: ``(T,)``, weights of the scored time steps, or None if all are scored.

    >>> Episode(inputs=np.arange(4), targets=np.arange(4), weights=None).weights  # every time step is scored
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None


class Episodes(ABC):
    """A task made of episodes.

    Attributes:
        depth: Number of input ids, which are then one-hot encoded; None if inputs are vectors.
        n_in: Size of the encoded input.
        n_out: Size of the output.
        scores_all: Whether every time step is scored.

    Example::

        class Echo(Episodes):  # the target is the input
            depth, n_in, n_out, scores_all = None, 1, 1, True

            def size(self, rng):
                return int(rng.integers(5, 10))  # time steps

            def make(self, rng, size):
                x = rng.normal(size=(size, 1)).astype("float32")
                return Episode(x, x, None)

        data = StreamDataModule(Echo(), batch_size=4, unroll=20)
    """

    depth: int | None = None
    n_in: int
    n_out: int
    scores_all: bool

    @abstractmethod
    def size(self, rng: np.random.Generator) -> int:
        """Draw the properties of a new episode, such as its length, under the current task.

        The number of draws must not depend on the task, because ``make`` continues with the same ``rng``, also in a
        stream that is restored later.

        Args:
            rng: Random numbers of the episode.

        Returns:
            The size, which is saved in checkpoints.
        """

    @abstractmethod
    def make(self, rng: np.random.Generator, size: int) -> Episode:
        """Make the episode.

        Args:
            rng: Random numbers of the episode, after ``size`` has drawn from it.
            size: What ``size`` returned, now or before the stream was restored.

        Returns:
            The episode.
        """


class EpisodeStream:
    """Segments of endless streams of episodes, as ``Phases`` with ``reset`` set where an episode begins.

    Each of the ``batch_size`` sequences of a batch is one endless stream. Every segment continues it for ``unroll``
    time steps. An episode depends only on ``seed``, ``split``, the index of its sequence, its number in the sequence,
    and its size; sizes may depend on a task that changes. A stream can be saved and restored exactly, also within an
    episode (``state_dict``, ``load_state_dict``).

    Args:
        episodes: The task.
        batch_size: Sequences per batch.
        unroll: Time steps per segment.
        seed: Seed of the data.
        split: Number of the split.
        spread: Start each sequence at a random time step of its first episode, so that sequences are not aligned.

    >>> stream = EpisodeStream(StreamCopy(digits=2, delay=3), batch_size=4, unroll=5, seed=0)
    >>> next(stream).reset.shape
    (5, 4)
    """

    def __init__(
        self, episodes: Episodes, batch_size: int, unroll: int, seed: int, split: int = 0, spread: bool = True
    ):
        self.episodes, self.batch_size, self.unroll = episodes, batch_size, unroll
        self._root = (seed, split)
        self._open: list[Episode] = []
        # For each sequence: the number of its episode, the episode's size, and the next time step in it.
        self._at = np.zeros((batch_size, 3), np.int64)
        for sequence in range(batch_size):
            self._begin(sequence, 0)
            if spread:
                length = len(self._open[sequence].inputs)
                self._at[sequence, 2] = np.random.default_rng((*self._root, sequence)).integers(0, length)

    def _begin(self, sequence: int, number: int, size: int | None = None) -> None:
        rng = np.random.default_rng((*self._root, sequence, number))
        drawn = self.episodes.size(rng)
        size = drawn if size is None else size
        episode = self.episodes.make(rng, size)
        if sequence < len(self._open):
            self._open[sequence] = episode
        else:
            self._open.append(episode)
        self._at[sequence] = number, size, 0

    def __iter__(self) -> Iterator[Phases]:
        return self

    def __next__(self) -> Phases:
        shape, first = (self.unroll, self.batch_size), self._open[0]
        inputs = np.empty((*shape, *first.inputs.shape[1:]), first.inputs.dtype)
        targets = np.empty((*shape, *first.targets.shape[1:]), first.targets.dtype)
        weights = None if self.episodes.scores_all else np.empty(shape, np.float32)
        reset = np.zeros(shape, bool)
        for sequence in range(self.batch_size):
            t = 0
            while t < self.unroll:
                episode, at = self._open[sequence], int(self._at[sequence, 2])
                n = min(self.unroll - t, len(episode.inputs) - at)
                inputs[t : t + n, sequence] = episode.inputs[at : at + n]
                targets[t : t + n, sequence] = episode.targets[at : at + n]
                if weights is not None:
                    assert episode.weights is not None
                    weights[t : t + n, sequence] = episode.weights[at : at + n]
                reset[t, sequence] = at == 0
                self._at[sequence, 2] += n
                t += n
                if at + n == len(episode.inputs):
                    self._begin(sequence, int(self._at[sequence, 0]) + 1)
        return Phases(warmup=None, inputs=inputs, targets=targets, weights=weights, reset=reset)

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream.

        Returns:
            ``{"at": array (batch_size, 3)}``: each sequence's episode, its size, and the next time step in it.
        """
        return {"at": self._at.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``, a position returned by ``state_dict``."""
        for sequence, (number, size, at) in enumerate(np.asarray(state["at"]).tolist()):
            if (number, size) != tuple(self._at[sequence, :2].tolist()):
                self._begin(sequence, number, size)
            self._at[sequence, 2] = at
