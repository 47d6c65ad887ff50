"""Endless streams of episodes, one after another in every lane, cut into pieces of equal length."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..core.module import Phases


class Episode(NamedTuple):
    """``inputs``, ``targets``: ``(T, ...)``. ``weights``: ``(T,)``, which time steps are scored, or None for all."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None


class Episodes(ABC):
    """A task of episodes. ``depth``: ids of the inputs, which are then fed as one-hot; None: they are vectors."""

    depth: int | None = None
    n_in: int
    n_out: int
    scores_all: bool
    """Whether every time step is scored."""

    @abstractmethod
    def size(self, rng: np.random.Generator) -> int:
        """What is drawn about an episode when it begins, under the task as it is then: its length, say. It draws as
        often whatever the task is: ``make`` goes on with the same ``rng``, also in a stream that is restored later."""

    @abstractmethod
    def make(self, rng: np.random.Generator, size: int) -> Episode:
        """The episode of this size."""


class EpisodeStream:
    """Pieces of ``piece`` time steps of ``lanes`` endless lanes, as ``Phases`` with ``reset`` where an episode begins.

    Episode ``number`` of a lane hangs on ``(seed, split, lane, number)`` and its size alone; sizes may hang on a task
    that changes. ``spread``: each lane begins somewhere within its first episode, so that lanes are not aligned.
    Saved and restored exactly, in the middle of episodes (``state_dict``, ``load_state_dict``).
    """

    def __init__(self, episodes: Episodes, lanes: int, piece: int, seed: int, split: int = 0, spread: bool = True):
        self.episodes, self.lanes, self.piece = episodes, lanes, piece
        self._root = (seed, split)
        self._open: list[Episode] = []
        # Of every lane: the number of its episode, its size, and the next time step in it.
        self._at = np.zeros((lanes, 3), np.int64)
        for lane in range(lanes):
            self._begin(lane, 0)
            if spread:
                length = len(self._open[lane].inputs)
                self._at[lane, 2] = np.random.default_rng((*self._root, lane)).integers(0, length)

    def _begin(self, lane: int, number: int, size: int | None = None) -> None:
        rng = np.random.default_rng((*self._root, lane, number))
        drawn = self.episodes.size(rng)
        size = drawn if size is None else size
        episode = self.episodes.make(rng, size)
        if lane < len(self._open):
            self._open[lane] = episode
        else:
            self._open.append(episode)
        self._at[lane] = number, size, 0

    def __iter__(self) -> Iterator[Phases]:
        return self

    def __next__(self) -> Phases:
        shape, first = (self.piece, self.lanes), self._open[0]
        inputs = np.empty((*shape, *first.inputs.shape[1:]), first.inputs.dtype)
        targets = np.empty((*shape, *first.targets.shape[1:]), first.targets.dtype)
        weights = None if self.episodes.scores_all else np.empty(shape, np.float32)
        reset = np.zeros(shape, bool)
        for lane in range(self.lanes):
            t = 0
            while t < self.piece:
                episode, at = self._open[lane], int(self._at[lane, 2])
                n = min(self.piece - t, len(episode.inputs) - at)
                inputs[t : t + n, lane] = episode.inputs[at : at + n]
                targets[t : t + n, lane] = episode.targets[at : at + n]
                if weights is not None:
                    assert episode.weights is not None
                    weights[t : t + n, lane] = episode.weights[at : at + n]
                reset[t, lane] = at == 0
                self._at[lane, 2] += n
                t += n
                if at + n == len(episode.inputs):
                    self._begin(lane, int(self._at[lane, 0]) + 1)
        return Phases(warmup=None, inputs=inputs, targets=targets, weights=weights, reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self._at.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for lane, (number, size, at) in enumerate(np.asarray(state["at"]).tolist()):
            if (number, size) != tuple(self._at[lane, :2].tolist()):
                self._begin(lane, number, size)
            self._at[lane, 2] = at
