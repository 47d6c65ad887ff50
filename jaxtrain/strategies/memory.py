"""Readout memory: hidden states between the traced units and the loss that reverse mode can differentiate directly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
