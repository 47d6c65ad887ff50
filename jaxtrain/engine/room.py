"""Checks before a program runs that its memory can be allocated."""

from __future__ import annotations

from typing import Any

import jax

from ..strategies import Strategy
from ..utils.memory import require, shared_by_devices, shown
from .binding import Binding
from .report import compiled_memory

READS = {
    "evaluate": ("a validation batch", "validate on smaller batches"),
    "predict": ("a batch of a prediction", "predict smaller batches"),
}
"""Subject and advice of the error, by kind of program that reads the state."""
PROBE = "a probe of a callback", "leave the callback out, or use a smaller batch"


def require_room(compiled: Any, held: int, devices: int, what: str, advice: str) -> None:
    """Raise InsufficientMemory if a compiled program cannot run; do nothing if the backend reports no memory.

    Args:
        compiled: The program.
        held: Bytes of its arguments that are already allocated.
        devices: Number of devices of this process that run it.
        what: What needs the memory.
        advice: What to do about it.
    """
    memory = compiled_memory(compiled)
    if memory:
        shares = devices if shared_by_devices() else 1
        require(memory["peak_bytes"] * shares, what, advice, held=held)


def require_room_for_reading(compiled: Any, held: int, devices: int, kind: Any) -> None:
    """``require_room`` for a program of ``Program.read``."""
    require_room(compiled, held, devices, *READS.get(kind, PROBE))


def require_room_for_training(
    compiled: Any, held: int, devices: int, strategy: Strategy, traces: int, seeds: int
) -> None:
    """``require_room`` for the train program of a strategy, whose traces have the given size in bytes."""
    large = traces > compiled_memory(compiled).get("peak_bytes", 0) / 10
    options = {name: value for name, value in strategy.config().items() if name in ("remat", "engine", "segment")}
    remedies = {
        "a smaller batch or model": True,
        "fewer seeds": seeds > 1,
        "remat=True": options.get("remat") is False,
        "engine='reverse'": large and options.get("engine") == "trace",
        "a smaller segment": not large and "segment" in options and options["engine"] != "trace",
        "or another strategy": True,
    }
    what = f"a train step of strategy {strategy.name!r}" + (f", whose traces are {shown(traces)}," if large else "")
    advice = "use " + ", ".join(remedy for remedy, helps in remedies.items() if helps)
    require_room(compiled, held, devices, what, advice)


def require_room_for_seeds(binding: Binding, values: dict[str, Any], seeds: int, models: int) -> None:
    """Raise InsufficientMemory if what a run of several seeds holds cannot be allocated, given that of the first.

    Args:
        binding: The first model, bound.
        values: Its initial values. Those of all seeds are stacked.
        seeds: Number of seeds.
        models: Number of models, each of which is bound.
    """
    states = [state.value for state in (*binding.states.values(), *binding.learner.short_term_states())]
    each, stacked = _bytes((states, values)), seeds * _bytes(values)
    require(
        (models - 1) * each + stacked, f"the state of {seeds} seeds", "use fewer seeds, or a smaller batch or model"
    )


def _bytes(values: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(values))
