"""What a module gives for the sequences of one pass: batch by batch, or joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np

from ..core.arrays import ArrayBatch
from ..core.metrics import Pending
from ..core.module import Module
from ..core.objective import phases_of
from ..core.state import kind_of, seeded
from ..data.batch import BATCH_FIRST, time_major
from ..engine.binding import environ
from ..errors import DataError


class Predicts(Protocol):
    @property
    def module(self) -> Module: ...

    def predict(self, batch: Any, index: int) -> Pending: ...


@dataclass(frozen=True)
class Outputs:
    """The outputs for one batch, without sequences that only fill it.

    Attributes:
        values: A pytree of numpy arrays ``(T_l, B, ...)``, or ``(B, T_l, ...)`` for batch-first data.
        rows: ``(B,)``, the number of each sequence: in its data set, or counted over the batches.
        lengths: ``(B,)``, the time steps of the outputs of each sequence; later ones are padding.
    """

    values: Any
    rows: np.ndarray
    lengths: np.ndarray
    ragged: bool = False
    """Whether the data has sequences of several lengths."""


def in_layout(outputs: Outputs, batch_first: bool | None) -> Outputs:
    """Time-major outputs in the layout of the data."""
    return replace(outputs, values=time_major(outputs.values)) if batch_first else outputs


def each_batch(reader: Predicts, batches: Iterable[Any], batch_first: bool | None) -> Iterator[Outputs]:
    """The outputs of one batch after the other, time-major. A batch is dispatched before the previous one is fetched.

    Args:
        reader: Computes the outputs of one batch, ``(T_l, B, ...)``.
        batches: The batches.
        batch_first: Layout of the data.

    Raises:
        DataError: The outputs have no batch axis, or the layout is unclear.
    """
    first, count = None, 0
    steps: dict[Any, int] = {}
    for index, (batch, dispatched) in enumerate(_one_ahead(reader, batches)):
        if isinstance(batch, ArrayBatch) and batch.ragged and kind_of(batch) not in steps:
            steps[kind_of(batch)] = _time_steps(reader.module, batch)
        outputs = _outputs(batch, dispatched, count, steps)
        first, count = _time(outputs) if first is None else first, count + len(outputs.rows)
        if batch_first is None and (time := _time(outputs)) < first:
            raise DataError(
                f"predict data: batch {index} has outputs over {time} time steps, batch 0 over {first}: {BATCH_FIRST}, "
                "batch_first=False if it is time and the sequences differ in length",
                index,
            )
        yield outputs


def _one_ahead(reader: Predicts, batches: Iterable[Any]) -> Iterator[tuple[Any, Pending]]:
    """The batches with their pending outputs, each after the next batch is dispatched."""
    waiting = deque[tuple[Any, Pending]]()
    for index, batch in enumerate(batches):
        waiting.append((batch, reader.predict(batch, index)))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _time_steps(module: Module, batch: Any) -> int:
    """The time steps of the warm-up and the learning phase of a batch."""
    steps = []
    with environ(module, fit=False), seeded(0):
        jax.eval_shape(lambda batch: steps.extend(phases_of(module, batch).sizes[:2]), batch)
    return sum(steps)


def _outputs(batch: Any, dispatched: Pending, count: int, steps: dict[Any, int]) -> Outputs:
    """The outputs of a batch, after ``count`` sequences of earlier batches.

    ``steps`` holds the time steps that ran, by the kind of a batch with several lengths. Those before the first output
    are a warm-up, which the length of a sequence includes.
    """
    values = dispatched.fetch()
    time, size = _sizes(values)
    rows, lengths = count + np.arange(size), np.full(size, time)
    if not isinstance(batch, ArrayBatch):
        return Outputs(values, rows, lengths)
    kept = batch.kept()
    values = jax.tree.map(lambda leaf: leaf[:, kept], values)
    if batch.ragged:
        lengths = np.clip(np.asarray(batch.length) - (steps[kind_of(batch)] - time), 0, time)
    lengths = lengths[kept]
    return Outputs(values, np.asarray(batch.row)[kept], lengths, batch.ragged)


def _time(outputs: Outputs) -> int:
    return jax.tree.leaves(outputs.values)[0].shape[0]


def joined(each: Iterable[Outputs], batch_first: bool | None) -> Any:
    """Time-major outputs of all batches, joined along the sequences, in the order of their rows.

    Returns:
        A pytree of arrays ``(T_l, N, ...)``, or ``(N, T_l, ...)`` if ``batch_first`` is True. If the sequences differ
        in length, a list with a pytree of arrays ``(T_i, ...)`` for each sequence.
    """
    parts = list(each)
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    if len({_time(part) for part in parts}) == 1 and not parts[0].ragged:
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *[part.values for part in parts])
        if (order != np.arange(len(order))).any():
            whole = jax.tree.map(lambda leaf: leaf[:, order], whole)
        return time_major(whole) if batch_first else whole  # the swap of axes is its own inverse
    sequences = [
        jax.tree.map(lambda leaf, i=i, end=end: leaf[:end, i], part.values)
        for part in parts
        for i, end in enumerate(part.lengths)
    ]
    return [sequences[i] for i in order]


def _sizes(output: Any) -> tuple[int, int]:
    """Time steps and sequences of the outputs of a batch. Raises DataError if they are not ``(T_l, B, ...)``."""
    expected = "expected (B, ...), a value for each sequence"
    if not (leaves := jax.tree.leaves(output)):
        raise DataError(f"predict_step returned no array; {expected}")
    for leaf in leaves:
        if leaf.ndim < 2:
            raise DataError(f"predict_step returned an array of shape {leaf.shape[1:]} in a time step; {expected}")
    return leaves[0].shape[:2]
