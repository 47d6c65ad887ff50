"""A time step whose products are known: later passes differentiate them without making them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Literal

from ..equations import ELEMENTWISE, Irreversible, bind, follow, read
from .detached_step import DetachedStep


def is_product(equation: Any) -> bool:
    """Whether an equation is worth keeping the result of: an operation with a weight, or a matrix product."""
    name = equation.primitive.name
    return (name.startswith("etp_") and name != ELEMENTWISE) or name == "dot_general"


def known(function: Callable, y: Any, *operands: Any) -> Any:
    """``function(*operands)``, whose value ``y`` is known. Only its derivative is made, along live tangents alone."""

    @jax.custom_jvp
    def value(y, *operands):
        return y

    def jvp(primals, tangents):
        y, *operands = primals
        live = {k: t for k, t in enumerate(tangents[1:]) if type(t) is not SymbolicZero}

        def part(given):
            return function(*(given.get(k, operand) for k, operand in enumerate(operands)))

        return y, jax.jvp(part, ({k: operands[k] for k in live},), (live,))[1] if live else jnp.zeros_like(y)

    value.defjvp(jvp, symbolic_zeros=True)
    return value(y, *operands)


class KnownProducts:
    """The products of a detached step, and the step evaluated in four ways.

    Attributes:
        equations: The products, in order.
        relation: For each product, the number of its relation, or None.
        split: Products of a concatenation ``(outside, inside)``, of which ``outside`` depends on the inputs alone:
            ``{product: (outside, inside, width of outside)}``. ``outside``'s part is made for all time steps at once.
    """

    def __init__(self, step: DetachedStep):
        self.step, jaxpr = step, step.jaxpr
        self.equations = [equation for equation in jaxpr.eqns if is_product(equation)]
        self._number = {id(equation): k for k, equation in enumerate(self.equations)}
        self.relation = [step._by_y.get(id(equation.outvars[0])) for equation in self.equations]
        states = {id(var) for _, _, ins, _ in step._variables for var in ins}
        outside = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)} - states
        makers: dict[int, Any] = {id(var): equation for equation in jaxpr.eqns for var in equation.outvars}
        self._outside = []
        for equation in jaxpr.eqns:
            if not is_product(equation) and all(isinstance(v, Literal) or id(v) in outside for v in equation.invars):
                outside |= {id(var) for var in equation.outvars}
                self._outside.append(equation)
        parts = {k: self._parts_of(equation, makers, outside) for k, equation in enumerate(self.equations)}
        self.split = {k: part for k, part in parts.items() if part is not None}
        self.own = {k: width for k in range(len(self.equations)) if (width := self._own_width(k)) is not None}
        """Products that read one value per unit: the row of the weight at which the units' own values begin."""

    def _parts_of(self, equation: Any, makers: dict[int, Any], outside: set[int]) -> tuple[Any, Any, int] | None:
        """``(outside, inside, width of outside)`` of a product's input, if it is such a concatenation."""
        joined = makers.get(id(equation.invars[0]))
        if equation.primitive.name != "etp_mm" or joined is None or joined.primitive.name != "concatenate":
            return None
        first, *rest = joined.invars
        plain = not equation.params.get("weight_fn") and not equation.params.get("bias_fn")
        weights_are_parameters = all(id(var) in self.step._params for var in equation.invars[1:])
        along_units = joined.params["dimension"] == len(first.aval.shape) - 1
        if len(rest) == 1 and id(first) in outside and plain and weights_are_parameters and along_units:
            return first, rest[0], first.aval.shape[-1]
        return None

    def _own_width(self, k: int) -> int | None:
        equation = self.equations[k]
        if equation.primitive.name != "etp_mm" or equation.params.get("weight_fn"):
            return None
        _, inside, width = self.split.get(k, (None, equation.invars[0], 0))
        fits = inside.aval.shape == equation.outvars[0].aval.shape and id(equation.invars[1]) in self.step._params
        return width if fits else None

    def _inside(self, k: int) -> Any:
        return self.split[k][1] if k in self.split else self.equations[k].invars[0]

    def check_own_recurrence(self) -> None:
        """Raise Irreversible where a unit's way to itself has no element-wise form.

        Each product between old and new hidden states reads one value per unit, position by position, and at most two
        products follow each other, of which the first belongs to no relation.
        """
        step = self.step
        needed = {id(var) for name in step.traced for var in step._short[name][1]}
        path = []
        for equation in reversed(step.jaxpr.eqns):
            if any(id(var) in needed for var in equation.outvars):
                path.append(equation)
                k = self._number.get(id(equation))
                inputs = [self._inside(k)] if k in self.split else equation.invars
                needed |= {id(var) for var in inputs if not isinstance(var, Literal)}
        chained: dict[int, bool] = {}
        origin: dict[int, set[int]] = {}
        depends: dict[int, frozenset] = {
            id(var): frozenset({("hidden", step._hidden_of[name])})
            for name in step.traced
            for var in step._short[name][0]
        }
        for equation in path[::-1]:
            k = self._number.get(id(equation))
            if k is None:
                follow(equation, depends)
                continue
            before = depends.get(id(self._inside(k)), frozenset())
            if not before:
                continue
            earlier = [number for kind, number in before if kind == "product"]
            relation = self.relation[k]
            from_groups = {group for kind, group in before if kind == "hidden"}.union(*(origin[j] for j in earlier))
            if relation is not None and not from_groups & step.relations[relation].groups:
                continue  # it reads other states than it acts on, so no unit reaches itself through it
            if k not in self.own:
                raise Irreversible("a recurrent product does not read one value per unit")
            if any(self.relation[j] is not None or chained[j] for j in earlier):
                raise Irreversible("recurrent products follow each other in a way that has no element-wise form")
            if earlier and (relation is None or not step.relations[relation].trained):
                raise Irreversible("a recurrent product that follows another one has no trained weight")
            chained[k], origin[k] = bool(earlier), from_groups
            depends[id(equation.outvars[0])] = frozenset({("product", k)})
        reached = frozenset().union(*(depends.get(id(step._short[name][1][0]), frozenset()) for name in step.traced))
        if any(kind == "product" and self.relation[k] is None for kind, k in reached):
            raise Irreversible("a recurrent product has no trace")

    # -------------------------------------------------------------------------------------------------- passes

    def inputs(self, u: Any, box: list[Any]) -> Any:
        """Append the outside parts of the split products' inputs to ``box``; the returned outputs are zeros."""
        env = self._env(u)
        for equation in self._outside:
            outs = bind(equation, [read(env, var) for var in equation.invars])
            env |= {id(var): out for var, out in zip(equation.outvars, outs, strict=True)}
        box.append({k: env[id(first)] for k, (first, _, _) in self.split.items()})
        for var in self.step.jaxpr.outvars:
            if not isinstance(var, Literal):
                env.setdefault(id(var), jnp.zeros(var.aval.shape, var.aval.dtype))
        return self.step._results(env)[0]

    def outside_products(self, given: dict[int, Any]) -> dict[int, Any]:
        """The outside part of each split product, with the bias, from inputs ``(T, B, I)``."""
        found = {}
        for k, (_, _, width) in self.split.items():
            _, weight, *bias = self.weights(k)
            found[k] = given[k] @ weight[:width] + (bias[0] if bias else 0)
        return found

    def forward(self, u: Any, outside: dict[int, Any], box: list[Any]) -> Any:
        """A time step; append the products' results to ``box``."""
        env, results = self._env(u), []
        for equation in self.step.jaxpr.eqns:
            operands = [read(env, var) for var in equation.invars]
            k = self._number.get(id(equation))
            if k in self.split:
                _, inside, width = self.split[k]
                outs = [outside[k] + read(env, inside) @ operands[1][width:]]
            else:
                outs = bind(equation, operands)
            if k is not None:
                results.append(outs[0])
            env |= {id(var): out for var, out in zip(equation.outvars, outs, strict=True)}
        box.append(results)
        return self._finish(env)

    def window(self, u: Any, results: list[Any], perturbations: dict[int, Any]) -> Any:
        """A time step with known products, whose traced weights are constants and whose traced products ``y`` are
        perturbed."""
        env = self._env(u)
        self._walk(env, results, perturbations)
        return self._finish(env)

    def single(self, u: Any, results: list[Any], perturbations: dict[int, Any], hidden: dict[str, Any]) -> Any:
        """Like ``window``, but the new traced hidden states are constants plus ``hidden``."""
        env = self._env(u)
        frozen = {var: jax.lax.stop_gradient(value) for var, value in env.items()}
        self._walk(frozen, results, {}, hidden=hidden)
        self._walk(env, results, perturbations, given=frozen)
        return self._finish(env)

    def detached(self, u: Any, results: list[Any], perturbations: dict[int, Any], box: list[Any], own: bool) -> Any:
        """A time step whose products are constants, perturbed; append the inputs of traced products to ``box``.

        ``own``: a product keeps each unit's own way through it, its weight's diagonal.
        """
        env, seen, inside = self._env(u), {}, {}
        for equation in self.step.jaxpr.eqns:
            k = self._number.get(id(equation))
            number = self._relation_of(equation)
            operands = [read(env, var) for var in equation.invars]
            if number in perturbations and self.step.relations[number].x_place is not None:
                seen[number] = self._parts(k, env, operands[self.step.relations[number].x_place])
            if k is None:
                outs = bind(equation, operands)
            else:
                outs = [results[k]]
                if own and k in self.own:
                    z, weight = read(env, self._inside(k)), operands[1][self.own[k] :]
                    if number is not None:
                        outs = [known(jnp.multiply, results[k], z, jnp.diagonal(weight))]
                    else:
                        outs = [outs[0] + perturbations[-1 - k]]
                    inside[k] = z
            if number in perturbations:
                outs = [outs[0] + perturbations[number]]
            env |= {id(var): out for var, out in zip(equation.outvars, outs, strict=True)}
        box.append((seen, inside))
        return self._finish(env)

    # ----------------------------------------------------------------------------------------------- evaluating

    def _walk(self, env: dict[int, Any], results: list[Any], perturbations: dict[int, Any], hidden: Any = None,
              given: Any = None) -> None:  # fmt: skip
        news = {id(self.step._short[name][1][0]): name for name in self.step.traced}
        for equation in self.step.jaxpr.eqns:
            k = self._number.get(id(equation))
            number = self._relation_of(equation)
            operands = [read(env, var) for var in equation.invars]
            relation = None if number is None else self.step.relations[number]
            if relation is not None and relation.trained:
                for place in relation.places:
                    operands[place] = jax.lax.stop_gradient(operands[place])
            if k is None:
                outs = bind(equation, operands)
            elif (
                k in self.split and relation is not None and relation.trained
            ):  # the weight and its inputs are constant
                _, inside, width = self.split[k]
                outs = [known(jnp.matmul, results[k], read(env, inside), operands[1][width:])]
            else:
                outs = [known(lambda *o, e=equation: bind(e, list(o))[0], results[k], *operands)]
            if number in perturbations:
                outs = [outs[0] + perturbations[number]]
            for var, out in zip(equation.outvars, outs, strict=True):
                name = news.get(id(var))
                if name is not None and hidden is not None:
                    out = out + hidden[name]
                if name is not None and given is not None:
                    out = given[id(var)]
                env[id(var)] = out

    def _relation_of(self, equation: Any) -> Any:
        return self.step._by_y.get(id(equation.outvars[0])) if len(equation.outvars) == 1 else None

    def _parts(self, k: int | None, env: dict[int, Any], x: Any) -> tuple[Any, ...]:
        return (x,) if k not in self.split else (read(env, self.split[k][0]), read(env, self.split[k][1]))

    def _env(self, u: Any) -> dict[int, Any]:
        return self.step._env(u, [state.value for state in self.step.states])

    def weights(self, k: int) -> list[Any]:
        leaves = jax.tree.leaves([state.value for state in self.step.states])
        env = {id(var): leaf for var, leaf in zip(self.step.jaxpr.invars[-len(leaves) :], leaves, strict=True)}
        return [env.get(id(var)) for var in self.equations[k].invars]

    def _finish(self, env: dict[int, Any]) -> Any:
        out, new = self.step._results(env)
        for state, value in zip(self.step.states, new, strict=True):
            if not isinstance(state, brainstate.ParamState):
                state.value = value
        return out
