"""Learners of UORO and of three-factor learning, which need more than ``OnlineLearner`` provides."""

from __future__ import annotations

from typing import Any

import brainstate
import jax

from ..core.metrics import Metrics
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import State, is_key
from .base import ParameterReport, Update
from .online import OnlineLearner
from .reward import describe_rewarded, weighted
from .update_schedule import UpdateSchedule


def projection_key() -> jax.Array:
    """The key of UORO's random projections at the start of a sequence or stream.

    It is derived instead of split off, so that the model draws the same random numbers as under any other rule.
    """
    return jax.random.fold_in(brainstate.random.DEFAULT.value, 0)


class UOROLearner(OnlineLearner):
    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        self._projections.value = self._fresh_projections()

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        if self.update_schedule.stateful:  # a stream is never restarted; at its beginning the step counter is zero
            fresh, current = self._fresh_projections(), self._projections
            current.value = jax.lax.select(self.own["running_index"].value == 0, fresh, current.value)
        return super()._learn(phases, update)

    @property
    def _projections(self) -> State:
        return self.own["projection_rng"]

    def _fresh_projections(self) -> Any:
        key = projection_key()
        return key if is_key(self._projections.value) else jax.random.key_data(key)

    def _belongs(self, trace: str, parameter: str) -> bool:
        return trace.startswith("etrace_s.") or trace.endswith(f".{parameter}")

    def _sequence_traces(self) -> list[State]:
        """The hidden sides of the traces; the parameter sides are shared by all sequences."""
        return [state for name, state in self.own.items() if name.startswith("etrace_s.")]


class ThreeFactorLearner(OnlineLearner):
    def __init__(self, objective: Objective, rule: Any, *, modulator: str, update_schedule: UpdateSchedule):
        super().__init__(objective, rule, update_schedule=update_schedule)
        self.modulator = modulator

    def _forward(self, w: Any, extras: dict[str, Any]):
        batch_size = extras[self.modulator].shape[0]
        signal = weighted(extras[self.modulator], w, 1)
        if signal.size == batch_size:  # one number per sequence, for all units
            signal = signal.reshape((batch_size,) + (1,) * len(self.inner.graph.hidden_groups[0].varshape))
        return lambda x: self.rule(x, modulator=signal)

    def _warm_forward(self, x):
        return self.rule(x, modulator=0.0)

    def report(self, phases: Phases) -> list[ParameterReport]:
        return describe_rewarded(self._params, self.traces())
