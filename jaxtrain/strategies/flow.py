"""Dependence analysis of one time step: which results have a derivative with respect to which parameters and states.

A derivative counts unless it is zero for every value: paths through ``stop_gradient``, integers and comparisons do not
count. For a function with a custom derivative, such as a surrogate gradient, that derivative is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from brainstate import HiddenState
from brainstate.transform import StatefulFunction
from jax.interpreters import partial_eval

from ..core.module import Phases
from ..core.state import State, parameters
from .base import Learner, Network, scored
from .equations import bind, read

CALLS = ("jit", "pjit", "closed_call", "core_call")
"""Primitives that only call a jaxpr."""
Dependence = Mapping[str, frozenset[str]]
"""For each name, the names that it has a derivative with respect to."""


@dataclass(frozen=True)
class Flow:
    """The names of parameters and states with respect to which results have a derivative.

    Attributes:
        loss: For the loss of a scored time step.
        direct: For that loss with the new hidden states held constant; parameters only.
        output: For that loss with respect to the *new* values of hidden states.
        states: For each new short-term state.
        initial: For each initial short-term state; parameters only.
    """

    loss: frozenset[str]
    direct: frozenset[str]
    output: frozenset[str]
    states: Dependence
    initial: Dependence

    @staticmethod
    def of(learner: Learner, phases: Phases) -> Flow:
        objective, network = learner.objective, learner.network
        params, hidden = parameters(network.model), network.hidden
        named = {**params, **hidden}
        first = jax.tree.map(lambda leaf: leaf[0], (scored(phases)[:4], phases.warmup))
        score = _Step(lambda *xs: objective.learn(network, *xs)[0], named, hidden, *first[0])
        loss, states = score.results()
        if phases.warmup is not None:
            _, warm_up = _Step(lambda x: objective.warmup(network, x), named, hidden, first[1]).results()
            states = {name: states[name] | warm_up[name] for name in states}
        direct, output = score.output({name for name, state in hidden.items() if isinstance(state, HiddenState)})
        return Flow(loss, direct & {*params}, output, states, initial_values(network, phases.sizes[2]))

    def within(self, steps: int | None) -> frozenset[str]:
        """Names that affect a loss within ``steps`` time steps, their own one included; None: at any later time."""
        found = self.loss
        for _ in range(min(len(self.states), len(self.states) if steps is None else steps - 1)):
            found |= frozenset().union(*(self.states[name] for name in found if name in self.states))
        return found

    def after(self, sources: Iterable[str]) -> frozenset[str]:
        """States that depend on any of ``sources``, one or more time steps later."""
        found, new = frozenset[str](), frozenset(sources)
        while new:
            new = frozenset(name for name, behind in self.states.items() if behind & new) - found
            found |= new
        return found

    def into(self, name: str) -> frozenset[str]:
        """States that depend on a parameter in the same time step, and affect a loss."""
        return frozenset(state for state, behind in self.states.items() if name in behind) & self.within(None)

    def through(self, name: str) -> frozenset[str]:
        """States through which a parameter affects the loss of the same or a later time step."""
        return self.after([name]) & self.within(None)

    def begins(self, name: str) -> frozenset[str]:
        """States whose initial value depends on a parameter, and that affect a loss."""
        return frozenset(s for s, behind in self.initial.items() if name in behind) & self.within(None)


def initial_values(network: Network, batch_size: int) -> Dependence:
    """For each short-term state, the parameters that its initial value depends on."""
    params = parameters(network.model)
    _, states = _Step(lambda: network.reset(batch_size), params, network.hidden).results()
    return {name: sources & {*params} for name, sources in states.items()}


class _Step:
    """The jaxpr of a call that reads and writes States, and the dependence of its results on them."""

    def __init__(self, call: Callable, sources: Mapping[str, State], states: Mapping[str, State], *args: Any):
        """``sources``: States to differentiate with respect to. ``states``: States whose new values are results."""
        stateful = StatefulFunction(call, return_only_write=False).make_jaxpr(*args)
        closed: Any = stateful.get_jaxpr(*args)
        self._jaxpr, self._consts = closed.jaxpr, closed.consts
        touched = [state for state in stateful.get_states(*args) for _ in jax.tree.leaves(state.value)]
        scores = len(self._jaxpr.outvars) - len(touched)
        self._scores = [i for i in range(scores) if _is_inexact(self._jaxpr.outvars[i])]
        before, after = ({id(state): name for name, state in of.items()} for of in (sources, states))
        inputs = enumerate(touched, len(self._jaxpr.invars) - len(touched))
        outputs = enumerate(touched, scores)
        own = {i: before.get(id(state)) for i, state in inputs if _is_inexact(self._jaxpr.invars[i])}
        new = {i: after.get(id(state)) for i, state in outputs if _is_inexact(self._jaxpr.outvars[i])}
        self._inputs = {i: name for i, name in own.items() if name is not None}
        self._news = {i: name for i, name in new.items() if name is not None}
        here = {id(state) for state in touched}
        self._kept = {name for name, state in states.items() if id(state) not in here}

    def output(self, held: set[str]) -> tuple[frozenset[str], frozenset[str]]:
        """With the new values of the ``held`` states constant: the sources that the loss depends on, and the held
        states on whose new values it depends."""
        parts = self._dependences(self._scores, held)
        return frozenset().union(*(inputs for inputs, _ in parts)), frozenset().union(*(news for _, news in parts))

    def results(self) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
        """The sources that the loss depends on, and those of each new state."""
        found = [inputs for inputs, _ in self._dependences([*self._scores, *self._news])]
        count = len(self._scores)
        states = {name: frozenset([name]) for name in self._kept}
        for name, inputs in zip(self._news.values(), found[count:], strict=True):
            states[name] = states.get(name, frozenset()) | inputs
        return frozenset().union(*found[:count]), states

    def _dependences(
        self, outputs: list[int], held: Collection[str] = ()
    ) -> list[tuple[frozenset[str], frozenset[str]]]:
        """For each output: the sources that it depends on, and the held states on whose new values it depends."""
        given = [_shape(var) for var in self._jaxpr.invars]
        holding = {i: name for i, name in self._news.items() if name in held}
        perturbations = [_shape(self._jaxpr.outvars[i]) for i in holding]
        places: dict[int, list[int]] = {}
        for k, i in enumerate(holding):
            places.setdefault(id(self._jaxpr.outvars[i]), []).append(k)

        def run(inputs: list[Any], perturbations: list[Any], given: list[Any]) -> list[Any]:
            given = list(given)
            for i, value in zip(self._inputs, inputs, strict=True):
                given[i] = value

            kept: dict[int, Any] = {}

            def perturbed(var: Any, value: Any) -> Any:
                if id(var) in places:
                    value = kept[id(var)] = sum((perturbations[k] for k in places[id(var)]), value)
                return value

            # The held values depend only on constants and perturbations; all other values also depend on the sources.
            if places:
                _evaluate(self._jaxpr, self._consts, jax.lax.stop_gradient(given), perturbed)
            outs = _evaluate(self._jaxpr, self._consts, given, lambda var, value: kept.get(id(var), value))
            return [outs[i] for i in outputs]

        def tangents(*args: Any) -> list[Any]:
            given, moving, moved = args
            return jax.jvp(lambda inputs, perturbations: run(inputs, perturbations, given), moving, moved)[1]

        moving = ([given[i] for i in self._inputs], perturbations)
        jaxpr: Any = jax.make_jaxpr(tangents)(given, moving, moving).jaxpr
        own, count = [*self._inputs.values()], len(self._inputs) + len(perturbations)
        found = []
        for k in range(len(outputs)):
            used = partial_eval.dce_jaxpr(jaxpr, [k == other for other in range(len(outputs))])[1]
            flags = used[len(used) - count :]
            pick = lambda names, flags: frozenset(n for n, flag in zip(names, flags, strict=True) if flag)  # noqa: E731
            found.append((pick(own, flags[: len(own)]), pick(holding.values(), flags[len(own) :])))
        return found


def _shape(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


def _is_inexact(var: Any) -> bool:
    """Whether a variable can have a derivative."""
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _evaluate(jaxpr: Any, consts: Any, given: list[Any], perturbed: Callable[[Any, Any], Any]) -> list[Any]:
    """Evaluate a jaxpr; each value, also inside of calls, is replaced by ``perturbed(variable, value)``."""
    env = {id(var): value for var, value in zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True)}
    for equation in jaxpr.eqns:
        operands = [read(env, var) for var in equation.invars]
        inner = equation.params.get("jaxpr") if equation.primitive.name in CALLS else None
        if inner is None:
            outs = [perturbed(var, out) for var, out in zip(equation.outvars, bind(equation, operands), strict=True)]
        else:
            outer = {id(var): out for var, out in zip(inner.jaxpr.outvars, equation.outvars, strict=True)}
            within = lambda var, value, outer=outer: perturbed(outer.get(id(var), var), value)  # noqa: E731
            outs = _evaluate(inner.jaxpr, inner.consts, operands, within)
        env |= {id(var): out for var, out in zip(equation.outvars, outs, strict=True)}
    return [read(env, var) for var in jaxpr.outvars]
