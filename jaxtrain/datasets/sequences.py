"""Sequences of several lengths: padded to one length, or to a few, with weight 0 in the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ..core.arrays import ArrayBatch
from ..core.module import Phases
from ..errors import DataError
from .arrays import ArrayDataset, Last
from .columns import Items, is_items
from .copy import as_integer
from .encoders import Encoder


def fitting(size: int, sizes: Sequence[int], what: str) -> int:
    """The smallest of ``sizes`` that is at least ``size``.

    >>> fitting(3, (2, 5, 10), "bucket: time steps")
    5

    Raises ValueError if there is none.
    """
    large = [other for other in sizes if other >= size]
    if not large:
        task, _, what = what.partition(": ")
        raise ValueError(f"{task}: {size} {what} do not fit into the sizes {list(sizes)}; give a larger one")
    return min(large)


def pad(
    inputs: Sequence[Any],
    targets: Sequence[Any] | None = None,
    *,
    time: int | None = None,
    scored: int | None = None,
    side: Literal["end", "start"] = "end",
) -> Phases:
    """Pad sequences to one length and stack them. The padding has weight 0, so it changes no result.

    >>> phases = pad([np.ones((2, 1)), np.ones((3, 1))], [np.ones(2), np.ones(3)])
    >>> phases.inputs.shape, phases.weights.tolist()
    ((3, 2, 1), [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])

    Args:
        inputs: One array ``(T_i, ...)`` for each sequence.
        targets: One array ``(L_i, ...)`` for each sequence, for its last ``L_i`` time steps, which are scored; or one
            number for each, for all its time steps; or None.
        time: Time steps of the result; None: those of the longest sequence.
        scored: Time steps of the learning phase, if ``side`` is "start"; None: those of the longest targets.
        side: Where the padding is. At the "end", every time step belongs to the learning phase. At the "start", all
            sequences end together and ``reset`` clears their hidden states and traces after the padding, so the time
            steps before the targets are a warm-up phase.

    Returns:
        One batch, time-major, with weights ``(T_l, B)``.

    Raises:
        DataError: The sequences do not fit each other.
        ValueError: An argument is invalid.
    """
    if side not in ("end", "start"):
        raise ValueError(f"pad: side={side!r}; expected 'end' or 'start'")
    given = [np.asarray(x) for x in inputs]
    wanted = None if targets is None else [np.asarray(y) for y in targets]
    lengths, counts = _measured(given, wanted)
    total = max(lengths) if time is None else as_integer("time", time, 1, "pad")
    if total < max(lengths):
        raise ValueError(f"pad: time={total} is less than the {max(lengths)} time steps of the longest sequence")
    ends = [total] * len(given) if side == "start" else lengths
    begins = [end - length for end, length in zip(ends, lengths, strict=True)]
    warm = 0 if side == "end" else total - min(total, max(counts) if scored is None else scored)
    if side == "start" and scored is not None and scored < max(counts):
        raise ValueError(f"pad: scored={scored} is less than the {max(counts)} time steps of the longest targets")
    firsts = [end - count for end, count in zip(ends, counts, strict=True)]
    weights, reset = np.zeros((total, len(given)), np.float32), np.zeros((total, len(given)), bool)
    for index, (first, end, begin) in enumerate(zip(firsts, ends, begins, strict=True)):
        weights[first:end, index], reset[begin, index] = 1.0, True
    x = placed(given, begins, total)
    if wanted is not None and wanted[0].ndim == 0:
        wanted = [np.full(count, y) for count, y in zip(counts, wanted, strict=True)]
    return Phases(
        warmup=x[:warm] if warm else None,
        inputs=x[warm:],
        targets=None if wanted is None else placed(wanted, firsts, total)[warm:],
        weights=weights[warm:],
        reset=reset if side == "start" else None,
    )


def _measured(inputs: list[np.ndarray], targets: list[np.ndarray] | None) -> tuple[list[int], list[int]]:
    """The time steps of each sequence, and how many of them are scored."""
    if not inputs or (targets is not None and len(targets) != len(inputs)):
        count = 0 if targets is None else len(targets)
        raise DataError(f"pad: {len(inputs)} inputs and {count} targets; expected at least one, and one per input")
    lengths = [_time_of(x, index) for index, x in enumerate(inputs)]
    if targets is None:
        return lengths, lengths
    counts = [length if y.ndim == 0 else len(y) for y, length in zip(targets, lengths, strict=True)]
    for index, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        if not 1 <= count <= length:
            raise DataError(f"pad: targets {index} have {count} time steps, inputs {index} {length}")
    return lengths, counts


def _time_of(x: Any, index: int) -> int:
    shape = np.shape(x)
    if not shape or not shape[0]:
        raise DataError(f"sequence {index} has shape {shape}; expected (T, ...) with at least one time step")
    return shape[0]


def placed(parts: Sequence[np.ndarray], begins: Any, time: int) -> np.ndarray:
    """Arrays ``(T_i, ...)`` side by side in zeros ``(time, B, ...)``, each from its own first time step."""
    shape, dtype = parts[0].shape[1:], np.result_type(*parts)
    out = np.zeros((time, len(parts), *shape), dtype)
    for index, (part, begin) in enumerate(zip(parts, begins, strict=True)):
        if part.shape[1:] != shape:
            raise DataError(f"sequence {index} has shape {part.shape}; expected (T, {', '.join(map(str, shape))})")
        out[begin : begin + len(part), index] = part
    return out


def bucket(
    inputs: Sequence[Any],
    targets: Sequence[Any] | None = None,
    *,
    batch_size: int,
    lengths: int | Sequence[int] = 4,
    encoder: Encoder | Sequence[Encoder] | None = None,
    scored: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    last: Last | None = None,
    item: Callable[[Any], Any] | None = None,
) -> ArrayDataset:
    """Batches of sequences of several lengths, each batch padded at the end to one of a few lengths.

    A program is compiled for each of these lengths, before step 0. The padding has weight 0. Otherwise the result is an
    ``ArrayDataset``: each epoch has an order of its own, and resume is exact. ``Fit.predict`` returns one array for
    each sequence, without its padding, in the order of the data. Each item is read once at the start, for its length.

    Args:
        inputs: One array ``(T_i, ...)`` for each sequence, or a map-style data set; see ``ArrayDataset``.
        targets: For each sequence an array ``(L_i, ...)`` for its last ``L_i`` time steps, which are scored, or one
            number; or None.
        batch_size: Sequences per batch.
        lengths: The padded lengths, in time steps; or their number: lengths are then chosen that contain about equal
            numbers of sequences.
        encoder: As in ``ArrayDataset``; it must keep the number of time steps.
        scored: Number of scored time steps, the last ones of each sequence, if there is one target per sequence. Of a
            shorter sequence, all time steps are scored. None: all.
        seed: Seed of the order and of the encoder.
        shuffle: Whether each epoch has an order of its own.
        last: What to do with the sequences of a length that do not fill a batch, as in ``ArrayDataset``.
        item: As in ``ArrayDataset``.

    Raises:
        ValueError: An argument is invalid, or a sequence is longer than all ``lengths``.
        DataError: The sequences do not fit each other, or there is no complete batch.

    Returns:
        A source of batches for a ``DataModule``.

    >>> source = bucket([np.ones((n, 3)) for n in range(5, 13)], np.arange(8) % 2, batch_size=2, lengths=(8, 12))
    >>> sorted(len(source.batch(step).inputs) for step in range(4))
    [8, 8, 12, 12]
    """
    if not is_items(inputs):
        raise DataError(
            f"bucket: inputs are a {type(inputs).__name__}; expected a list of sequences, or a data set of them; for "
            "sequences of one length use ArrayDataset"
        )
    return Buckets(inputs, targets, lengths, batch_size=batch_size, encoder=encoder, scored=scored, seed=seed,
                   shuffle=shuffle, last=last, item=item)  # fmt: skip


class Buckets(ArrayDataset):
    """See ``bucket``.

    Attributes:
        lengths: The padded lengths.
        shape_examples: Number of a batch of each length, the longest first.
    """

    def __init__(self, inputs: Any, targets: Any, lengths: int | Sequence[int], **options: Any):
        data = Items(inputs, targets, options["item"])
        self._times = np.array([_time_of(jax.tree.leaves(data.read(row)[0])[0], row) for row in range(data.length)])
        self.lengths = _padded_lengths(lengths, self._times)
        self._buckets = np.array(
            [self.lengths.index(fitting(t, self.lengths, TIME_STEPS)) for t in self._times.tolist()]
        )
        super().__init__(inputs, targets, **options)
        plan = self._plan(0)
        of_batch = [int(self._buckets[plan(number)[0]]) for number in range(len(self))]
        self.shape_examples = tuple(of_batch.index(number) for number in sorted(set(of_batch), reverse=True))

    def _counts(self) -> list[int]:
        return np.bincount(self._buckets).tolist()

    def _plan(self, epoch: int) -> Callable[[int], np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self._data.length) if self.shuffle else np.arange(self._data.length)
        batches = []
        for number, count in enumerate(self._counts()):
            rows, size = order[self._buckets[order] == number], self.batch_size
            batches += [rows[at * size : (at + 1) * size] for at in range(self._batches_of(count))]
        if self.shuffle:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return batches.__getitem__

    def _make(self, rows: np.ndarray, epoch: int, filling: int) -> ArrayBatch:
        assert isinstance(self._data, Items)
        inputs, targets = zip(*(self._data.read(int(row)) for row in rows), strict=True)
        ends, time = self._times[rows], self.lengths[self._buckets[rows[0]]]
        scored = {leaf.shape[0] for leaf in jax.tree.leaves(targets) if leaf.ndim}
        starts = np.maximum(ends - self.scored, 0) if self.scored else np.zeros_like(ends)
        if scored:
            starts = ends - np.array([jax.tree.leaves(target)[0].shape[0] for target in targets])

        def together(begins: np.ndarray) -> Callable[..., np.ndarray]:
            return lambda *parts: placed(parts, begins, time).swapaxes(0, 1) if parts[0].ndim else np.stack(parts)

        ends = np.where(np.arange(len(rows)) < len(rows) - filling, ends, 0)
        return self._array_batch(
            jax.tree.map(together(np.zeros_like(starts)), *inputs),
            jax.tree.map(together(starts), *targets),
            rows, epoch, length=ends.astype(np.int32), start=starts.astype(np.int32),
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "lengths": list(self.lengths)}


TIME_STEPS = "bucket: time steps"


def _padded_lengths(lengths: Any, times: np.ndarray) -> list[int]:
    """The padded lengths in increasing order; a number of them becomes quantiles of the sequences' own."""
    if isinstance(lengths, Sequence):
        return sorted({as_integer("lengths", length, 1, "bucket") for length in lengths})
    count = as_integer("lengths", lengths, 1, "bucket")
    chosen = np.quantile(times, np.arange(1, count + 1) / count, method="inverted_cdf")
    return sorted({int(length) for length in chosen})
