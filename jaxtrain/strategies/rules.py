"""Learners of UORO and of three-factor learning, which need more than ``OnlineLearner`` provides."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import Metrics
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import State, is_key
from .base import ParameterReport, Update
from .online import OnlineLearner
from .parameter_report import PARTLY, TRAINS, Verdict
from .update_schedule import UpdateSchedule


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
        # Derived instead of split off, so that the model draws the same random numbers as under any other rule.
        key = jax.random.fold_in(brainstate.random.DEFAULT.value, 0)
        return key if is_key(self._projections.value) else jax.random.key_data(key)

    def _belongs(self, trace: str, parameter: str) -> bool:
        return trace.startswith("etrace_s.") or trace.endswith(f".{parameter}")

    def _sequence_traces(self) -> list[State]:
        """The hidden sides of the traces; the parameter sides are shared by all sequences."""
        return [state for name, state in self.own.items() if name.startswith("etrace_s.")]


def check_modulator(name: str, compiled: Any, example: Phases) -> None:
    """Raise ValueError if ``Phases.extras`` does not contain the reward, or if its shape is wrong."""
    extras = example.extras or {}
    if name not in extras:
        raise ValueError(
            f"ThreeFactor(modulator={name!r}): Phases.extras holds {list(extras)}; give it "
            f"the reward as a sequence: in Module.phases, Phases(..., extras={{{name!r}: reward}}) with "
            f"reward (T_l, B), (T_l, B, 1) or (T_l, B, units); extras reach learning_step by keyword, too, so it "
            f"takes {name}=. The recipes have none; an example is in docs/strategies.md"
        )
    given, groups = np.shape(extras[name]), compiled.graph.hidden_groups
    units = {tuple(group.varshape[1:]) for group in groups}
    if given[2:] not in ((), (1,)) and units != {given[2:]}:
        wanted = ", ".join(str((*example.sizes[1:], *more)) for more in ((), (1,), *units))
        raise ValueError(
            f"ThreeFactor(modulator={name!r}): Phases.extras[{name!r}] has shape {given}; "
            f"expected one of {wanted}: time steps, sequences, units"
        )


class ThreeFactorLearner(OnlineLearner):
    def __init__(self, objective: Objective, rule: Any, *, modulator: str, update_schedule: UpdateSchedule):
        super().__init__(objective, rule, update_schedule=update_schedule)
        self.modulator = modulator

    def _forward(self, w: Any, extras: dict[str, Any]):
        signal = extras[self.modulator]
        batch_size = signal.shape[0]
        w = jnp.broadcast_to(w, (batch_size,)).reshape(batch_size, *(1,) * (signal.ndim - 1))
        signal = jnp.where(w != 0, w * signal, 0)  # a reward of weight 0 may have any value, including NaN
        if signal.size == batch_size:  # one number per sequence, for all units
            signal = signal.reshape((batch_size,) + (1,) * len(self.inner.graph.hidden_groups[0].varshape))
        return lambda x: self.rule(x, modulator=signal)

    def _warm_forward(self, x):
        return self.rule(x, modulator=0.0)

    def report(self, phases: Phases) -> list[ParameterReport]:
        traces = self.traces()
        why = "no trace of it is kept, and the loss's own gradient is not used: its gradient is exactly zero"
        partly = f"{PARTLY}: the other has no credit"  # this rule has no option that gives it any

        def one(name: str) -> ParameterReport:
            if name not in traces.states:
                return ParameterReport(name, "no", why)
            verdict: Verdict = ("in part", partly) if name in traces.partial else TRAINS
            return ParameterReport(name, *verdict, traces.sizes.get(name, 0))

        return [one(name) for name in self._params]
