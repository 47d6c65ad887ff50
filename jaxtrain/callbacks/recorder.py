"""From per-step metrics to the rows of the record: sums that merge, held until a row is complete."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.metrics import SEEDS, is_rate, plain
from ..core.metrics import tag as prefixed

PLAIN = ("grad_norm", "param_norm", "skipped_fraction")
"""Metrics that keep their own name; all others are logged under ``train/``."""


RESERVED = ("step", "nonfinite")


def tag(name: str) -> str:
    return name if name.removeprefix(SEEDS) in PLAIN else prefixed("train", name)


class Recorder:
    """Turns metrics of single steps into rows ``{"step", "train/loss", ...}``: means since the row before.

    A row is made at every multiple of ``log_every``, at every validation and at the end. Sums are float64 and are
    added in step order, so a row does not depend on how steps were grouped into chunks.
    """

    def __init__(self, log_every: int):
        self.log_every = log_every
        self.sums: dict[str, list[Any]] = {}
        self.logged: dict[str, Any] = {}
        self.entries: list[dict[str, Any]] = []

    def add(self, first_step: int, metrics: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
        """Metrics of the steps ``first_step + 1 ...``: numerators and weights, ``(n,)`` each, of lanes ``(n, S)``."""
        n = len(next(iter(metrics.values())))
        for i in range(n):
            for name, values in metrics.items():
                if not is_rate(name):
                    total = self.sums.setdefault(name, [0.0, 0.0])
                    total[0] = total[0] + values[i].astype(np.float64)
                    total[1] = total[1] + weights[name][i].astype(np.float64)
            if (first_step + i + 1) % self.log_every == 0:
                self._row(first_step + i + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values that join the row of this step, or where there is none the next one."""
        for name, value in values.items():
            if name in RESERVED or np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
                raise ValueError(f"run.log({name!r}: {value!r}): expected one number under a tag other than {RESERVED}")
        row = self.entries[-1] if self.entries and self.entries[-1]["step"] == step else self.logged
        row.update({name: float(value) for name, value in values.items()})

    def measured(self, step: int, values: dict[str, float]) -> None:
        """A row at ``step`` where none is due: it holds these values alone, and leaves the means to the next one."""
        self.entries.append({"step": step, **values})

    def force(self, step: int, values: dict[str, Any]) -> None:
        """A row at ``step`` with these values, whether or not one is due there."""
        if not self.entries or self.entries[-1]["step"] != step:
            self._row(step)
        elif self.sums:  # one that holds nothing but what was measured there
            measured = self.entries.pop()
            self._row(step)
            self.entries[-1].update(measured)
        self.entries[-1].update({name: plain(value) for name, value in values.items()})

    def _row(self, step: int) -> None:
        with np.errstate(invalid="ignore"):  # a lane that weighs nothing is NaN
            means = {tag(name): plain(num / weight) for name, (num, weight) in self.sums.items() if np.any(weight)}
        self.entries.append({"step": step, **means, **self.logged})
        self.sums, self.logged = {}, {}

    def take(self) -> list[dict[str, Any]]:
        """The rows that are complete now."""
        rows, self.entries = self.entries, []
        return rows

    def state(self) -> dict[str, Any]:
        sums = {name: [plain(num), plain(weight)] for name, (num, weight) in self.sums.items()}
        return {"sums": sums, "logged": self.logged, "entries": self.entries}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums = {name: [np.asarray(part) for part in parts] for name, parts in state["sums"].items()}
        self.logged, self.entries = state["logged"], state["entries"]
