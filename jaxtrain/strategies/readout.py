"""The control that every comparison needs: only what reads the hidden state is trained, the recurrence stays random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..metrics import Metrics
from ..module import Objective, Phases
from ..state import State
from .base import Learner, Row, zeros_like_parameters
from .online import OnlineLearner
from .rule import OnlineRule


@dataclass(frozen=True)
class ReadoutOnly(OnlineRule):
    """Trains the parameters that reach the output without passing through a hidden state; the others keep their
    initial values (a reservoir: Jaeger 2001). Their gradient is exact at every time step, and no trace is kept.

    Example::

        fit = jaxtrain.Fit(strategy="readout_only", max_steps=1000)
    """

    name: ClassVar[str] = "readout_only"

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "d_rtrl", {"vjp_method": "single-step"}  # compiled to see which parameters are read out; never driven

    def learner(self, objective: Objective, compiled: Any, x: Any, example: Phases) -> Learner:
        return _Learner(objective, compiled, x, cadence=self.cadence())


class _Learner(OnlineLearner):
    def __init__(self, objective: Objective, rule: Any, x: Any, **options: Any):
        super().__init__(objective, rule, x, **options)
        self._read: dict[str, State] = {n: s for n, s in self._params.items() if n not in self._acting}
        if not self._read:
            raise ValueError(
                f"readout_only: every parameter of {type(objective.model).__name__} acts through the hidden state; "
                "give the model a readout"
            )
        self.own = {}

    def _warm_forward(self, x):
        return self.network(x)

    def _forward(self, extras: dict[str, Any]):
        return self.network

    def _gradients(self, sequences) -> tuple[dict[str, Any], Metrics]:
        grads, metrics = self._step_by_step(sequences, self._read)
        return {**zeros_like_parameters(self._params), **grads}, metrics

    def report(self) -> list[Row]:
        why = "not read out: the control keeps its initial value"
        return [Row(name) if name in self._read else Row(name, "no", why) for name in self._params]
