"""Decoupled neural interfaces, computed backward in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.state import State
from ..synthesiser import Synthesiser
from .learner import ReverseLearner


class EstimatedLearner(ReverseLearner):
    """D-RTRL whose parameters without a trace also receive estimated gradients of later losses.

    Attributes:
        synthesiser: It makes the estimates.
    """

    def __init__(self, objective: Any, network: Any, step: Any, rule: Any, **options: Any):
        super().__init__(objective, network, step, rule, **options)
        self.synthesiser = Synthesiser(network, step.groups)
        traced = frozenset().union(*(relation.paths for relation in step.relations))
        self._untraced = [name for name in self.known.trained if name not in traced]

    def states(self) -> dict[str, State]:
        return {
            **super().states(), **{f"synthesizer.{name}": state for name, state in self.synthesiser.states.items()}
        }  # fmt: skip

    def later(self, hidden: dict[str, Any], pull: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        grads = pull(self.synthesiser.estimate(hidden))
        return {name: grads[name] for name in self._untraced}
