"""Derivatives through one time step: which results have one, with respect to which parameters and states.

A derivative counts unless it is zero for every value: paths through ``stop_gradient``, integers and comparisons do not
count. Inside a function with a custom derivative (a surrogate gradient) that derivative decides.
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
"""Primitives that run a jaxpr as it is."""
Edges = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Flow:
    """Names of the parameters and states that have a derivative in what one time step, or ``init_state``, makes.

    Attributes:
        loss: in the loss of a scored time step.
        direct: parameters in that loss, with the new hidden states held constant.
        output: hidden states whose *new* value is in that loss.
        states: in each new short-term state.
        initial: parameters in each initial short-term state.
    """

    loss: frozenset[str]
    direct: frozenset[str]
    output: frozenset[str]
    states: Edges
    initial: Edges

    @staticmethod
    def of(learner: Learner, phases: Phases) -> Flow:
        objective, network = learner.objective, learner.network
        params, hidden = parameters(network.model), network.hidden
        named = {**params, **hidden}
        first = jax.tree.map(lambda leaf: leaf[0], (scored(phases)[:4], phases.warmup))
        score = _Step(lambda *xs: objective.learn(network, *xs)[0], named, hidden, *first[0])
        loss, states = score.made()
        if phases.warmup is not None:
            _, warm_up = _Step(lambda x: objective.warmup(network, x), named, hidden, first[1]).made()
            states = {name: states[name] | warm_up[name] for name in states}
        direct, output = score.output({name for name, state in hidden.items() if isinstance(state, HiddenState)})
        return Flow(loss, direct & {*params}, output, states, initial_values(network, phases.sizes[2]))

    def within(self, steps: int | None) -> frozenset[str]:
        """What has a derivative in a loss at most ``steps`` time steps later, the first one included; None: ever."""
        found = self.loss
        for _ in range(min(len(self.states), len(self.states) if steps is None else steps - 1)):
            found |= frozenset().union(*(self.states[name] for name in found if name in self.states))
        return found

    def after(self, sources: Iterable[str]) -> frozenset[str]:
        """States that parameters or states have a derivative in, one or more time steps later."""
        found, new = frozenset[str](), frozenset(sources)
        while new:
            new = frozenset(name for name, behind in self.states.items() if behind & new) - found
            found |= new
        return found

    def into(self, name: str) -> frozenset[str]:
        """States by which ``through`` begins: those of the time step itself."""
        return frozenset(state for state, behind in self.states.items() if name in behind) & self.within(None)

    def through(self, name: str) -> frozenset[str]:
        """States by which a parameter has a derivative in the loss of a later time step."""
        return self.after([name]) & self.within(None)

    def begins(self, name: str) -> frozenset[str]:
        """States whose initial value a parameter makes, as far as the loss depends on it."""
        return frozenset(s for s, behind in self.initial.items() if name in behind) & self.within(None)


def initial_values(network: Network, batch_size: int) -> Edges:
    """For each short-term state, the parameters that its initial value has a derivative in."""
    params = parameters(network.model)
    _, made = _Step(lambda: network.reset(batch_size), params, network.hidden).made()
    return {name: behind & {*params} for name, behind in made.items()}


class _Step:
    """A traced call that reads and writes States, and which of its results have a derivative in what."""

    def __init__(self, call: Callable, sources: Mapping[str, State], states: Mapping[str, State], *args: Any):
        """``sources``: derivatives are taken with respect to these. ``states``: those whose new values are results."""
        stateful = StatefulFunction(call, return_only_write=False).make_jaxpr(*args)
        closed: Any = stateful.get_jaxpr(*args)
        self._jaxpr, self._consts = closed.jaxpr, closed.consts
        touched = [state for state in stateful.get_states(*args) for _ in jax.tree.leaves(state.value)]
        scores = len(self._jaxpr.outvars) - len(touched)
        self._scores = [i for i in range(scores) if _moves(self._jaxpr.outvars[i])]
        before, after = ({id(state): name for name, state in of.items()} for of in (sources, states))
        inputs = enumerate(touched, len(self._jaxpr.invars) - len(touched))
        outputs = enumerate(touched, scores)
        own = {i: before.get(id(state)) for i, state in inputs if _moves(self._jaxpr.invars[i])}
        new = {i: after.get(id(state)) for i, state in outputs if _moves(self._jaxpr.outvars[i])}
        self._inputs = {i: name for i, name in own.items() if name is not None}
        self._news = {i: name for i, name in new.items() if name is not None}
        here = {id(state) for state in touched}
        self._kept = {name for name, state in states.items() if id(state) not in here}

    def output(self, held: set[str]) -> tuple[frozenset[str], frozenset[str]]:
        """Behind the loss with the new values of some states held constant: sources, and states by their new values."""
        parts = self._behind(self._scores, held)
        return frozenset().union(*(inputs for inputs, _ in parts)), frozenset().union(*(news for _, news in parts))

    def made(self) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
        """Sources behind the loss, and behind each new state."""
        behind = [inputs for inputs, _ in self._behind([*self._scores, *self._news])]
        count = len(self._scores)
        states = {name: frozenset([name]) for name in self._kept}
        for name, inputs in zip(self._news.values(), behind[count:], strict=True):
            states[name] = states.get(name, frozenset()) | inputs
        return frozenset().union(*behind[:count]), states

    def _behind(self, outputs: list[int], held: Collection[str] = ()) -> list[tuple[frozenset[str], frozenset[str]]]:
        """For each output: the sources, and the held states by their new value, that it has a derivative in."""
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

            # The held values follow from constants and nudges alone; everything else follows from them and the sources.
            if places:
                _evaluate(self._jaxpr, self._consts, jax.lax.stop_gradient(given), perturbed)
            outs = _evaluate(self._jaxpr, self._consts, given, lambda var, value: kept.get(id(var), value))
            return [outs[i] for i in outputs]

        def tangents(*args: Any) -> list[Any]:
            given, moving, moved = args
            return jax.jvp(lambda inputs, perturbations: run(inputs, perturbations, given), moving, moved)[1]

        moving = ([given[i] for i in self._inputs], perturbations)
        made: Any = jax.make_jaxpr(tangents)(given, moving, moving).jaxpr
        own, count = [*self._inputs.values()], len(self._inputs) + len(perturbations)
        found = []
        for k in range(len(outputs)):
            used = partial_eval.dce_jaxpr(made, [k == other for other in range(len(outputs))])[1]
            flags = used[len(used) - count :]
            pick = lambda names, flags: frozenset(n for n, flag in zip(names, flags, strict=True) if flag)  # noqa: E731
            found.append((pick(own, flags[: len(own)]), pick(holding.values(), flags[len(own) :])))
        return found


def _shape(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


def _moves(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _evaluate(jaxpr: Any, consts: Any, given: list[Any], perturbed: Callable[[Any, Any], Any]) -> list[Any]:
    """The results of a jaxpr. Each value, those within calls included, is replaced by ``nudged(variable, value)``."""
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
