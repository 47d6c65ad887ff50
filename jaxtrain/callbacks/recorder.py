"""Recorder: combines the metrics of single steps into log entries."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.metrics import SEEDS, is_rate, plain
from ..core.metrics import tag as prefixed

PLAIN = ("grad_norm", "param_norm", "skipped_fraction")
"""Metrics logged under their own name; all others are logged under ``train/``."""
RESERVED = ("step", "nonfinite")


def tag(name: str) -> str:
    """The tag under which a training metric is logged."""
    return name if name.removeprefix(SEEDS) in PLAIN else prefixed("train", name)


class Recorder:
    """Averages metrics since the previous log entry into entries ``{"step": 50, "train/loss": 0.7, ...}``.

    There is an entry at every multiple of ``log_every``, at every validation and at the end. Sums are float64 and are
    accumulated in step order, so entries do not depend on how steps are grouped into chunks.
    """

    def __init__(self, log_every: int):
        self.log_every = log_every
        self.sums: dict[str, list[Any]] = {}
        self.logged: dict[str, Any] = {}
        self.entries: list[dict[str, Any]] = []

    def add(self, first_step: int, metrics: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
        """Add the metrics of the steps after ``first_step``: numerators and weights ``(n,)``, of seeds ``(n, S)``."""
        n = len(next(iter(metrics.values())))
        for i in range(n):
            for name, values in metrics.items():
                if not is_rate(name):
                    total = self.sums.setdefault(name, [0.0, 0.0])
                    total[0] = total[0] + values[i].astype(np.float64)
                    total[1] = total[1] + weights[name][i].astype(np.float64)
            if (first_step + i + 1) % self.log_every == 0:
                self._complete(first_step + i + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add values to the entry of this step, or to the next one if there is none."""
        for name, value in values.items():
            if name in RESERVED or np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
                raise ValueError(f"run.log({name!r}: {value!r}): expected one number under a tag other than {RESERVED}")
        entry = self.entries[-1] if self.entries and self.entries[-1]["step"] == step else self.logged
        entry.update({name: float(value) for name, value in values.items()})

    def measured(self, step: int, values: dict[str, float]) -> None:
        """Make an entry with only these values, at a step where none is due; means continue to the next entry."""
        self.entries.append({"step": step, **values})

    def force(self, step: int, values: dict[str, Any]) -> None:
        """Make an entry at ``step`` with these values, even if none is due there."""
        if not self.entries or self.entries[-1]["step"] != step:
            self._complete(step)
        elif self.sums:  # the entry has only the values of a probe
            measured = self.entries.pop()
            self._complete(step)
            self.entries[-1].update(measured)
        self.entries[-1].update({name: plain(value) for name, value in values.items()})

    def _complete(self, step: int) -> None:
        with np.errstate(invalid="ignore"):  # a seed of weight 0 gives NaN
            means = {tag(name): plain(num / weight) for name, (num, weight) in self.sums.items() if np.any(weight)}
        self.entries.append({"step": step, **means, **self.logged})
        self.sums, self.logged = {}, {}

    def take(self) -> list[dict[str, Any]]:
        """Return the complete entries, and remove them here."""
        entries, self.entries = self.entries, []
        return entries

    def state(self) -> dict[str, Any]:
        sums = {name: [plain(num), plain(weight)] for name, (num, weight) in self.sums.items()}
        return {"sums": sums, "logged": self.logged, "entries": self.entries}

    def load_state(self, state: dict[str, Any]) -> None:
        self.sums = {name: [np.asarray(part) for part in parts] for name, parts in state["sums"].items()}
        self.logged, self.entries = state["logged"], state["entries"]
