"""Binding an online rule to a module: choice of the batching, and compilation by braintrace."""

from __future__ import annotations

from typing import Any

import brainstate
import jax

from ..core.functional import draws_random
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import long_term_states, parameters, states_of
from ..utils.logging import one_line
from .base import Learner, choose_batching
from .independence import dependence
from .inputs import input_of
from .memory import require_one_filter
from .online import compile_rule, refused
from .specs.online_rule import OnlineRule, SteppedRule

VMAP_FROM = 2**19
"""Size of the traces, about batch x parameters, from which a mapped model is faster than a batched one, as measured."""


def bind(rule: OnlineRule, objective: Objective, example: Phases) -> Learner:
    x = input_of(objective, example)
    batch_size = example.sizes[2]
    required = rule.works_in()[0]
    wanted = "batched" if rule.window_of() > 1 else rule.batching if required == "either" else required
    batching = choose_batching(wanted, objective.model, x, batch_size)
    if required == "vmap":
        return _bind_mapped(rule, objective, example, x)
    if not (wanted == "auto" and batching == "batched" and _prefers_mapping(objective, x)):
        return _bind(rule, objective, example, x, batching)
    reason = dependence(objective.model, x, batch_size)
    if not reason:
        try:
            return _bind(rule, objective, example, x, "vmap")
        except (
            Exception
        ) as error:  # mapping is only an optimisation; states created in __init__, for example, prevent it
            reason = one_line(error)
    learner = _bind(rule, objective, example, x, "batched")
    learner.notes.append(f"batching: batched, since the model cannot be mapped over sequences ({reason})")
    return learner


def _bind_mapped(rule: OnlineRule, objective: Objective, example: Phases, x: Any) -> Learner:
    """Bind a rule that requires a mapped model; add a note if the model differs when it is mapped."""
    reason, batch_size = "", example.sizes[2]
    if choose_batching("auto", objective.model, x, batch_size) == "batched":
        reason = dependence(objective.model, x, batch_size)
    learner = _bind(rule, objective, example, x, "vmap")
    if reason:
        learner.notes.append(
            f"batching: {rule.name} takes one sequence at a time, for which the model differs: {reason}"
        )
    return learner


def _bind(rule: OnlineRule, objective: Objective, example: Phases, x: Any, batching: str) -> Learner:
    algorithm, options = _called(rule)
    if options.get("vjp_method") == "single-step":
        _check_perturbed(rule, objective)
    try:
        compiled: Any = compile_rule(objective, x, example.sizes[2], batching == "vmap", algorithm, **options)
    except Exception as error:
        where = f"strategy {rule.name!r} cannot run on {type(objective.model).__name__}"
        if refused(error):
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
        error.add_note(f"jaxtrain: {where}")
        raise
    _check_width(rule, objective, compiled)
    if kappa := getattr(getattr(compiled, "config", None), "kappa", None):
        require_one_filter(type(rule).__name__, kappa, objective, compiled.graph)
    return rule.learner(objective, compiled, example)


def _called(rule: OnlineRule) -> tuple[Any, dict[str, Any]]:
    """The result of ``rule.rule()``, checked. Raises TypeError if it is no pair, ValueError if it ignores ``vjp``."""
    result, where = rule.rule(), f"{type(rule).__name__}.rule()"
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise TypeError(f"{where} returned {result!r}; expected (algorithm, options of braintrace.compile)")
    if isinstance(rule, SteppedRule) and result[1].get("vjp_method") != rule.vjp:
        raise ValueError(
            f"{where} ignores the field vjp={rule.vjp!r}: add {{'vjp_method': self.vjp}} to the options that it "
            "returns, or extend OnlineRule, which has no such field"
        )
    return result


def _check_perturbed(rule: OnlineRule, objective: Objective) -> None:
    """Raise ValueError for a bool hidden state, to which braintrace's single-step rules cannot add a perturbation."""
    for name, state in states_of(objective.model).items():
        if isinstance(state, brainstate.HiddenState) and any(x.dtype == bool for x in jax.tree.leaves(state.value)):
            raise ValueError(
                f"strategy {rule.name!r} with vjp='single-step': the hidden state {name!r} of "
                f"{type(objective.model).__name__} is bool, to which braintrace cannot add a perturbation: make it a "
                "ShortTermState, or use vjp='multi-step'"
            )


def _check_width(rule: OnlineRule, objective: Objective, compiled: Any) -> None:
    """Raise ValueError for a model in less than 32 bits, unless the rule supports it; braintrace uses float32."""
    inner: Any = compiled.module if isinstance(compiled, brainstate.nn.Vmap) else compiled
    dtypes = {relation.y_var.aval.dtype for relation in inner.graph.hidden_param_op_relations}
    below = sorted(str(dtype) for dtype in dtypes if dtype.itemsize < 4)
    if below and not rule.narrow:
        raise ValueError(
            f"strategy {rule.name!r}: the recurrence of {type(objective.model).__name__} runs in {below[0]}, and "
            "braintrace runs this rule in float32 alone: give the model float32 inputs, or use strategy='bptt'"
        )


def _prefers_mapping(objective: Objective, x) -> bool:
    """Whether mapping is probably faster: for large traces. It is possible only without running statistics, which
    sequences would share, and without random numbers, which would differ."""
    batch_size = jax.tree.leaves(x)[0].shape[0]
    weights = sum(leaf.size for p in parameters(objective.model).values() for leaf in jax.tree.leaves(p.value))
    plain = not long_term_states(objective.model) and not draws_random(objective.model, x)
    return batch_size * weights >= VMAP_FROM and plain
