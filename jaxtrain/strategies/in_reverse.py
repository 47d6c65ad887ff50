"""Binding a rule with ``engine="reverse"`` to a module."""

from __future__ import annotations

from ..core.module import Phases
from ..core.objective import Objective
from .base import Learner, Network, choose_batching, input_of, trained
from .drtrl import SEQUENCE_UP_TO
from .equations import Irreversible
from .reverse.detached_step import DetachedStep
from .reverse.passes import PassesLearner
from .specs.rule import ReversibleRule


def bind(strategy: ReversibleRule, objective: Objective, example: Phases) -> Learner:
    """Create the learner.

    Raises:
        ValueError: The model or the options need a trace.
    """
    x = input_of(objective, example)
    warm, scored, batch_size = example.sizes
    network = Network(objective.model, choose_batching(strategy.batching, objective.model, x, batch_size))
    try:
        if strategy.stateful or strategy.update_every != "sequence":
            raise Irreversible("it needs a trace between updates or batches")
        if warm + scored > SEQUENCE_UP_TO:
            raise Irreversible(f"a sequence of {warm + scored} time steps is longer than {SEQUENCE_UP_TO}")
        if network.vmapped:
            raise Irreversible("the model is mapped over sequences")
        step = DetachedStep(objective, network, x, list(trained(objective)))
        return PassesLearner(
            objective,
            network,
            step,
            strategy.backward_rule(),
            window=min(strategy.window_of(), scored),
            single=strategy.vjp == "single-step",
            reach=strategy.reach(scored),
        )
    except Irreversible as reason:
        name, model = type(strategy).__name__, type(objective.model).__name__
        raise ValueError(f"{name}(engine='reverse') does not fit {model}: {reason}; use engine='trace'") from None
