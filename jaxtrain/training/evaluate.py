"""Metrics over the batches of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..core.metrics import SEEDS, OfSeeds, Pending, plain, tag
from ..core.module import Module
from ..data.eval_loader import EvalLoader
from ..engine.nonfinite import Watched


class Evaluates(Protocol):
    @property
    def module(self) -> Module: ...

    def evaluate(self, batch: Any, index: int) -> Pending: ...


def evaluate_sets(program: Evaluates, loaders: Iterable[EvalLoader],
                  interrupted: Callable[[], bool]) -> dict[str, Any] | None:  # fmt: skip
    """Metrics over each set of validation or test data; None if interrupted. See ``evaluate``."""
    metrics: dict[str, Any] = {}
    for loader in loaders:
        found = evaluate(program, loader.once(), loader.name, interrupted, loader.batch_first)
        if found is None:
            return None
        metrics |= found
    return metrics


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
