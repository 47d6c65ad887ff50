"""Arrays and map-style data sets as batches: shuffled, encoded, and exact on resume, because all follows the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ..core.arrays import WHOLE, ArrayBatch
from ..errors import DataError
from .columns import Columns, Items, is_array, is_items, stacked
from .copy import as_integer
from .encoders import Chain, Encoder

Last = Literal["drop", "pad", "refuse"]


class ArrayDataset:
    """Batches of arrays, or of a map-style data set, as a source of a ``DataModule``.

    The order of an epoch is a permutation that depends on (seed, epoch), and a batch depends on its step, so a resumed
    run continues exactly and reads nothing again. Arrays are indexed and never copied as a whole, so memory-mapped
    arrays may be larger than the memory.

    With an ``encoder``, a batch holds the values of each sequence, and the compiled step makes the inputs ``(T, ...)``
    of them. Random encoders draw from (seed, epoch, number of the sequence in the data set). So the draws do not depend
    on the batch size, on the number of devices or on ``accumulate``, and validations repeat theirs.

    A target per sequence, ``(N,)``, is repeated over the scored time steps.

    Example::

        train = ArrayDataset(images, labels, batch_size=128, encoder=Bernoulli(steps=10))

    Args:
        inputs: An array, or a dict or tuple of arrays, in the layout that ``batch_first`` states: ``(N, T, ...)`` or
            ``(T, N, ...)``; with an encoder ``(N, ...)``. Or a map-style data set (torch, Hugging Face, grain, a list):
            an object with ``__len__`` and ``__getitem__`` whose items are ``(inputs, targets)`` or inputs, with inputs
            ``(T, ...)`` and targets ``(T_l, ...)`` or ``()``.
        targets: Targets ``(N, T_l, ...)`` or ``(T_l, N, ...)``, in the same layout; or one per sequence, ``(N,)``; or
            None.
        batch_size: Sequences per batch.
        batch_first: True if axis 0 of the arrays is the sequence, False if it is time. It must be stated for arrays
            without an encoder.
        encoder: ``encoder(values, key) -> (T, ...)`` for one sequence, or a tuple of encoders that are applied in
            order; see ``jaxtrain.datasets.Bernoulli`` and others.
        scored: Number of scored time steps, the last ones, if there is one target per sequence; None: all.
        seed: Seed of the order and of the encoder.
        shuffle: Whether each epoch has an order of its own.
        last: What to do if the sequences of an epoch do not fill the last batch: "drop" it, "pad" it with sequences of
            weight 0, or "refuse" such data. Default: "drop" if ``shuffle`` is True, so that other sequences are dropped
            in each epoch; else "pad".
        item: Function of an item of a map-style data set that returns ``(inputs, targets)`` or the inputs.

    Raises:
        ValueError: An argument is invalid.
        DataError: The arrays do not fit each other, or there is no complete batch.
    """

    batch_first: bool | None

    def __init__(
        self,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int,
        batch_first: bool | None = None,
        encoder: Encoder | Sequence[Encoder] | None = None,
        scored: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        last: Last | None = None,
        item: Callable[[Any], Any] | None = None,
    ) -> None:
        self.encoder = _as_encoder(encoder)
        self.batch_size = as_integer("batch_size", batch_size, 1, "ArrayDataset")
        self.seed = as_integer("seed", seed, 0, "ArrayDataset")
        self.scored = None if scored is None else as_integer("scored", scored, 1, "ArrayDataset")
        self.shuffle, self.last = shuffle, last or ("drop" if shuffle else "pad")
        if self.last not in ("drop", "pad", "refuse"):
            raise ValueError(f"ArrayDataset: last={last!r}; expected 'drop', 'pad' or 'refuse'")
        self.batch_first = _layout(inputs, batch_first, self.encoder)
        self._data = _read_from(inputs, targets, item, 0 if self.batch_first else 1)
        self._order: tuple[int, Any] = (-1, None)  # the epoch that was read last, and its batches
        self._require_batches()

    # ------------------------------------------------------------------------------------------------- batches

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return sum(self._batches_of(count) for count in self._counts())

    def batch(self, step: int) -> ArrayBatch:
        """Return batch number ``step``, counted over all epochs."""
        epoch, number = divmod(as_integer("step", step, 0, "ArrayDataset"), len(self))
        if self._order[0] != epoch:
            self._order = epoch, self._plan(epoch)
        rows = self._order[1](number)
        filling = self.batch_size - len(rows)
        rows = np.concatenate([rows, np.full(filling, rows[0])]) if filling else rows
        return self._make(rows, epoch, filling)

    @property
    def dropped(self) -> int:
        """Number of sequences that an epoch leaves out."""
        return max(0, self._data.length - len(self) * self.batch_size)

    def _counts(self) -> list[int]:
        """Number of sequences of each shape."""
        return [self._data.length]

    def _batches_of(self, count: int) -> int:
        return -(-count // self.batch_size) if self.last == "pad" else count // self.batch_size

    def _require_batches(self) -> None:
        size, counts = self.batch_size, self._counts()
        left = sum(count % size for count in counts)
        if self.last == "refuse" and left:
            raise DataError(
                f"ArrayDataset: {' and '.join(map(str, counts))} sequences do not fill batches of {size}, {left} are "
                "left over; choose another batch_size, or last='drop' or last='pad'"
            )
        never = [count for count in counts if count and not self._batches_of(count)]
        if never or not any(counts):
            which = "sequences of one length" if len(counts) > 1 else "sequences"
            raise DataError(
                f"ArrayDataset: {max(never, default=0)} {which} do not fill a batch of {size}; choose a smaller "
                "batch_size or last='pad'"
            )

    def _plan(self, epoch: int) -> Callable[[int], np.ndarray]:
        """A function that returns the rows of a batch of this epoch."""
        size, count = self.batch_size, self._data.length
        if not self.shuffle:
            return lambda number: np.arange(number * size, min((number + 1) * size, count))
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        return lambda number: order[number * size : (number + 1) * size]

    def _make(self, rows: np.ndarray, epoch: int, filling: int) -> ArrayBatch:
        inputs, targets = self._read(rows)
        length = None
        if self.last == "pad" and self._data.length % self.batch_size:  # all batches have one structure
            length = np.full(len(rows), WHOLE, np.int32)
            length[len(rows) - filling :] = 0
        return self._array_batch(inputs, targets, rows, epoch, length=length, steps=self.scored)

    def _array_batch(self, inputs: Any, targets: Any, rows: np.ndarray, epoch: int, **fields: Any) -> ArrayBatch:
        """An ``ArrayBatch`` of arrays with the sequences on axis 0."""
        if self.scored is not None and not any(leaf.ndim == 1 for leaf in jax.tree.leaves(targets)):
            raise DataError("ArrayDataset: scored= needs one target per sequence, (N,); leave it out")
        encoded = self.encoder is not None
        over_time = lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim > 1 else leaf  # noqa: E731
        return ArrayBatch(
            inputs=jax.tree.map((lambda leaf: leaf[None]) if encoded else over_time, inputs),
            targets=jax.tree.map(over_time, targets),
            row=rows.astype(np.int32),
            epoch=np.array(epoch, np.int32),
            encoder=self.encoder,
            seed=self.seed,
            **fields,
        )

    def _read(self, rows: np.ndarray) -> tuple[Any, Any]:
        """Inputs and targets of some rows, with the sequences on axis 0."""
        if isinstance(self._data, Columns):
            return self._data.tree.unflatten(self._data.read(rows))
        pairs = [self._data.read(int(row)) for row in rows]
        return jax.tree.map(lambda *leaves: stacked(leaves, "item", rows), *pairs)

    def identity(self) -> dict[str, Any]:
        """Return what determines the batches beside the arrays, a JSON dict; it is compared when a run is resumed."""
        return {
            "sequences": self._data.length, "batch_size": self.batch_size, "seed": self.seed, "shuffle": self.shuffle,
            "last": self.last, "scored": self.scored, "encoder": _describe(self.encoder),
        }  # fmt: skip


def _as_encoder(encoder: Any) -> Encoder | None:
    if encoder is None:
        return None
    several = isinstance(encoder, (tuple, list))
    parts = tuple(encoder) if several else (encoder,)
    for part in parts:
        if not callable(part) or isinstance(part, type):
            raise ValueError(
                f"ArrayDataset: encoder={part!r} is not an encoder; expected a function of (values, key), "
                "as Bernoulli(10)"
            )
        try:
            hash(part)
        except TypeError:
            raise ValueError(
                f"ArrayDataset: encoder {type(part).__name__} has no hash, by which compiled programs are kept; make "
                "it a frozen dataclass or a function"
            ) from None
    return Chain(parts) if several else encoder


def _describe(encoder: Any) -> str | None:
    """A text that is the same in every process: fields of the encoders here, else the name."""
    if encoder is None:
        return None
    if isinstance(encoder, Chain):
        return " -> ".join(str(_describe(part)) for part in encoder.encoders)
    text = repr(encoder)
    return text if " at 0x" not in text else getattr(encoder, "__qualname__", type(encoder).__qualname__)


def _layout(inputs: Any, batch_first: Any, encoder: Encoder | None) -> bool | None:
    """Check ``batch_first``; with an encoder or items, the sequences are counted by axis 0 or by index."""
    if type(batch_first) not in (bool, type(None)):
        raise ValueError(f"ArrayDataset: batch_first={batch_first!r}; expected True or False")
    if encoder is not None or is_items(inputs):
        if batch_first is False:
            what = "with an encoder, axis 0 counts the sequences" if encoder else "items are counted by index"
            raise ValueError(f"ArrayDataset: batch_first=False, but {what}; leave it out")
        return True
    if batch_first is None:
        raise ValueError(
            "ArrayDataset: state the layout of the arrays: batch_first=True if they are (N, T, ...), with the "
            "sequences on axis 0; False if they are (T, N, ...); or give an encoder for values (N, ...)"
        )
    return batch_first


def _read_from(inputs: Any, targets: Any, item: Any, axis: int) -> Columns | Items:
    if is_items(inputs):
        return Items(inputs, targets, item)
    if item is not None:
        raise ValueError("ArrayDataset: item= is for a data set with __len__ and __getitem__, and inputs are arrays")
    if not jax.tree.leaves(inputs):
        raise DataError(
            f"ArrayDataset: inputs are {type(inputs).__name__} without arrays; expected arrays or a data set"
        )
    columns = Columns(inputs, "inputs", axis)
    if targets is not None:
        targets = targets if is_array(targets) or not isinstance(targets, list) else np.asarray(targets)
        both = Columns(targets, "targets", axis)
        if both.length != columns.length:
            raise DataError(
                f"ArrayDataset: inputs hold {columns.length} sequences on axis {axis}, targets {both.length}; expected "
                "the same number" + "; is axis 0 the batch? Then batch_first=True" * axis
            )
    return Columns((inputs, targets), "inputs and targets", axis)
