"""The weights of relations, and gradients of parameters from theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...core.state import State, parameters
from ..base import zeros_like_parameters
from .detached_step import DetachedStep


class RelationWeights:
    """The weights of each relation as functions of the parameters.

    Attributes:
        values: For each relation, its weights.
        to_parameters: A function from gradients of these weights to gradients of parameters.
    """

    def __init__(self, step: DetachedStep, model: Any, trained: dict[str, State]):
        self._trained = trained
        values = {name: jax.tree.leaves(state.value) for name, state in parameters(model).items()}
        self.values, self.to_parameters = jax.vjp(step.weights, values)

    def gradients(self, grads: Mapping[str, Any], totals: Mapping[int, list[Any]]) -> dict[str, Any]:
        """Gradients by parameter, from those by parameter and those by relation."""
        every = [
            [total.astype(leaf.dtype) for leaf, total in zip(weight, totals[i], strict=True)]
            if i in totals
            else jax.tree.map(jnp.zeros_like, weight)
            for i, weight in enumerate(self.values)
        ]
        grads = dict(grads)
        for name, leaves in self.to_parameters(every)[0].items():
            if name in grads:
                traced = jax.tree.unflatten(jax.tree.structure(grads[name]), leaves)
                grads[name] = jax.tree.map(jnp.add, grads[name], traced)
        return jax.tree.map(lambda t, g: g.astype(t.dtype), zeros_like_parameters(self._trained), grads)
