"""Three-factor learning, computed backward in time."""

from __future__ import annotations

from typing import Any

from ...core.module import Phases
from ..base import ParameterReport
from ..reward import check_modulator, describe_rewarded
from .blocks import leaf
from .learner import ReverseLearner


class RewardedLearner(ReverseLearner):
    """A rule whose learning signal is a reward, see ``ReverseLearner``.

    Only traced weights are trained, so an initial state is not.
    """

    trains_starts = False

    def __init__(self, objective: Any, network: Any, step: Any, rule: Any, example: Phases, **options: Any):
        super().__init__(objective, network, step, rule, **options)
        units = {leaf(state.value).shape[1:] for state in self.known.traced.values()}
        check_modulator(rule.modulator, units, example)

    def report(self, phases: Phases) -> list[ParameterReport]:
        return describe_rewarded(self.known.trained, self.traces(phases.reset is not None))
