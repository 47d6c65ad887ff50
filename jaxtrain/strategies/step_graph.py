"""The equations of one time step of a network, and their evaluation on its States."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..core.state import SHORT, State
from .equations import bind, read
from .network import along

Body = Callable[[dict[int, Any], Any], Any]
"""``body(env, given)``: evaluates a time step into ``env``, the values by id of the variable."""


def walk(equations: Iterable[Any], env: dict[int, Any], outs_of: Callable[[Any, list[Any]], list[Any]]) -> None:
    """Evaluate equations in order into ``env``; ``outs_of(equation, operands)`` computes the results of one."""
    for equation in equations:
        outs = outs_of(equation, [read(env, var) for var in equation.invars])
        env.update((id(var), out) for var, out in zip(equation.outvars, outs, strict=True))


class StepGraph:
    """One time step as equations, of the whole batch or of one sequence.

    Args:
        closed: The closed jaxpr. Its inputs are those of the network, then the States; so are its outputs.
        states: The States in this order.
        names: Their names.
        out_tree: The tree of its outputs.
        axes: For a step of one sequence, the batch axes of each state's leaves by name.
        as_batch: Whether one sequence is a batch of one.

    Attributes:
        jaxpr: The equations.
        variables: For each state: the state, its name, and its variables before and after the time step.
        params: For the variable of each parameter's leaf, by id: the name of the parameter and the number of the leaf.
        short: The variables of each short-term state before and after the time step.
        mapped: Whether the step is of one sequence, and mapped over the batch.
    """

    def __init__(self, closed: Any, states: Sequence[State], names: Sequence[str], out_tree: Any, *,
                 axes: dict[str, list[int | None]] | None = None, as_batch: bool = False):  # fmt: skip
        self.jaxpr, self.consts = closed.jaxpr, closed.consts
        self.states, self._out_tree = list(states), out_tree
        self.mapped, self.as_batch, self._axes = axes is not None, as_batch, axes or {}
        sizes = [len(jax.tree.leaves(state.value)) for state in states]
        invars = iter(self.jaxpr.invars[len(self.jaxpr.invars) - sum(sizes) :])
        self._outvars = self.jaxpr.outvars[: out_tree.num_leaves]  # braintrace appends intermediate values
        outvars = iter(self._outvars[len(self._outvars) - sum(sizes) :])
        self.variables = [
            (state, name, list(islice(invars, size)), list(islice(outvars, size)))
            for state, name, size in zip(states, names, sizes, strict=True)
        ]
        self.params = {
            id(var): (name, leaf)
            for state, name, ins, _ in self.variables
            if isinstance(state, brainstate.ParamState)
            for leaf, var in enumerate(ins)
        }
        self.short = {name: (ins, outs) for state, name, ins, outs in self.variables if isinstance(state, SHORT)}
        self._state_axes = [self._axes.get(name, [None] * len(ins)) for _, name, ins, _ in self.variables]

    @property
    def names(self) -> list[str]:
        """The names of the States."""
        return [name for _, name, _, _ in self.variables]

    def evaluate(self, u: Any, body: Body, given: Any = None, axes: Any = 0) -> tuple[Any, Any]:
        """Run one time step on the States, for the whole batch or sequence by sequence.

        Args:
            u: The input, ``(B, ...)``.
            body: ``body(env, given)`` evaluates the equations into ``env``, which holds values by id of the variable.
            given: Arrays that ``body`` receives.
            axes: Their batch axes, as for ``jax.vmap``; used if the step is mapped.

        Returns:
            The outputs ``(B, ...)``, and what ``body`` returns.
        """
        leaves, tree = jax.tree.flatten([state.value for state in self.states])

        def run(u: Any, values: Any, given: Any) -> tuple[Any, list[Any], Any]:
            env = self._environment(u, values)
            found = body(env, given)
            out, new = self._out_tree.unflatten([read(env, var) for var in self._outvars])
            return out, list(new), found

        if not self.mapped:
            out, new, found = run(u, tree.unflatten(leaves), given)
        else:
            sequence_axes = [axis for own in self._state_axes for axis in own]
            keep = lambda leaf, axis: leaf  # noqa: E731
            add, drop = (jnp.expand_dims, jnp.squeeze) if self.as_batch else (keep, keep)

            def one(u, leaves, given):
                u = jax.tree.map(lambda leaf: add(leaf, 0), u)
                out, new, found = run(u, tree.unflatten(along(add, leaves, sequence_axes)), given)
                new = along(drop, jax.tree.leaves(new), sequence_axes)
                return jax.tree.map(lambda leaf: drop(leaf, 0), out), new, found

            call: Any = jax.vmap(one, in_axes=(0, sequence_axes, axes), out_axes=(0, sequence_axes, 0))
            out, new, found = call(u, leaves, given)
            new = tree.unflatten(new)
        for state, value in zip(self.states, new, strict=True):
            if not isinstance(state, brainstate.ParamState):
                state.value = value
        return out, found

    def of_input(self, u: Any, body: Callable[[dict[int, Any]], Any]) -> Any:
        """What ``body(env)`` computes from the input alone, for the whole batch or sequence by sequence."""

        def run(u: Any) -> Any:
            env = {id(var): value for var, value in zip(self.jaxpr.invars, jax.tree.leaves(u), strict=False)}
            return body(env | {id(var): const for var, const in zip(self.jaxpr.constvars, self.consts, strict=True)})

        if not self.mapped:
            return run(u)
        return jax.vmap(lambda u: run(jax.tree.map(lambda x: x[None], u) if self.as_batch else u))(u)

    def equation_by_equation(self, env: dict[int, Any], given: Any = None) -> None:
        """Evaluate the step as it is."""
        walk(self.jaxpr.eqns, env, bind)

    def axes_of(self, name: str) -> list[int | None]:
        """The batch axes of a hidden state's leaves, of a mapped step."""
        return self._axes[name]

    def _environment(self, u: Any, values: Any) -> dict[int, Any]:
        given = jax.tree.leaves((u, values))
        env = {id(var): value for var, value in zip(self.jaxpr.invars, given, strict=True)}
        return env | {id(var): const for var, const in zip(self.jaxpr.constvars, self.consts, strict=True)}
