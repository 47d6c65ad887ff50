"""Learning-rate schedules with warm-up and cosine decay, and Adam with weight decay."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Decay = Literal["constant", "cosine"]


def schedule(lr: float, updates: int, *, warmup: int = 0, decay: Decay = "constant") -> Any:
    """Learning rate as a function of the update number, starting at 0.

    The rate rises linearly from 0 to ``lr`` over ``warmup`` updates. Then it stays at ``lr``, or follows half a cosine
    to 0 at ``updates`` (Loshchilov & Hutter 2017).

    >>> rate = schedule(1.0, 100, warmup=10, decay="cosine")
    >>> [round(float(rate(i)), 3) for i in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Args:
        lr: Peak learning rate.
        updates: Total number of updates.
        warmup: Number of warm-up updates.
        decay: "constant" or "cosine".

    Returns:
        An optax schedule, or ``lr`` itself if the rate is constant.

    Raises:
        ValueError: ``warmup`` is negative or not smaller than ``updates``.
    """
    if not 0 <= warmup < updates:
        raise ValueError(f"warmup={warmup}: expected at least 0 and fewer than all {updates} updates")
    if decay == "constant" and not warmup:
        return lr
    after = optax.cosine_decay_schedule(lr, updates - warmup) if decay == "cosine" else optax.constant_schedule(lr)
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup]) if warmup else after


def adam(rate: Any, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam whose learning rate is logged as ``lr``, with decoupled weight decay (AdamW) for matrices only.

    Biases, poles and initial states are not decayed.

    Args:
        rate: A learning rate, or a ``schedule``.
        weight_decay: Coefficient of the weight decay; 0: plain Adam.

    Returns:
        An optax transformation.

    >>> optimizer = adam(schedule(3e-3, 2000, warmup=100, decay="cosine"), weight_decay=0.01)
    """
    if not weight_decay:
        return optax.inject_hyperparams(optax.adam)(learning_rate=rate)
    make = optax.inject_hyperparams(optax.adamw, static_args=("mask",))
    return make(learning_rate=rate, weight_decay=weight_decay, mask=matrices)


def matrices(params: Any) -> Any:
    """A tree of bools that is True for leaves with two or more axes."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
