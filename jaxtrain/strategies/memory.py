"""Readout memory: hidden states between the traced units and the loss, through which reverse mode can go by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .equations import origins

Variables = tuple[list[Any], list[Any]]
"""Of a state's leaves, before and after the time step."""


def find_memory(
    jaxpr: Any, states: Mapping[str, Variables], groups: Mapping[int, list[str]], traced: set[int]
) -> frozenset[int]:
    """Which groups of hidden states are readout memory.

    No trained weight reaches them; or they lie behind another group that one reaches, and no weight acts on their way
    back to themselves (a leaky readout). A second recurrent layer is none.

    Args:
        jaxpr: One time step.
        states: The variables of each short-term state.
        groups: The names of the hidden states of each group.
        traced: The groups that a trained weight reaches.
    """
    node = {name: name for name in states} | {name: group for group, names in groups.items() for name in names}
    found = origins(jaxpr, {id(var): node[name] for name, (before, _) in states.items() for var in before})
    edges: dict[tuple[Any, Any], bool] = {}
    for name, (_, after) in states.items():
        for source, weighted in (pair for var in after for pair in found(var).items()):
            edge = source, node[name]
            edges[edge] = edges.get(edge, False) or weighted
    reach = {place: {place} for place in node.values()}
    for _ in reach:
        for source, to in edges:
            reach[source] |= reach[to]

    def recurrent(group: int) -> bool:
        return any(
            weighted and group in reach[to] and source in reach[group] for (source, to), weighted in edges.items()
        )

    def behind(group: int) -> bool:
        return any(group in reach[other] and other not in reach[group] for other in traced)

    return frozenset(group for group in groups if group not in traced or (behind(group) and not recurrent(group)))
