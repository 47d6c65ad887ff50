"""Learning rates: warm-up, cosine and weight decay."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Decay = Literal["constant", "cosine"]


def schedule(lr: float, updates: int, *, warmup: int = 0, decay: Decay = "constant") -> Any:
    """The rate of update 0, 1, ...: linear from 0 to ``lr`` over ``warmup`` updates, then ``lr``, or along half a
    cosine to 0 at ``updates`` (Loshchilov & Hutter 2017).

    >>> rate = schedule(1.0, 100, warmup=10, decay="cosine")
    >>> [round(float(rate(i)), 3) for i in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises ValueError where the warm-up is not shorter than the whole.
    """
    if not 0 <= warmup < updates:
        raise ValueError(f"warmup={warmup}: expected 0 or more updates, and fewer than all {updates}")
    if decay == "constant" and not warmup:
        return lr
    after = optax.cosine_decay_schedule(lr, updates - warmup) if decay == "cosine" else optax.constant_schedule(lr)
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup]) if warmup else after


def adam(rate: Any, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam with the rate of a ``schedule``, which logs as ``lr``, and decoupled weight decay (AdamW) of matrices
    alone: biases, poles and initial states are left alone."""
    if not weight_decay:
        return optax.inject_hyperparams(optax.adam)(learning_rate=rate)
    make = optax.inject_hyperparams(optax.adamw, static_args=("mask",))
    return make(learning_rate=rate, weight_decay=weight_decay, mask=matrices)


def matrices(params: Any) -> Any:
    """Which leaves are matrices."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
