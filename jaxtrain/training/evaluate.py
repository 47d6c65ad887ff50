"""Metrics over the batches of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from ..core.metrics import Mean, Pending, plain, tag
from ..core.module import Module
from ..engine.nonfinite import Watched


class Evaluates(Protocol):
    @property
    def module(self) -> Module: ...

    def evaluate(self, batch: Any, index: int) -> Pending: ...


def evaluate(program: Evaluates, batches: Iterable[Any], prefix: str,
             interrupted: Callable[[], bool] = lambda: False,
             batch_first: bool | None = None) -> dict[str, Any] | None:  # fmt: skip
    """Weighted means of metrics over batches. Logs a warning if a value is not finite.

    Args:
        program: Computes the metrics of one batch.
        batches: The batches.
        prefix: Prefix of the names of metrics, for example "val".
        interrupted: Called before each batch; if it returns True, the evaluation ends.
        batch_first: Layout in which the warning gives a position in the data.

    Returns:
        ``{"val/loss": ...}``, and with several seeds also ``{"seeds/val/loss": [...]}``. None if interrupted.
    """
    totals: dict[str, Mean] = {}
    watched = Watched(program.module, prefix, batch_first)
    pending: list[tuple[int, Any, Pending]] = []  # fetched after the next batch is dispatched

    def fetch(index: int, batch: Any, dispatched: Pending) -> None:
        metrics = dispatched.fetch()
        watched.look(index, batch, metrics)
        for name, mean in metrics.items():
            mean = Mean(np.asarray(mean.num, np.float64), np.asarray(mean.weight, np.float64))
            totals[name] = totals[name].merge(mean) if name in totals else mean

    for index, batch in enumerate(batches):
        if interrupted():
            return None
        pending.append((index, batch, program.evaluate(batch, index)))
        if len(pending) > 1:
            fetch(*pending.pop(0))
    for last in pending:
        fetch(*last)
    watched.end(totals)
    with np.errstate(invalid="ignore"):  # NaN if the total weight is 0
        return {tag(prefix, name): plain(mean.num / mean.weight) for name, mean in totals.items()}
