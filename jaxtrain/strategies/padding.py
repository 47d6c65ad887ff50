"""Padding: values that must not affect the result are replaced before the module's steps see them.

A weight of zero is not sufficient. Reverse mode multiplies the zero by the derivative of the loss, which is NaN if the
target is NaN. A hidden state that reads NaN after the end of a sequence can also spread it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ..core.functional import reaches_states
from ..core.module import Phases
from ..core.state import is_key
from .base import Network, scored


def inert(phases: Phases, step: Callable, network: Network, *, carried: bool) -> Phases:
    """Traced: replace every value that must change neither the loss nor the gradient.

    These values are targets and extras with weight 0, and inputs that no weighted time step of the same sequence
    depends on. The replacement is the value of a time step that counts, so it lies in the domain of the data; it is
    taken from the same sequence if possible. A target or an extra that the step feeds to the model is treated as an
    input.

    Args:
        phases: One batch. Without weights it is returned unchanged.
        step: ``Objective.learn`` or ``Objective.evaluate``, which determines what reaches the model.
        network: The model over a batch.
        carried: Whether hidden states continue to the next batch, whose time steps may then depend on this one.

    Returns:
        Phases of the same shapes and dtypes.
    """
    if phases.weights is None:
        return phases
    warm, time, batch = phases.sizes
    weights = jnp.asarray(phases.weights)
    weighted = jnp.broadcast_to((weights if weights.ndim == 2 else weights[:, None]) != 0, (time, batch))
    reached = _reached(weighted, phases.reset, warm, carried)
    scoring, tree = jax.tree.flatten((phases.targets, phases.extras))
    keeps = [reached[warm:] if fed else weighted for fed in _fed(phases, step, network)]
    scoring = [_filled(leaf, keep, _sample(leaf, keep)) for leaf, keep in zip(scoring, keeps, strict=True)]
    targets, extras = tree.unflatten(scoring)
    inputs, tree = jax.tree.flatten(phases.inputs)
    samples = [_sample(leaf, reached[warm:]) for leaf in inputs]
    inputs = [_filled(leaf, reached[warm:], sample) for leaf, sample in zip(inputs, samples, strict=True)]
    warmup = _warmup(phases.warmup, reached[:warm], tree, samples)
    return replace(phases, warmup=warmup, inputs=tree.unflatten(inputs), targets=targets, extras=extras)


def _reached(weighted: jax.Array, reset: Any, warm: int, carried: bool) -> jax.Array:
    """For each time step, whether a weighted one follows before the next reset, ``(T_w + T_l, B)``."""
    time, batch = weighted.shape
    total = warm + time
    never = total + 1
    at = jnp.arange(total, dtype=jnp.int32)[:, None]
    needed = jnp.concatenate([jnp.zeros((warm, batch), bool), weighted])
    wanted = jax.lax.cummin(jnp.where(needed, at, total if carried else never), reverse=True)
    if reset is None:
        return wanted < never
    resets = jax.lax.cummin(jnp.where(reset, at, never), reverse=True)
    following = jnp.concatenate([resets[1:], jnp.full((1, batch), never, jnp.int32)])
    return wanted < following


def _fed(phases: Phases, step: Callable, network: Network) -> list[bool]:
    """For each leaf of targets and extras, whether the step feeds it to the States of the model."""
    x, y, w, extras = jax.tree.map(lambda leaf: leaf[0], scored(phases)[:4])

    def one(y: Any, extras: dict[str, Any]) -> Any:
        network.reset(phases.sizes[2])
        return step(network, x, y, w, extras)

    return reaches_states(one, y, extras)


def _warmup(warmup: Any, reached: jax.Array, tree: Any, samples: list[jax.Array]) -> Any:
    """The filled warm-up. If none of it counts, it receives the ``samples`` of the inputs, if its structure allows."""
    leaves, own = jax.tree.flatten(warmup)
    ours = [_sample(leaf, reached) for leaf in leaves]
    if own == tree and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(ours, samples, strict=True)):
        ours = [jnp.where(reached.any(), a, b) for a, b in zip(ours, samples, strict=True)]
    return own.unflatten(_filled(leaf, reached, sample) for leaf, sample in zip(leaves, ours, strict=True))


def _sample(leaf: Any, keep: jax.Array) -> jax.Array:
    """For each sequence ``(B, ...)``, its first kept value; else that of another sequence; else 1."""
    has = keep.any(axis=0)
    source = jnp.where(has, jnp.arange(has.size), jnp.argmax(has))
    sample = jnp.asarray(leaf)[jnp.argmax(keep, axis=0)[source], source]
    return sample if is_key(sample) else jnp.where(has.any(), sample, jnp.ones_like(sample))


def _filled(leaf: Any, keep: jax.Array, sample: jax.Array) -> jax.Array:
    return jnp.where(keep.reshape(keep.shape + (1,) * (leaf.ndim - 2)), leaf, sample)
