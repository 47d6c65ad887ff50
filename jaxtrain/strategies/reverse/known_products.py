"""A time step whose products are known: later passes differentiate them without computing them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Literal

from ..equations import Irreversible, bind, follow, read
from ..network import along
from ..products import Products
from ..step_graph import walk
from .detached_step import DetachedStep


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


class KnownProducts(Products):
    """The products of a detached step, and the step evaluated in four ways.

    Attributes:
        relation: For each product, the number of its relation, or None.
        own: Products that read one value per unit: the row of the weight at which the units' own values begin.
    """

    def __init__(self, step: DetachedStep):
        super().__init__(step)
        self.step: DetachedStep = step
        self.relation = [step.relation_of(equation) for equation in self.equations]
        self.own = {k: width for k in range(len(self.equations)) if (width := self._own_width(k)) is not None}

    def _own_width(self, k: int) -> int | None:
        equation = self.equations[k]
        if equation.primitive.name != "etp_mm" or equation.params.get("weight_fn"):
            return None
        inside, width = self.inside(k), self.split[k][2] if k in self.split else 0
        if inside is None or id(equation.invars[1]) not in self.step.params:
            return None
        return width if inside.aval.shape == equation.outvars[0].aval.shape else None

    def check_own_recurrence(self) -> None:
        """Leave in ``own`` the products by which a unit reaches itself; raise Irreversible if they mix units.

        Each product between old and new hidden states reads one value per unit, position by position, and at most two
        products follow each other, of which the first belongs to no relation. None reads what a traced product gives
        in the same time step, since the effect of that product through it is no part of the trace.
        """
        step = self.step
        own: dict[int, int] = {}
        perturbed: set[int] = set()  # what depends on a relation's output
        chained: dict[int, bool] = {}
        origin: dict[int, set[int]] = {}
        depends: dict[int, frozenset] = {
            id(var): frozenset({("hidden", step.hidden_of[name])})
            for name in step.traced
            for var in step.short[name][0]
        }
        for equation in self._between_states():
            k = self.number.get(id(equation))
            if any(id(var) in perturbed for var in equation.invars) or (k is not None and self.relation[k] is not None):
                perturbed |= {id(var) for var in equation.outvars}
            if k is None:
                follow(equation, depends)
                continue
            before = depends.get(id(self.inside(k)), frozenset())
            if any(depends.get(id(var)) for var in equation.invars[1:] if not isinstance(var, Literal)):
                raise Irreversible("a recurrent product reads a hidden state as its second operand")
            if not before:
                continue
            earlier = [number for kind, number in before if kind == "product"]
            relation = self.relation[k]
            from_groups = {group for kind, group in before if kind == "hidden"}.union(*(origin[j] for j in earlier))
            if relation is not None and not from_groups & step.relations[relation].groups:
                continue  # it reads other states than it acts on, so no unit reaches itself through it
            if k not in self.own:
                raise Irreversible("a recurrent product does not read one value per unit")
            if id(self.inside(k)) in perturbed or any(chained[j] for j in earlier):
                raise Irreversible("recurrent products follow each other in a way that has no element-wise form")
            if earlier and (relation is None or not step.relations[relation].trained):
                raise Irreversible("a recurrent product that follows another one has no trained weight")
            own[k], chained[k], origin[k] = self.own[k], bool(earlier), from_groups
            depends[id(equation.outvars[0])] = frozenset({("product", k)})
        reached = frozenset().union(*(depends.get(id(step.short[name][1][0]), frozenset()) for name in step.traced))
        if any(kind == "product" and self.relation[k] is None for kind, k in reached):
            raise Irreversible("a recurrent product has no trace")
        if own and step.mapped:
            raise Irreversible("the model is mapped over sequences")
        self.own = own

    def _between_states(self) -> list[Any]:
        """The equations that the new hidden states depend on, in order."""
        needed = {id(var) for name in self.step.traced for var in self.step.short[name][1]}
        found = []
        for equation in reversed(self.step.jaxpr.eqns):
            if any(id(var) in needed for var in equation.outvars):
                found.append(equation)
                k = self.number.get(id(equation))
                inputs = [self.inside(k)] if k in self.split else equation.invars
                needed |= {id(var) for var in inputs if var is not None and not isinstance(var, Literal)}
        return found[::-1]

    # -------------------------------------------------------------------------------------------------- passes

    def zeros(self, count: int, results: list[Any], chosen: Iterable[int], *, own: bool) -> dict[int, Any]:
        """Zeros to add to the outputs of relations in ``count`` time steps; if ``own``, also (under
        ``-1 - k``) to the result of each product ``k`` between two hidden states that is no relation."""
        step = self.step
        batch = (step.batch_size,) if step.mapped else ()
        shapes = {i: step.relations[i].y_var.aval for i in chosen}
        zeros = {i: jnp.zeros((count, *batch, *aval.shape), aval.dtype) for i, aval in shapes.items()}
        if own:
            zeros |= {-1 - k: jnp.zeros_like(results[k]) for k in self.own if self.relation[k] is None}
        return zeros

    def forward(self, u: Any, outside: dict[int, Any], box: list[Any]) -> Any:
        """A time step; append the products' results to ``box``."""

        def body(env, outside):
            results = []

            def outs_of(equation, operands):
                k = self.number.get(id(equation))
                if k in self.split:
                    _, inside, width = self.split[k]
                    outs = [outside[k] + (0 if inside is None else read(env, inside) @ operands[1][width:])]
                else:
                    outs = bind(equation, operands)
                if k is not None:
                    results.append(outs[0])
                return outs

            walk(self.step.jaxpr.eqns, env, outs_of)
            return results

        out, results = self.step.evaluate(u, body, outside)
        box.append(results)
        return out

    def window(self, u: Any, results: list[Any], perturbations: dict[int, Any]) -> Any:
        """A time step with known products, whose traced weights are constants and whose traced products ``y`` are
        perturbed."""
        return self.step.evaluate(u, lambda env, given: self._walk(env, *given), (results, perturbations))[0]

    def single(self, u: Any, results: list[Any], perturbations: dict[int, Any], hidden: dict[str, Any]) -> Any:
        """Like ``window``, but the new traced hidden states are constants plus ``hidden``."""
        step = self.step

        def body(env, given):
            results, perturbations, hidden = given
            if step.as_batch:
                hidden = {n: along(jnp.expand_dims, value, step.axes_of(n)) for n, value in hidden.items()}
            frozen = {var: jax.lax.stop_gradient(value) for var, value in env.items()}
            self._walk(frozen, results, {}, hidden=hidden)
            self._walk(env, results, perturbations, given=frozen)

        axes = {name: step.axes_of(name)[0] for name in hidden} if step.mapped else 0
        return step.evaluate(u, body, (results, perturbations, hidden), (0, 0, axes))[0]

    def detached(self, u: Any, results: list[Any], perturbations: dict[int, Any], box: list[Any], own: bool) -> Any:
        """A time step whose products are constants, perturbed; append the inputs of perturbed relations, and those of
        products between hidden states, to ``box``.

        ``own``: a product keeps each unit's own way through it, its weight's diagonal.
        """

        def body(env, given):
            results, perturbations = given
            seen, inside = {}, {}

            def outs_of(equation, operands):
                k, number = self.number.get(id(equation)), self.step.relation_of(equation)
                if number in perturbations and self.step.relations[number].x_place is not None:
                    seen[number] = self._parts(k, env, operands[self.step.relations[number].x_place])
                outs = bind(equation, operands) if k is None else [results[k]]
                if own and k in self.own:
                    inside[k] = z = read(env, self.inside(k))
                    if number is None:
                        outs = [outs[0] + perturbations[-1 - k]]
                    else:
                        outs = [known(jnp.multiply, results[k], z, jnp.diagonal(operands[1][self.own[k] :]))]
                return [outs[0] + perturbations[number]] if number in perturbations else outs

            walk(self.step.jaxpr.eqns, env, outs_of)
            return seen, inside

        out, found = self.step.evaluate(u, body, (results, perturbations))
        box.append(found)
        return out

    # ----------------------------------------------------------------------------------------------- evaluating

    def _walk(self, env: dict[int, Any], results: list[Any], perturbations: dict[int, Any], hidden: Any = None,
              given: Any = None) -> None:  # fmt: skip
        news = {id(self.step.short[name][1][0]): name for name in self.step.traced}

        def value(var: Any, out: Any) -> Any:
            """The new hidden states are perturbed or given."""
            name = news.get(id(var))
            if name is not None and hidden is not None:
                out = out + hidden[name]
            return given[id(var)] if name is not None and given is not None else out

        def outs_of(equation: Any, operands: list[Any]) -> list[Any]:
            k, number = self.number.get(id(equation)), self.step.relation_of(equation)
            relation = None if number is None else self.step.relations[number]
            constant = relation is not None and relation.detached
            for place in relation.places if relation is not None and constant else ():
                operands[place] = jax.lax.stop_gradient(operands[place])
            if k is None:
                outs = bind(equation, operands)
            elif constant and k in self.split:
                # Operands that nothing differentiates cost nothing; the inputs are among them unless they are computed
                # from parameters.
                width = self.split[k][2]

                def parts(weight: Any, *x: Any) -> Any:
                    return sum(part @ rows for part, rows in zip(x, (weight[:width], weight[width:]), strict=False))

                outs = [known(parts, results[k], operands[1], *self._parts(k, env, None))]
            else:
                outs = [known(lambda *o: bind(equation, list(o))[0], results[k], *operands)]
            if number in perturbations:
                outs = [outs[0] + perturbations[number]]
            return [value(var, out) for var, out in zip(equation.outvars, outs, strict=True)]

        walk(self.step.jaxpr.eqns, env, outs_of)

    def _parts(self, k: int | None, env: dict[int, Any], x: Any) -> tuple[Any, ...]:
        parts = (x,) if k not in self.split else self.split[k][:2]
        return tuple(x if k not in self.split else read(env, var) for var in parts if var is not None)
