"""Functions that read and write States: as pure functions, as jaxprs, and what their results depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import brainstate
import jax
from brainstate.transform import StatefulFunction
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import partial_eval

from .state import SHORT, State, parameters


def gradient(function: Callable, states: Any) -> Callable[..., tuple[Any, Any]]:
    """Turn a function that returns ``(loss, auxiliary)`` into one that returns ``(gradients, auxiliary)``.

    Gradients have the tree of ``states``, which holds the States to differentiate with respect to.
    """
    # A parameter that the loss does not use gets zeros; the report and the check of the first update name it.
    return cast(Any, brainstate.transform.grad(function, states, has_aux=True, check_states=False))


def pure(function: Callable, *args: Any) -> tuple[list[State], Callable]:
    """The States that ``function(*args)`` uses, and a pure ``call(values, *args) -> (new values, result)``."""
    stateful = _traced(function, *args)
    return list(stateful.get_states(*args)), stateful.jaxpr_call


class Functional:
    """A function that reads and writes States, as a pure function of a dict of their values.

    ``functional(values, *args) -> (new values, result)``.

    Args:
        function: The function.
        named: States that outlive the call, by name.
        short_term_states: States that the function sets before it reads them, so their previous values do not matter.
        *example: Example arguments, for tracing.
        axes: ``(name, size)`` of the mesh axes under which the function will run.

    Attributes:
        jaxpr: The closed jaxpr of the function.
        result: Shapes and dtypes of the result, in its tree.

    Raises:
        ValueError: The function uses a State that is neither named nor short-term.
    """

    def __init__(self, function: Callable, named: dict[str, State], short_term_states: Iterable[State], *example: Any,
                 axes: Sequence[tuple[str, int]] | None = None):  # fmt: skip
        stateful = _traced(function, *example, axes=axes)
        names = {id(state): name for name, state in named.items()}
        free = {id(state) for state in short_term_states} | {id(brainstate.random.DEFAULT)}
        states = stateful.get_states(*example)
        for state in states:
            if id(state) not in names and id(state) not in free:
                raise ValueError(
                    f"the step touches a {type(state).__name__} that belongs neither to the model nor to the optimizer "
                    f"(value {jax.tree.map(jax.numpy.shape, state.value)}): make it an attribute of the module's "
                    "model; if a learning rule created it, put it into Learner.own, or return it from Learner.states()"
                )
        self._call = stateful.jaxpr_call
        self._states = [(names.get(id(state)), state.value) for state in states]
        self.jaxpr: Any = stateful.get_jaxpr(*example)
        self.result = cast(Any, stateful.get_out_shapes(*example))[0]

    def __call__(self, values: dict[str, Any], *args: Any) -> tuple[dict[str, Any], Any]:
        given = [initial if name is None else values[name] for name, initial in self._states]
        returned, result = self._call(given, *args)
        new = dict(values)
        for (name, _), value in zip(self._states, returned, strict=True):
            if name is not None:
                new[name] = _same_type(name, values[name], value)
        return new, result


def _same_type(name: str, before: Any, after: Any) -> Any:
    """Return ``after`` if its tree, shapes and dtypes equal those of ``before``, else raise ValueError.

    A State that changes them would make the next step another program.
    """
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"state {name!r} changes its structure within a step; a State keeps its tree, shapes and dtypes"
        )
    for leaf, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        a, b = jax.typeof(leaf), jax.typeof(new)
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"state {name!r} changes from {a.str_short()} to {b.str_short()} within a step; "
                "a State keeps its shapes and dtypes (cast what is assigned to it)"
            )
    return after


# -------------------------------------------------------------------------------------------- dependencies


def _traced(call: Callable, *args: Any, axes: Any = None) -> StatefulFunction:
    """The call, traced. Its jaxpr returns the value of every State that it uses, after its results."""
    return StatefulFunction(call, return_only_write=False, axis_env=axes).make_jaxpr(*args)


def traced(call: Callable, *args: Any) -> Any:
    """The closed jaxpr of a call that may read and write States."""
    return _traced(call, *args).get_jaxpr(*args)


def draws_random(model: Callable, x: Any) -> bool:
    """Return True if one call of the model draws random numbers."""
    return any(isinstance(state, brainstate.random.RandomState) for state in pure(model, x)[0])


def parameters_behind(call: Callable, model, x: Any) -> set[str]:
    """Names of the parameters that the new short-term states depend on, after one call of the model."""
    used, states = _used(call, (x,), lambda state: isinstance(state, SHORT))
    names = {id(state): name for name, state in parameters(model).items()}
    leaves = iter(used[len(jax.tree.leaves(x)) :])
    reached = [(state, any([next(leaves) for _ in jax.tree.leaves(state.value)])) for state in states]  # noqa: C419
    return {names[id(state)] for state, is_used in reached if is_used and id(state) in names}


def reaches_states(call: Callable, *args: Any) -> list[bool]:
    """For each leaf of the arguments: whether the value of any State after the call depends on it."""
    return _used(call, args, lambda state: True)[0][: len(jax.tree.leaves(args))]


def _used(call: Callable, args: tuple, wanted: Callable[[State], bool]) -> tuple[list[bool], list[State]]:
    """What the new values of the wanted States depend on.

    Returns:
        For each leaf of the arguments, then of the States' values: whether any wanted value depends on it; the States.
    """
    stateful = _traced(call, *args)
    closed: Any = stateful.get_jaxpr(*args)
    states = list(stateful.get_states(*args))
    of_states = [wanted(state) for state in states for _ in jax.tree.leaves(state.value)]
    results = len(closed.jaxpr.outvars) - len(of_states)
    # Traced again, since brainstate's jaxpr does not name its arguments as dead-code elimination expects.
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars]
    plain = jax.make_jaxpr(jaxpr_as_fun(closed))(*shapes)
    return partial_eval.dce_jaxpr(plain.jaxpr, [False] * results + of_states)[1], states
