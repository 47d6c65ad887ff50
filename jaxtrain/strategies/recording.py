"""What happens in a network over time: its hidden states, spikes and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..core.module import Phases
from ..core.state import name_of
from .base import Learner
from .inputs import split_reset

OUTPUT, SPIKE = "output", "spike"


def record(learner: Learner, phases: Phases, names: Sequence[str] | None) -> dict[str, Any]:
    """Run a batch from initial hidden states, and return what ``names`` lists after each time step. Traced.

    Args:
        learner: The learner, whose network runs.
        phases: The batch.
        names: Names of hidden states, ``<neurons>.spike``, or "output", which is what the model returned; None: all.

    Returns:
        Arrays ``(T_w + T_l, B, ...)`` by name. A state that all sequences share is repeated for each.

    Raises:
        ValueError: There is no such name.
    """
    available = names_of(learner)
    if unknown := [name for name in names or () if name not in available]:
        has = f"has no {unknown[0]!r}; it has {', '.join(available)}"
        raise ValueError(f"record: {type(learner.network.model).__name__} {has}")
    chosen = available if names is None else list(names)
    learner.network.reset(phases.sizes[2])
    readers = _readers(learner, phases.sizes[2])

    def observe(step: Callable, x: Any, reset: Any) -> dict[str, Any]:
        learner._reset(reset)
        outputs = []

        def forward(u: Any) -> Any:
            outputs.append(learner.network(u))
            return outputs[-1]

        step(forward, x)
        return {name: outputs[-1] if name == OUTPUT else readers[name]() for name in chosen}

    parts = [(learner.objective.warmup, phases.warmup), (learner.objective.predict, phases.inputs)]
    found = [
        brainstate.transform.for_loop(partial(observe, step), inputs, reset)
        for (step, inputs), reset in zip(parts, split_reset(phases), strict=True)
        if inputs is not None
    ]
    return jax.tree.map(lambda *over: jnp.concatenate(over), *found)


def names_of(learner: Learner) -> list[str]:
    """Everything that can be recorded: hidden states, spikes, and "output"."""
    return [*learner.network.hidden, *spikes_of(learner), OUTPUT]


def spikes_of(learner: Learner) -> dict[str, Callable[[], Any]]:
    """The method ``get_spike`` of each neuron that has one, by name."""
    nodes: Any = brainstate.graph.nodes(learner.network.model)
    found = {name_of((*path, SPIKE)): getattr(node, "get_spike", None) for path, node in nodes.items()}
    return {name: spikes for name, spikes in found.items() if callable(spikes)}


def spiked(learner: Learner, phases: Phases) -> dict[str, Any]:
    """Whether a neuron of each layer spikes in a batch, by the name of the layer. Traced."""
    found = record(learner, phases, list(spikes_of(learner)))
    return {name.removesuffix(f".{SPIKE}"): jnp.any(value != 0) for name, value in found.items()}


def _readers(learner: Learner, batch: int) -> dict[str, Callable[[], Any]]:
    """Functions that read each hidden state and the spikes of each neuron, with the sequences on axis 0, by name."""
    network, axes = learner.network, learner.network.axes(batch)
    states: dict[str, Callable[[], Any]] = {
        name: lambda state=state, own=axes[name]: _sequences_first(state.value, own, batch)
        for name, state in network.hidden.items()
    }
    return {**states, **spikes_of(learner)}


def _sequences_first(value: Any, axes: list[int | None], batch: int) -> Any:
    """The value of a state, with the batch axis first."""
    leaves, tree = jax.tree.flatten(value)
    moved = [
        jnp.broadcast_to(leaf, (batch, *leaf.shape)) if axis is None else jnp.moveaxis(leaf, axis, 0)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return tree.unflatten(moved)
