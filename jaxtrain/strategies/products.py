"""The products of a time step with weights, and those of their inputs that do not depend on states."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ..core.functional import pure
from .equations import ELEMENTWISE, bind
from .inputs import input_in
from .step_graph import StepGraph, walk
from .stretches import Stretch

DENSE = ("etp_mm", "etp_mv")
EMBEDDING = ("etp_emb", "etp_emb_v")


def is_product(equation: Any) -> bool:
    """Whether an equation is an operation with a weight, or a matrix product."""
    name = equation.primitive.name
    return (name.startswith("etp_") and name != ELEMENTWISE) or name == "dot_general"


def is_plain(equation: Any) -> bool:
    """Whether an equation computes ``x @ weight + bias`` of the weight and bias as they are."""
    return equation.primitive.name in DENSE and not any(
        equation.params.get(f"{name}_fn") for name in ("weight", "bias")
    )


def merge(array: jax.Array, kept: int) -> jax.Array:
    """Merge all axes but the last ``kept`` ones."""
    return array.reshape(-1, *array.shape[array.ndim - kept :])


def matrix_gradient(parts: tuple[Any, ...], delta: Any) -> Any:
    """``x^T delta`` over all leading axes, for the parts of ``x`` along its last axis."""
    # Without the barrier, XLA fuses the operands' producers into transposing copies, which take ten times as long.
    *flat, delta = jax.lax.optimization_barrier((*(merge(x, 1) for x in parts), merge(delta, 1)))
    return jnp.concatenate([x.T @ delta for x in flat])


class Products:
    """The products of a time step.

    Args:
        step: The time step.

    Attributes:
        equations: The products, in order.
        number: The number of each product, by id of its equation.
        split: Products of ``outside``, which depends on the inputs alone, or of a concatenation ``(outside, inside)``:
            ``{product: (outside, inside or None, width of outside)}``. The part of ``outside`` is computed for all time
            steps at once.
    """

    def __init__(self, step: StepGraph):
        self.step, jaxpr = step, step.jaxpr
        self.equations = [equation for equation in jaxpr.eqns if is_product(equation)]
        self.number = {id(equation): k for k, equation in enumerate(self.equations)}
        states = {id(var) for _, _, ins, _ in step.variables for var in ins}
        outside = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)} - states
        makers: dict[int, Any] = {id(var): equation for equation in jaxpr.eqns for var in equation.outvars}
        self._outside = []
        for equation in jaxpr.eqns:
            if not is_product(equation) and all(isinstance(v, Literal) or id(v) in outside for v in equation.invars):
                outside |= {id(var) for var in equation.outvars}
                self._outside.append(equation)
        parts = {k: self._parts_of(equation, makers, outside) for k, equation in enumerate(self.equations)}
        self.split = {k: part for k, part in parts.items() if part is not None}

    def _parts_of(self, equation: Any, makers: dict[int, Any], outside: set[int]) -> tuple[Any, Any, int] | None:
        """``(outside, inside, width of outside)`` of a product's input, if part of it depends on the inputs alone."""
        if not is_plain(equation) or any(id(var) not in self.step.params for var in equation.invars[1:]):
            return None
        x = equation.invars[0]
        if id(x) in outside:
            return x, None, x.aval.shape[-1]
        joined = makers.get(id(x))
        if joined is None or joined.primitive.name != "concatenate":
            return None
        first, *rest = joined.invars
        along_units = joined.params["dimension"] == len(first.aval.shape) - 1
        return (
            (first, rest[0], first.aval.shape[-1]) if len(rest) == 1 and id(first) in outside and along_units else None
        )

    def outside_inputs(self, stretch: Stretch) -> dict[int, Any]:
        """The outside parts of the split products' inputs in all time steps, ``(T, B, I)``, by product."""
        if not self.split:
            return {}

        def body(env: dict[int, Any]) -> dict[int, Any]:
            walk(self._outside, env, bind)
            return {k: env[id(first)] for k, (first, _, _) in self.split.items()}

        states, call = pure(lambda slices: self.step.of_input(input_in(stretch.learn, slices), body), stretch.first())
        values = [state.value for state in states]
        return jax.vmap(lambda slices: call(values, slices)[1])(stretch.sequences)

    def outside_products(self, given: dict[int, Any]) -> dict[int, Any]:
        """The outside part of each split product, with the bias, from inputs ``(T, B, I)``."""
        found = {}
        for k, x in given.items():
            width = self.split[k][2]
            _, weight, *bias = jax.lax.stop_gradient(self.weights(k))
            found[k] = x @ weight[:width] + (bias[0] if bias else 0)
        return found

    def inside(self, k: int) -> Any:
        """The part of a product's input that depends on states; None if none of it does."""
        return self.split[k][1] if k in self.split else self.equations[k].invars[0]

    def weights(self, k: int) -> list[Any]:
        leaves = jax.tree.leaves([state.value for state in self.step.states])
        env = {id(var): leaf for var, leaf in zip(self.step.jaxpr.invars[-len(leaves) :], leaves, strict=True)}
        return [env.get(id(var)) for var in self.equations[k].invars]
