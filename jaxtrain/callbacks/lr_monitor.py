"""LearningRateMonitor: the learning rate in every log entry."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from ..core.metrics import is_rate
from .base import Callback

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("jaxtrain")


class LearningRateMonitor(Callback):
    """Adds the learning rate of a step to its log entry: ``lr``, or ``lr/<label>`` with several optimizers.

    An optimizer of braintools exposes its rate. For one of optax, ``configure_optimizer`` returns the pair
    ``(optimizer, rate)``, or wraps the optimizer in ``optax.inject_hyperparams``. The entry of a skipped step has no
    rate. A run that writes logs has this callback by default.

    >>> callbacks = [LearningRateMonitor(), TensorBoard()]

    Args:
        quiet: Whether to say nothing if the optimizer exposes no rate. False logs it once a run.
    """

    rank = "produce"

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.reset()

    def reset(self) -> None:
        self._chunks: list[tuple[int, dict[str, Any]]] = []  # (last step, rates) of the chunks since the last entry
        self._silent = self.quiet

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        rates = {name: values for name, values in metrics.items() if is_rate(name)}
        if rates:
            self._chunks.append((run.step, rates))
        elif not self._silent:
            self._silent = True
            log.info("LearningRateMonitor: the optimizer exposes no learning rate; log entries contain no lr")

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        step = row["step"]
        self._chunks = [chunk for chunk in self._chunks if chunk[0] >= step]
        if self._chunks:
            last, rates = self._chunks[0]
            for name, values in rates.items():
                index = len(values) - 1 - (last - step)
                if index >= 0 and (rate := _unless_nan(values[index])) is not None:
                    row[name] = rate

    def state(self) -> dict[str, Any]:
        """Return the rates of the last chunk.

        A signal may end a run before the entries of a boundary are written.
        """
        chunks = [
            [last, {name: [_unless_nan(rate) for rate in values] for name, values in rates.items()}]
            for last, rates in self._chunks[-1:]
        ]
        return {"chunks": chunks} if chunks else {}

    def load_state(self, state: dict[str, Any]) -> None:
        self._chunks = [(last, rates) for last, rates in state.get("chunks", ())]


def _unless_nan(rate: Any) -> float | None:
    """A rate; None for the NaN of a skipped step, because strict JSON has no NaN."""
    return None if rate is None or math.isnan(rate) else float(rate)
