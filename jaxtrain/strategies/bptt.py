"""The learner of backpropagation through time."""

from __future__ import annotations

from functools import cached_property

import brainstate

from ..core.metrics import Metrics
from ..core.module import Phases
from ..core.objective import Objective, total_weight
from ..core.state import State
from .base import Learner, Network, ParameterReport, Update, choose_batching, trained
from .flow import Flow
from .hoisted import HoistedStep, gradient_in_loop
from .inputs import input_of
from .parameter_report import describe_window
from .specs.bptt import BPTT
from .stretches import stretches_of


def bind(strategy: BPTT, objective: Objective, example: Phases) -> Learner:
    batching = choose_batching(strategy.batching, objective.model, input_of(objective, example), example.sizes[2])
    return BPTTLearner(objective, Network(objective.model, batching), strategy.remat)


class BPTTLearner(Learner):
    """BPTT bound to a module. Its gradient is exact; other rules are compared with it.

    Args:
        objective: The module, with its model and its loss.
        network: The model over a batch.
        remat: Whether to compute the activations of each time step again on the way back.
    """

    def __init__(self, objective: Objective, network: Network, remat: bool = False):
        super().__init__(objective, network)
        self._remat = remat
        objective.takes_sequences = True

    @cached_property
    def _params(self) -> dict[str, State]:
        # Computed on first use: a model without trained parameters can still be evaluated.
        return trained(self.objective)

    def learn(self, phases: Phases, update: Update) -> Metrics:
        stretches, begin = stretches_of(self.objective, phases), lambda: self.network.reset(phases.sizes[2])
        if self._remat:
            forward = brainstate.transform.checkpoint(self.network)
            grads, metrics = gradient_in_loop(forward, self._params, self._reset, stretches, begin)
        else:
            grads, metrics = HoistedStep(self.network, self._params, self._reset).gradient(stretches, begin)
        by_sequence = self.objective.by_sequence
        return update(grads, metrics["loss"].weight if by_sequence else total_weight(phases), metrics)

    def report(self, phases: Phases) -> list[ParameterReport]:
        warm, time, _ = phases.sizes
        return describe_window(self._params, Flow.of(self, phases), warm + time, "the sequence")
