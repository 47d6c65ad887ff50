"""LearningRateMonitor: the learning rate in every row."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..callback import Callback

if TYPE_CHECKING:
    from ..run import Run

log = logging.getLogger("jaxtrain")


class LearningRateMonitor(Callback):
    """Puts the rate that a step used into the row of that step: ``lr``, or ``lr/<label>`` with several optimizers.

    Where the optimizer exposes no rate it says so once and adds nothing.

    >>> callbacks = [LearningRateMonitor(), TensorBoard()]
    """

    rank = "produce"

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._chunks: list[tuple[int, dict[str, Any]]] = []  # (last step, rates), since the last row
        self._told = False

    def on_fit_start(self, run: Run) -> None:
        if run.restored_step is None:  # the same object may serve a second run
            self._forget()

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        rates = {name: values for name, values in metrics.items() if name == "lr" or name.startswith("lr/")}
        if rates:
            self._chunks.append((run.step, rates))
        elif not self._told:
            self._told = True
            log.info("LearningRateMonitor: the optimizer exposes no learning rate; rows carry no lr")

    def on_row(self, run: Run, row: dict[str, Any]) -> None:
        step = row["step"]
        self._chunks = [chunk for chunk in self._chunks if chunk[0] >= step]
        if self._chunks:
            last, rates = self._chunks[0]
            for name, values in rates.items():
                index = len(values) - 1 - (last - step)
                if index >= 0:
                    row[name] = float(values[index])

    def state(self) -> dict[str, Any]:
        """The rates of the last chunk: a signal may end a run before the rows of an edge are made."""
        rates = [{name: [float(x) for x in values] for name, values in c[1].items()} for c in self._chunks[-1:]]
        return {"chunks": [[self._chunks[-1][0], rates[0]]] if rates else []}

    def load_state(self, state: dict[str, Any]) -> None:
        self._chunks = [(last, rates) for last, rates in state["chunks"]]
