"""Readout memory: hidden states between the traced units and the loss that reverse mode can differentiate directly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ..core.objective import Objective
from ..core.state import name_of
from .base import trained
from .equations import origins

Variables = tuple[list[Any], list[Any]]
"""The variables of a state's leaves, before and after the time step."""


def find_memory(
    jaxpr: Any, states: Mapping[str, Variables], groups: Mapping[int, list[str]], traced: set[int]
) -> frozenset[int]:
    """Find the groups of hidden states that are readout memory.

    A group is readout memory if no trained weight reaches it. It also is if it depends on another traced group but not
    the reverse, and no weight acts within its own recurrence (a leaky readout). A second recurrent layer therefore does
    not count.

    Args:
        jaxpr: One time step.
        states: The variables of each short-term state.
        groups: The names of the hidden states of each group.
        traced: The groups that a trained weight reaches.

    Returns:
        The indices of these groups.
    """
    node = {name: name for name in states} | {name: group for group, names in groups.items() for name in names}
    found = origins(jaxpr, {id(var): node[name] for name, (before, _) in states.items() for var in before})
    weighted: dict[tuple[Any, Any], bool] = {}  # (from, to): whether a weight acts in between
    for name, (_, after) in states.items():
        for source, by_weight in (pair for var in after for pair in found(var).items()):
            key = source, node[name]
            weighted[key] = weighted.get(key, False) or by_weight
    reach = {place: {place} for place in node.values()}
    for _ in reach:
        for source, to in weighted:
            reach[source] |= reach[to]

    def recurrent(group: int) -> bool:
        return any(
            by_weight and group in reach[to] and source in reach[group] for (source, to), by_weight in weighted.items()
        )

    def behind(group: int) -> bool:
        return any(group in reach[other] and other not in reach[group] for other in traced)

    return frozenset(group for group in groups if group not in traced or (behind(group) and not recurrent(group)))


def require_one_filter(name: str, kappa: float, objective: Objective, graph: Any) -> None:
    """Raise ValueError if ``kappa`` filters the traces of a leaky readout.

    That is readout memory (``find_memory``) with trained weights that the model returns, without a weight in between:
    an upper layer of spiking neurons in front of a readout is none.

    Args:
        name: Class name of the strategy.
        kappa: Decay of the filter.
        objective: The module, with its model and its loss.
        graph: braintrace's graph of the model.
    """
    info, params, leaves = graph.module_info, trained(objective).keys(), jax.tree.leaves
    relations = [r for r in graph.hidden_param_op_relations if params & {*map(name_of, r.trainable_paths.values())}]
    traced = {group.index for relation in relations for group in relation.hidden_groups}
    groups = {group.index: [*map(name_of, group.hidden_paths)] for group in graph.hidden_groups}
    names = [name_of(info.state_id_to_path[id(state)]) for state in info.compiled_model_states]
    before, after = (map(leaves, of) for of in (info.state_tree_invars, info.state_tree_outvars))
    jaxpr, states = info.closed_jaxpr.jaxpr, dict(zip(names, zip(before, after, strict=True), strict=True))
    memory = [state for group in find_memory(jaxpr, states, groups, traced) & traced for state in groups[group]]
    found = origins(jaxpr, {id(var): state for state in memory for var in states[state][0]})
    outputs = [found(var) for var in jaxpr.outvars[: info.num_var_out]]
    if leaky := [state for state in memory if any(weighted.get(state) is False for weighted in outputs)]:
        raise ValueError(
            f"{name}(kappa={kappa}): kappa filters the traces in place of a leaky readout, but {', '.join(leaky)} of "
            f"{type(objective.model).__name__} has memory of its own, so the gradient of its weights would be filtered "
            "twice: use EProp(readout_memory=True) without kappa, or a readout without a hidden state"
        )
