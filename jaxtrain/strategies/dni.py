"""The learner of decoupled neural interfaces: D-RTRL with a learned estimate of the gradient of later losses."""

from __future__ import annotations

from typing import Any

import brainstate
import braintrace

from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import name_of
from .base import Learner
from .online import OnlineLearner
from .specs.braintrace_rules import DNI
from .synthesiser import Synthesiser


def fitted(strategy: DNI, objective: Objective, compiled: Any, example: Phases) -> Learner:
    """Create a learner with a trace and fit its synthesiser on the first batch."""
    inner: Any = compiled.module if isinstance(compiled, brainstate.nn.Vmap) else compiled
    inner.attach_synthesizer(braintrace.SyntheticGradient(inner.group_signal_shapes()))
    schedule, reach = strategy.update_schedule(), strategy.reach(example.sizes[1])
    learner = _Learner(objective, compiled, update_schedule=schedule, reach=reach)
    groups = {group.index: [name_of(path) for path in group.hidden_paths] for group in inner.graph.hidden_groups}
    synthesiser = Synthesiser(learner.network, groups, inner.synthesizer)
    synthesiser.fit(objective, example, strategy.fit_epochs, strategy.fit_lr)
    return learner


class _Learner(OnlineLearner):
    def __init__(self, objective: Objective, rule: Any, **options: Any):
        super().__init__(objective, rule, **options)
        # The synthesiser outlives a sequence and is saved in checkpoints; the other states of the rule are reset.
        self._synthesiser = {k: s for k, s in self.own.items() if isinstance(s, brainstate.ParamState)}
        self.own = {k: s for k, s in self.own.items() if k not in self._synthesiser}

    def states(self):
        return {**super().states(), **self._synthesiser}
