"""Endless streams of images, row after row."""

import functools

import numpy as np

from jaxtrain import Phases


class Stream:
    """Endless streams of images: batch ``step`` has the next rows of every stream, as many as an image has.

    An image begins at another time step in each stream, so the sequences of an update are at all parts of an image. An
    epoch takes every image once, in an order that depends on (seed, epoch).

    Args:
        images: ``(N, T, n_in)``, 8 bits.
        labels: ``(N,)``.
        batch_size: Number of streams.
        scored: The last rows of an image, those with a loss.
        flip: Mirror half of the images of each epoch.
        seed: Seed of the order.
    """

    batch_first = False

    def __init__(self, images, labels, batch_size: int, scored: int, flip: bool, seed: int):
        self.images, self.labels, self.scored, self.flip, self.seed = images, labels, scored, flip, seed
        self.batch_size = batch_size
        self._epoch = functools.lru_cache(maxsize=2)(self._drawn)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def _drawn(self, epoch: int):
        """The order of an epoch, and which images are mirrored, ``(N,)`` each."""
        rng = np.random.default_rng((self.seed, epoch + 1))  # the batch before the first is of epoch -1
        return rng.permutation(len(self.images)), rng.random(len(self.images)) < self.flip / 2

    def begin(self, step: int):
        """Images that begin in a batch, and which are mirrored, ``(B,)`` each; -1 is the batch before the first."""
        epoch, number = divmod(step, len(self))
        part = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return tuple(values[part] for values in self._epoch(epoch))

    def batch(self, step: int):
        time, size = self.images.shape[1], self.batch_size
        start, now = np.arange(size) * time // size, np.arange(time)[:, None]
        begun = zip(self.begin(step), self.begin(step - 1), strict=True)
        image, mirrored = (np.where(now >= start, new, old) for new, old in begun)  # (T, B)
        row = (now - start) % time
        rows = self.images[image, row] / np.float32(255)  # (T, B, n_in)
        return Phases(
            warmup=None, inputs=np.where(mirrored[..., None], rows[..., ::-1], rows), targets=self.labels[image],
            weights=(row >= time - self.scored).astype("float32"), reset=row == 0,
        )  # fmt: skip
