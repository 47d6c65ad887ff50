"""Binding one module per seed, all with the same time step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.functional import traced
from ..core.module import Module
from .binding import Binding, environ
from .report import time_steps
from .room import require_room_for_seeds
from .seeds import require_one_step


def bind_each(
    seeds: Sequence[int], modules: Sequence[Module], bind_to: Callable
) -> tuple[Binding, list[dict[str, Any]]]:
    """Bind each seed's module, and check that all seeds have the same traced time step.

    A module that serves several seeds is bound once. The first is bound last: models may share parts, and programs are
    traced with the States of the first.

    Returns:
        The binding of the first module, and the initial values of each seed.
    """
    bound: dict[int, tuple[Binding, dict[str, Any]]] = {}
    steps: dict[int, Any] = {}
    for module in reversed(modules):
        if id(module) not in bound:
            binding, values = bound[id(module)] = bind_to(module)
            if len(bound) == 1 and len(modules) > 1:
                require_room_for_seeds(binding, values, len(modules), len({*map(id, modules)}))
            if modules[0] is not modules[-1]:
                with environ(module, fit=True):
                    steps[id(module)] = traced(lambda b=binding: time_steps(b.learner, b.phases))
    if steps:
        require_one_step(seeds, [steps[id(module)] for module in modules], type(modules[0]).__name__)
    return bound[id(modules[0])][0], [bound[id(module)][1] for module in modules]
