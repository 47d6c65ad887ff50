"""A network that runs freely: after a prompt, its inputs are made of its own outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..core.module import Phases
from .base import Learner
from .inputs import split_reset


def generate(learner: Learner, phases: Phases, steps: int, sample: Callable[[Any, Any], Any], key: Any) -> Any:
    """Run a prompt, then ``steps`` more time steps whose inputs ``sample`` computes from the outputs. Traced.

    One loop runs both, so the model is compiled once.

    Args:
        learner: The learner, whose network runs from its initial hidden states.
        phases: The prompt.
        steps: Number of inputs to make, at least 1.
        sample: ``sample(output, key)`` makes the next input of what ``predict_step`` returned.
        key: Root of the keys; input i gets the key ``fold_in(key, i)``.

    Returns:
        The inputs that were made, ``(steps, B, ...)``, in the tree of the prompt's.

    Raises:
        ValueError: ``sample`` returns something unlike an input.
    """
    learner._warm_up(phases)
    time, mask = phases.sizes[1], split_reset(phases)[1]
    expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), phases.inputs)

    def longer(leaf: Any) -> Any:
        return jnp.concatenate([leaf, jnp.zeros((steps - 1, *leaf.shape[1:]), leaf.dtype)])

    def step(made: Any, at: Any) -> tuple[Any, Any]:
        t, given, reset = at
        learner._reset(reset)
        x = jax.tree.map(lambda own, prompt: jnp.where(t < time, prompt, own), made, given)
        output = learner.objective.predict(learner.network, x)
        made = _as_input(sample(output, jax.random.fold_in(key, t - (time - 1))), expected)
        return made, made

    start = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), expected)
    inputs, resets = jax.tree.map(longer, (phases.inputs, mask))
    made = brainstate.transform.scan(step, start, (jnp.arange(time + steps - 1), inputs, resets))[1]
    return jax.tree.map(lambda leaf: leaf[time - 1 :], made)


def _as_input(made: Any, expected: Any) -> Any:
    """What ``sample`` returned, as arrays. Raises ValueError unless it has tree, shapes and dtypes of an input."""
    made = jax.tree.map(jnp.asarray, made)
    texts = [jax.tree.map(lambda leaf: f"{leaf.shape} {np.dtype(leaf.dtype).name}", tree) for tree in (made, expected)]
    if texts[0] != texts[1]:
        raise ValueError(
            f"generate: sample(output, key) returns {texts[0]}; expected {texts[1]}, like an input of one time step; "
            "give sample= a function that makes the next input of an output"
        )
    return jax.tree.map(lambda leaf, like: jax.lax.convert_element_type(leaf, like.dtype), made, expected)
