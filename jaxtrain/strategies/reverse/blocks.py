"""What is known of time steps, their division into blocks, and what passes from later to earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

BLOCK = 32
"""Most time steps in a block. Larger blocks need more memory and are slower on a CPU."""


def leaf(value: Any) -> Any:
    """The one array of a hidden state, without its unit."""
    (only,) = jax.tree.leaves(value)
    return only


def windows_per_block(windows: int, window: int) -> int:
    """The largest divisor of a number of windows that fits into a block, or as many as fit if it is small."""
    most = min(max(1, BLOCK // window), windows)
    divisor = next(size for size in range(most, 0, -1) if windows % size == 0)
    return divisor if 4 * divisor >= most else most


def parts_of(time: int, window: int) -> list[tuple[slice, int]]:
    """Divide time steps into parts, each for one ``TimeSteps``: whole blocks, further whole windows, a shorter window.

    Returns:
        The time steps of each part, and its window.
    """
    whole = time - time % window
    even = whole and whole - whole % (windows_per_block(whole // window, window) * window)
    parts = (slice(even), window), (slice(even, whole), window), (slice(whole, time), time - whole)
    return [(which, length) for which, length in parts if range(time)[which]]


@dataclass
class Rows:
    """What the later passes need of each time step; all arrays are ``(T, ...)``.

    Attributes:
        sequences: Slices of the batch.
        masks: Reset masks; None without resets.
        hidden: Hidden states with a trace at the start of the time step, by name.
        memory: Readout memory at the start, by name.
        others: Values of the other States at the start.
        results: Results of the products.
        steps: Numbers of the time steps since the restart of the rule, from 1.
        is_filtered: Whether the filter on the trace advances after the time step.
    """

    sequences: Any
    masks: Any
    hidden: dict[str, Any]
    memory: dict[str, Any]
    others: list[Any]
    results: list[Any]
    steps: Any
    is_filtered: Any


jax.tree_util.register_dataclass(Rows, [*Rows.__dataclass_fields__], [])


@dataclass
class Carry:
    """What passes from later to earlier time steps.

    Attributes:
        recursion: The state of the rule's recursion.
        ends: For each value at the end of the segment that a trace is kept of, the same state for that value.
        memory: Cotangents of the readout memory, by name.
        grads: Gradients by parameter.
        totals: Gradients by relation.
    """

    recursion: Any
    ends: list[Any]
    memory: dict[str, Any]
    grads: dict[str, Any]
    totals: dict[int, list[Any]]


jax.tree_util.register_dataclass(Carry, [*Carry.__dataclass_fields__], [])
