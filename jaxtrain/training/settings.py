"""FitSettings: the checked arguments of ``Fit``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..callbacks.arguments import optional_period
from ..callbacks.checkpoint import Checkpoint, kept_by
from ..callbacks.dispatch import Callbacks
from ..engine.seeds import is_seed
from ..engine.steps import NonFinite
from ..period import Period
from ..strategies import Strategy
from ..strategies.registry import here, lookup, make_strategy
from .schedule import Schedule, total_steps

PLAIN = ("max_steps", "max_epochs", "clip", "accumulate", "seed", "devices", "chunk", "log_every", "nonfinite")


@dataclass(frozen=True)
class FitSettings:
    """The arguments of ``Fit`` in their final types, with the default callbacks.

    Raises:
        ValueError: Two of the settings contradict each other, or one is out of its range.
    """

    strategy: Strategy
    max_steps: int | None
    max_epochs: int | None
    max_time: Period | None
    clip: float | None
    accumulate: int
    seed: int
    seeds: tuple[int, ...] | None
    devices: int | Literal["auto"]
    chunk: int | Literal["auto"]
    validate_every: Period | None
    log_every: int
    nonfinite: NonFinite
    callbacks: Callbacks
    run_dir: Path | None
    why_devices: str = ""
    """Why "auto" chose this number of devices; empty if the user chose it."""

    def __post_init__(self) -> None:
        if self.nonfinite not in ("raise", "skip", "warn"):
            raise ValueError(f"Fit(nonfinite={self.nonfinite!r}): expected 'raise', 'skip' or 'warn'")
        if self.max_steps is not None and self.max_steps < self.accumulate:
            raise ValueError(f"Fit(accumulate={self.accumulate}, max_steps={self.max_steps}): there would be no update")
        if len(self._checkpoints) > 1:
            raise ValueError("Fit takes one Checkpoint callback, to decide what is kept; config.callbacks() has one")
        if self._checkpoints and self.run_dir is None:
            raise ValueError("Checkpoint needs a run directory: Fit(run_dir=...)")

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The callback that decides which checkpoints are kept, or None."""
        return next(iter(self._checkpoints), None)

    @property
    def _checkpoints(self) -> list[Checkpoint]:
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    def resolved(self, auto: dict[str, Any]) -> FitSettings:
        """The settings with the values that each "auto" had when the run was started."""
        chunk = auto.get("chunk", "auto") if self.chunk == "auto" else self.chunk
        return replace(self, strategy=self.strategy.resolve(auto), chunk=chunk)

    def total(self, epoch_length: int | None) -> int | None:
        """The number of steps of the whole run."""
        return total_steps(self.max_steps, self.max_epochs, epoch_length)

    def schedule(self, chunk: int, epoch_length: int | None) -> Schedule:
        """Create a schedule. Its clock starts now."""
        boundaries = [period for callback in self.callbacks for period in callback.boundaries()]
        boundaries += [every for every in (Period.of(callback.probe_every) for callback in self.callbacks) if every]
        return Schedule(
            chunk=chunk,
            total=self.total(epoch_length),
            max_time=self.max_time,
            validate_every=self.validate_every,
            epoch_length=epoch_length,
            boundaries=boundaries,
            epochs_are_boundaries=self.callbacks.listens("on_epoch_start") or self.callbacks.listens("on_epoch_end"),
        )

    def as_json(self) -> dict[str, Any]:
        """The settings as config.json holds them."""
        periods = {"max_time": self.max_time, "validate_every": self.validate_every}
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "seeds": None if self.seeds is None else list(self.seeds),
            **{name: None if period is None else str(period) for name, period in periods.items()},
            "checkpoint": kept_by(self.checkpoint),
            "callbacks": list(self.callbacks.keys()),
            "periods": self.callbacks.periods(),
        }


def as_strategy(strategy: Any) -> Strategy:
    """Convert the name of a strategy, or a strategy object, to a strategy object.

    Raises:
        TypeError: It is neither.
    """
    strategy = make_strategy(strategy) if isinstance(strategy, str) else strategy
    if not isinstance(strategy, Strategy):
        kind = strategy if isinstance(strategy, type) else type(strategy)
        hint = f"; did you mean {kind.__name__}()?" if issubclass(kind, Strategy) else ""
        if not hint and (name := here(kind.__name__)):
            hint = f"; use {name!r} or jaxtrain.strategies.{lookup(name).__name__}()"
        raise TypeError(f"Fit(strategy={strategy!r}): expected a name or a jaxtrain.strategies.Strategy object{hint}")
    return strategy


def as_norm(clip: Any) -> float | None:
    """Convert the argument ``clip``.

    Raises:
        ValueError: It is not a positive number.
    """
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, Real) or not 0 < float(clip) < np.inf):
        raise ValueError(f"Fit(clip={clip!r}): expected a positive norm, or None")
    return None if clip is None else float(clip)


def as_time(max_time: Any) -> Period | None:
    """Convert the argument ``max_time``.

    Raises:
        ValueError: It is a number of steps or epochs.
    """
    period = optional_period(max_time, "Fit", "max_time")
    if period is not None and period.unit != "time":
        raise ValueError(f"Fit(max_time={max_time!r}): expected a time, as '30min' or '2h'")
    return period


def as_seed(seed: Any) -> int:
    """Check the argument ``seed``.

    Raises:
        ValueError: It is out of range, or not a whole number.
    """
    if not is_seed(seed):
        raise ValueError(f"Fit(seed={seed!r}): expected a whole number from 0 to 2**32 - 1")
    return seed
