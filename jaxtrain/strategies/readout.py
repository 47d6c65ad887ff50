"""The learner of the control: only parameters that read the hidden state are trained, the recurrence stays random."""

from __future__ import annotations

from typing import Any

from ..core.functional import parameters_behind
from ..core.metrics import Metrics
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import State
from .base import Learner, ParameterReport, Update, score_by_step, trained, warm_up, zeros_like_parameters
from .batching import choose_batching
from .flow import Flow
from .inputs import input_of
from .network import Network
from .parameter_report import UNUSED
from .specs.bptt import ReadoutOnly
from .update_schedule import UpdateSchedule


def bind(strategy: ReadoutOnly, objective: Objective, example: Phases) -> Learner:
    x = input_of(objective, example)
    network = Network(objective.model, choose_batching(strategy.batching, objective.model, x, example.sizes[2]))
    return _Learner(objective, network, x, strategy.update_schedule())


class _Learner(Learner):
    def __init__(self, objective: Objective, network: Network, x: Any, schedule: UpdateSchedule):
        super().__init__(objective, network)
        self._params = trained(objective)
        self._update_schedule, self.carried = schedule, schedule.stateful
        acting = parameters_behind(network, objective.model, x)
        self._read: dict[str, State] = {name: s for name, s in self._params.items() if name not in acting}
        if not self._read:
            raise ValueError(
                f"readout_only: {', '.join(self._params)} act through the hidden state, and nothing else of "
                f"{type(objective.model).__name__} is trained; give the model a readout"
            )
        if not network.hidden:
            model = type(objective.model).__name__
            self.notes.append(f"readout_only: {model} has no hidden state, so everything is read out, as in bptt")

    def learn(self, phases: Phases, update: Update) -> Metrics:
        if not self.carried:
            self.restart(phases.sizes[2])
        warm_up(self.objective, self.network, phases, self._reset)
        return self._update_schedule.drive(phases, self._gradients, update)

    def _gradients(self, sequences: Any) -> tuple[dict[str, Any], Metrics]:
        forward = lambda w, extras: self.network  # noqa: E731
        grads, metrics = score_by_step(self.objective, forward, sequences, self._read, self._reset)
        return {**zeros_like_parameters(self._params), **grads}, metrics

    def report(self, phases: Phases) -> list[ParameterReport]:
        unread, used = "not read out: the control keeps its initial value", Flow.of(self, phases).loss
        why = {name: unread if name not in self._read else "" if name in used else UNUSED for name in self._params}
        return [ParameterReport(name, "no" if reason else "yes", reason) for name, reason in why.items()]
