"""LearningRateMonitor: the learning rate in every row."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .base import Callback

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("jaxtrain")


class LearningRateMonitor(Callback):
    """Puts the rate that a step used into the row of that step: ``lr``, or ``lr/<label>`` with several optimizers.

    The row of a step that was skipped has none. Where the optimizer exposes no rate it says so once and adds nothing.

    >>> callbacks = [LearningRateMonitor(), TensorBoard()]
    """

    rank = "produce"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._chunks: list[tuple[int, dict[str, Any]]] = []  # (last step, rates), since the last row
        self._told = False

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        rates = {name: values for name, values in metrics.items() if name == "lr" or name.startswith("lr/")}
        if rates:
            self._chunks.append((run.step, rates))
        elif not self._told:
            self._told = True
            log.info("LearningRateMonitor: the optimizer exposes no learning rate; rows carry no lr")

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        step = row["step"]
        self._chunks = [chunk for chunk in self._chunks if chunk[0] >= step]
        if self._chunks:
            last, rates = self._chunks[0]
            for name, values in rates.items():
                index = len(values) - 1 - (last - step)
                if index >= 0 and not math.isnan(values[index]):
                    row[name] = float(values[index])

    def state(self) -> dict[str, Any]:
        """The rates of the last chunk: a signal may end a run before the rows of an edge are made."""
        return {"chunks": [[last, _mapped(_pack, rates)] for last, rates in self._chunks[-1:]]}

    def load_state(self, state: dict[str, Any]) -> None:
        self._chunks = [(last, _mapped(_unpack, rates)) for last, rates in state["chunks"]]


def _mapped(change: Callable[[Any], Any], rates: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [change(value) for value in values] for name, values in rates.items()}


def _pack(rate: Any) -> float | None:
    """As strict JSON, which has no NaN."""
    return None if math.isnan(rate) else float(rate)


def _unpack(rate: float | None) -> float:
    return math.nan if rate is None else rate
