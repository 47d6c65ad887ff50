"""Metrics and predictions over the batches of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np

from ..core.arrays import ArrayBatch
from ..core.metrics import SEEDS, OfSeeds, Pending, plain, tag
from ..core.module import Module
from ..data.batch import BATCH_FIRST, time_major
from ..engine.nonfinite import Watched
from ..errors import DataError


class Evaluates(Protocol):
    @property
    def module(self) -> Module: ...

    def evaluate(self, batch: Any, index: int) -> Pending: ...


class Predicts(Protocol):
    def predict(self, batch: Any, index: int) -> Pending: ...


def evaluate(program: Evaluates, batches: Iterable[Any], prefix: str,
             interrupted: Callable[[], bool] = lambda: False,
             batch_first: bool | None = None) -> dict[str, Any] | None:  # fmt: skip
    """Metrics over batches. Logs a warning if a value is not finite.

    Args:
        program: Computes the metrics of one batch.
        batches: The batches.
        prefix: Prefix of the names of metrics, for example "val".
        interrupted: Called before each batch; if it returns True, the evaluation ends.
        batch_first: Layout in which the warning gives a position in the data.

    Returns:
        ``{"val/loss": ...}``, and with several seeds also ``{"seeds/val/loss": [...]}``. A metric that is an array
        becomes a nested list. None if interrupted.
    """
    totals: dict[str, Any] = {}
    watched = Watched(program.module, prefix, batch_first)
    pending: list[tuple[int, Any, Pending]] = []  # fetched after the next batch is dispatched

    def fetch(index: int, batch: Any, dispatched: Pending) -> None:
        metrics = dispatched.fetch()
        watched.look(index, batch, metrics)
        for name, found in metrics.items():
            found = found.on_host()
            totals[name] = totals[name].merge(found) if name in totals else found

    for index, batch in enumerate(batches):
        if interrupted():
            return None
        pending.append((index, batch, program.evaluate(batch, index)))
        if len(pending) > 1:
            fetch(*pending.pop(0))
    for last in pending:
        fetch(*last)
    watched.end(totals)
    values = {name: total.finish() for name, total in totals.items()}
    for name, total in totals.items():
        if isinstance(total, OfSeeds):  # frozen seeds have no weight
            live = totals[f"{SEEDS}loss"].weight != 0
            values[name.removeprefix(SEEDS)] = values[name][live].mean(0) if live.any() else values[name][0]
    return {tag(prefix, name): plain(value) for name, value in values.items()}


def predict(reader: Predicts, batches: Iterable[Any], batch_first: bool | None) -> Any:
    """Predictions of all batches, joined along the sequences.

    Args:
        reader: Computes the predictions of one batch, ``(T_l, B, ...)``.
        batches: The batches.
        batch_first: Layout of the data and of the result.

    Returns:
        A pytree of arrays ``(T_l, N, ...)``, or ``(N, T_l, ...)`` if ``batch_first`` is True. If the sequences differ
        in length, a list with a pytree of arrays ``(T_i, ...)`` for each sequence. Predictions for a data set of
        ``jaxtrain.datasets`` are in its order and have no padding.

    Raises:
        DataError: The outputs cannot be joined.
    """
    outputs: list[Any] = []
    lengths: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    times: set[int] = set()
    ragged = False
    for index, batch in enumerate(batches):
        output = reader.predict(batch, index).fetch()
        time, count = _sizes(output)
        times.add(time)
        if batch_first is None and time < (first := _sizes(outputs[0] if outputs else output)[0]):
            raise DataError(
                f"predict data: batch {index} has outputs over {time} time steps, batch 0 over {first}: {BATCH_FIRST}, "
                "batch_first=False if it is time and the sequences differ in length",
                index,
            )
        ends = np.full(count, time)
        if isinstance(batch, ArrayBatch):
            kept, ragged = batch.kept(), batch.ragged
            output = jax.tree.map(lambda leaf, kept=kept: leaf[:, kept], output)
            ends = batch.length[kept] if batch.ragged else ends[kept]
            rows.append(batch.row[kept])
        outputs.append(output)
        lengths.append(ends)
    order = np.argsort(np.concatenate(rows), kind="stable") if rows else np.arange(sum(map(len, lengths)))
    if len(times) == 1 and not ragged:
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *outputs)
        joined = jax.tree.map(lambda leaf: leaf[:, order], joined) if rows else joined
        return time_major(joined) if batch_first else joined  # the swap of axes is its own inverse
    each = [
        jax.tree.map(lambda leaf, i=i, end=end: leaf[:end, i], output)
        for output, ends in zip(outputs, lengths, strict=True)
        for i, end in enumerate(ends)
    ]
    return [each[i] for i in order]


def _sizes(output: Any) -> tuple[int, int]:
    """Time steps and sequences of the outputs of a batch. Raises DataError if they are not ``(T_l, B, ...)``."""
    expected = "expected (B, ...), a value for each sequence"
    if not (leaves := jax.tree.leaves(output)):
        raise DataError(f"predict_step returned no array; {expected}")
    for leaf in leaves:
        if leaf.ndim < 2:
            raise DataError(f"predict_step returned an array of shape {leaf.shape[1:]} in a time step; {expected}")
    return leaves[0].shape[:2]
