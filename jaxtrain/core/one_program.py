"""Creates a model whose initial values one compiled program computes, instead of a program for each operation.

Outside of ``jax.jit``, JAX compiles a program for each operation: about fifty for a small network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Literal
from jax.extend.core.primitives import jit_p

from .state import states_of

LEVEL = "xla_backend_optimization_level"
"""Option of XLA: how much LLVM optimizes. The program runs once, so little is enough, and its numbers are the same."""

MOVES = {"broadcast_in_dim", "concatenate", "dynamic_slice", "reshape", "slice", "squeeze", "transpose"}
"""Names of primitives that compute nothing."""

_waiting: list[tuple[Callable, tuple[Any, ...]]] | None = None
"""Calls that wait for values of the model that is being traced; None if no model is."""


def in_one_program(make: Callable[[], Any]) -> Any:
    """Create a model. Its initial values are those of ``make()``, bit for bit, but one compiled program computes them.

    Args:
        make: Creates the model. On CPU it is traced, so only States may hold arrays that are computed.

    Returns:
        The model.
    """
    global _waiting
    if jax.default_backend() != "cpu":
        return make()
    made: list[Any] = []
    calls: list[tuple[Callable, tuple[Any, ...]]] = []

    def values() -> Any:
        calls.clear()  # brainstate may trace twice, and the last time counts
        made[:] = [make()]
        return [state.value for state in states_of(made[0]).values()], [arrays for _, arrays in calls]

    before, _waiting = _waiting, calls
    try:
        traced = brainstate.transform.StatefulFunction(values, return_only_write=False).make_jaxpr()
    finally:
        _waiting = before
    read = list(traced.get_states())
    leaves = _run(traced.get_jaxpr(), jax.tree.leaves([state.value for state in read]))
    (initial, given), after = jax.tree.unflatten(jax.tree.structure(traced.get_out_shapes()), leaves)
    created = list(states_of(made[0]).values())
    for state, value in zip([*created, *read], [*initial, *after], strict=True):
        state.value = value
    for state in created:
        state.decrease_stack_level()  # as if it had been created outside of the trace, so that later traces see it
    for (function, _), arrays in zip(calls, given, strict=True):
        function(*arrays)
    return made[0]


def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, bit for bit, computed by one compiled program.

    Args:
        function: Takes and returns pytrees of arrays. If it cannot be traced, its operations run one by one.
        *arguments: Its arguments.
    """
    if jax.default_backend() != "cpu":
        return function(*arguments)
    try:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    except TypeError:  # it needs the values of its arguments, or returns something else
        return function(*arguments)
    return jax.tree.unflatten(jax.tree.structure(shapes), _run(closed, jax.tree.leaves(arguments)))


def when_known(function: Callable[..., None], *arrays: Any) -> None:
    """Call a function with arrays that it must know, for example to seed numpy.

    Within ``in_one_program``, it is called after the program has computed them.
    """
    if _waiting is None:
        function(*arrays)
    else:
        _waiting.append((function, arrays))


def _run(closed: Any, arguments: list[Any]) -> list[Any]:
    """Evaluate a closed jaxpr in one program whose numbers are those of its operations outside of ``jax.jit``.

    XLA compiles each operation that rounds separately: a product and a sum together would be rounded once, not twice.
    Literals are arguments, since XLA computes with constants when it compiles, which may round differently.
    """
    atoms = [atom for eqn in closed.jaxpr.eqns for atom in eqn.invars] + closed.jaxpr.outvars
    literals = {id(atom): atom.val for atom in atoms if isinstance(atom, Literal)}

    def initial_values(numbers: list[Any], constants: list[Any], arguments: list[Any]) -> list[Any]:
        names = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
        known: dict[Any, Any] = dict(zip(names, [*constants, *arguments], strict=True))
        number = dict(zip(literals, numbers, strict=True))
        value = lambda atom: number[id(atom)] if isinstance(atom, Literal) else known[atom]  # noqa: E731
        functions: dict[Hashable, Any] = {}
        for eqn in closed.jaxpr.eqns:
            operation, values = _operation(eqn), [value(atom) for atom in eqn.invars]
            results: Any
            if _is_exact(eqn):
                results = operation(*values)
            else:
                call = operation if eqn.primitive is jit_p else functions.setdefault(_kind(eqn), jax.jit(operation))
                results = set_xla_metadata(call(*values), inlineable="false")
            known |= dict(zip(eqn.outvars, results, strict=True))
        return [value(atom) for atom in closed.jaxpr.outvars]

    options = None if LEVEL in os.environ.get("XLA_FLAGS", "") else {LEVEL: 1}
    return jax.jit(initial_values, compiler_options=options)(list(literals.values()), closed.consts, arguments)


def _is_exact(eqn: Any) -> bool:
    """Whether an equation only moves numbers, or computes none that are rounded."""
    inexact = any(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars)
    return eqn.primitive.name in MOVES or not (inexact or eqn.primitive is jit_p)


def _kind(eqn: Any) -> Hashable:
    """Equal for equations that compute the same function of their inputs."""
    kind = eqn.primitive, tuple(eqn.params.items())
    try:
        hash(kind)
    except TypeError:
        return id(eqn)
    return kind


def _operation(eqn: Any) -> Callable[..., list[Any]]:
    """An equation as a function that returns a list."""

    def operation(*values: Any) -> list[Any]:
        result = eqn.primitive.bind(*values, **eqn.params)
        return list(result) if eqn.primitive.multiple_results else [result]

    return operation
