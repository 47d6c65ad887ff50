"""How the hidden state of one time step depends on that of the time step before."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.functional import pure
from ..core.module import Phases
from ..core.state import differentiable
from .base import Learner, evolve, warm_up
from .inputs import split_reset


def recurrent_jacobian(learner: Learner, phases: Phases) -> jax.Array:
    """The derivative of the hidden state with respect to the previous one. Traced.

    It is that of the first sequence of the batch at its last time step, over all hidden states with a floating dtype.
    Physical units are ignored: another unit of a state does not change the eigenvalues.

    Returns:
        ``(n, n)``; entry (i, j) is the derivative of value i with respect to value j.
    """
    network, objective, time = learner.network, learner.objective, phases.sizes[1]
    network.reset(phases.sizes[2])
    warm_up(objective, network, phases, learner._reset)
    masks = split_reset(phases)[1]
    if time > 1:
        inputs, resets = jax.tree.map(lambda leaf: leaf[:-1], (phases.inputs, masks))
        evolve(objective, network, inputs, resets, learner._reset)
    x, mask = jax.tree.map(lambda leaf: leaf[-1], (phases.inputs, masks))
    learner._reset(mask)
    held = {name: state.value for name, state in network.hidden.items()}
    for name, axes in network.axes(phases.sizes[2]).items():
        network.hidden[name].value = _first(held[name], axes)
    jacobian = _of_one_step(learner, jax.tree.map(lambda leaf: leaf[:1], x))
    for name, value in held.items():
        network.hidden[name].value = value
    return jacobian


def _first(value: Any, axes: list[int | None]) -> Any:
    """The value of a state for the first sequence alone, as a batch of one."""
    leaves, tree = jax.tree.flatten(value)
    return tree.unflatten(
        [leaf if axis is None else leaf.take(jnp.arange(1), axis) for leaf, axis in zip(leaves, axes, strict=True)]
    )


def _of_one_step(learner: Learner, x: Any) -> jax.Array:
    hidden = {id(state) for state in learner.network.hidden.values() if differentiable(state.value)}
    states, call = pure(lambda x: learner.objective.warmup(learner.network, x), x)
    own = [id(state) in hidden for state in states]
    values = [state.value for state in states]
    leaves, tree = jax.tree.flatten([value for value, is_own in zip(values, own, strict=True) if is_own])

    def advanced(leaves: list[jax.Array]) -> jax.Array:
        new = iter(tree.unflatten(leaves))
        given = [next(new) if is_own else value for value, is_own in zip(values, own, strict=True)]
        after = call(given, x)[0]
        kept = [value for value, is_own in zip(after, own, strict=True) if is_own]
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(kept)])

    parts = jax.jacfwd(advanced)(leaves)
    return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)
