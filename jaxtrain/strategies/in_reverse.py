"""Binding a rule with a linear trace to a module: backward in time if the model allows it, else with a trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.functional import draws_random
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import SHORT
from ..utils.logging import one_line
from .base import Learner, Network, choose_batching, trained
from .bind_rule import bind as by_trace
from .equations import ELEMENTWISE, Irreversible
from .inputs import input_of
from .memory import require_one_filter
from .parameter_report import WITHOUT_REVERSE
from .reverse.detached_step import DetachedStep
from .specs.online_rule import EngineRule
from .stretches import stretches_of, use_of

SEGMENT, SEQUENCE_UP_TO = 120, 512
"""``segment="auto"``: a sequence of up to ``SEQUENCE_UP_TO`` time steps is one segment; a longer one has segments of
``SEGMENT``."""


def bind(strategy: EngineRule, objective: Objective, example: Phases) -> Learner:
    """Create the learner.

    Raises:
        ValueError: The model or the options need a trace, which the strategy excludes.
    """
    if strategy.engine == "trace":
        return by_trace(strategy, objective, example)
    try:
        return _reverse(strategy, objective, example)
    except Irreversible as reason:
        name, model = type(strategy).__name__, type(objective.model).__name__
        if strategy.credits_memory():
            raise ValueError(
                f"{name}(readout_memory=True) does not fit {model}, which needs a trace: {reason}; use "
                "readout_memory=False"
            ) from None
        if strategy.engine == "reverse":
            raise ValueError(f"{name}(engine='reverse') does not fit {model}: {reason}; use engine='auto'") from None
        learner: Any = by_trace(replace(strategy, engine="trace", segment="auto"), objective, example)
        learner.advice, learner.reach = WITHOUT_REVERSE, replace(learner.reach, memory="")
        learner.notes.append(f"engine: a trace, since {reason}")
        return learner


def _reverse(strategy: EngineRule, objective: Objective, example: Phases) -> Learner:
    x = input_of(objective, example)
    warm, scored, batch_size = example.sizes
    network = Network(objective.model, choose_batching(strategy.batching, objective.model, x, batch_size))
    names, random, memory = list(trained(objective)), draws_random(network, x), strategy.credits_memory()

    use = use_of(network, stretches_of(objective, example))
    if not use.once:
        raise Irreversible("a step of the module does not call forward once, always with inputs of the same kind")
    if use.writes or any(isinstance(state, SHORT) for state in use.inputs_from):
        raise Irreversible("a step of the module computes the model's input from hidden states, or assigns them")
    if not use.inputs_known and strategy.backward_rule().own_recurrence:
        raise Irreversible("a step of the module computes the model's input from random numbers or other States")

    def detached_step(per_sequence: bool) -> DetachedStep:
        mapped = per_sequence or network.vmapped
        if random and mapped:
            raise Irreversible("the model draws random numbers, which mapped sequences would share")
        try:
            return DetachedStep(objective, network, x, names, per_sequence=per_sequence, memory=memory)
        except Exception as error:
            if isinstance(error, Irreversible) or not mapped:
                raise
            raise Irreversible(f"it cannot be run one sequence at a time ({one_line(error)})") from error

    step, segment = detached_step(per_sequence=False), None
    if kappa := strategy.backward_rule().kappa:
        require_one_filter(type(strategy).__name__, kappa, objective, step.report.graph)
    if _needs_trace(strategy, warm + scored):
        segment = SEGMENT if strategy.segment in ("auto", "sequence") else strategy.segment
        whole = not network.vmapped and not strategy.backward_rule().rank_one
        if whole and any(r.trained and r.name == ELEMENTWISE for r in step.relations):
            step = detached_step(per_sequence=True)  # a weight without inputs has no batch axis
    learner = strategy.reverse_learner(
        objective,
        network,
        step,
        example,
        window=min(strategy.window_of(), scored),
        single=strategy.is_single_step(),
        update_schedule=strategy.update_schedule(),
        segment=segment,
        memory=memory,
        reach=strategy.reach(scored),
    )
    if not use.inputs_known:
        learner.products.split.clear()  # products of inputs cannot be computed before the loop over time
    return learner


def _needs_trace(strategy: EngineRule, time: int) -> bool:
    """Whether a trace is needed between segments, for a sequence of ``time`` time steps."""
    if strategy.stateful or strategy.update_every != "sequence":
        return True
    longest = SEQUENCE_UP_TO if strategy.segment == "auto" else strategy.segment
    return longest != "sequence" and time > longest
