"""Checks that a model and its loss treat each sequence of a batch independently.

They run one time step on random values in several ways and compare the results.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brainstate.transform import StatefulFunction

from ..core.functional import draws_random, pure
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import SHORT, create_hidden, fresh_hidden, is_key, seeded, states_of
from ..utils.logging import one_line
from .network import Network

Way = Callable[[dict[str, Any], Any], dict[str, Any]]
"""``way(values, u)`` runs a time step. It returns the output under the key "the output", and the new hidden states by
name."""
DRAWS = 3
"""Random inputs that are tried. A unit may be so close to its threshold that rounding decides, which makes one of them
differ; a model that mixes sequences differs in all."""


def dependence(model, u: Any, batch_size: int) -> str:
    """Check whether a model with batched hidden states behaves the same when it is mapped over sequences.

    Afterwards the model has the hidden states of the mapped one.

    Returns:
        The difference, or "" if there is none.
    """
    try:
        with seeded(0):
            batched, begin, kept = Network(model, "batched"), fresh_hidden(model, batch_size, False), _values(model)
            places, first = batched.axes(batch_size), way(batched, model, u)
        if draws_random(batched, u):
            return "it draws random numbers, which would differ from those for a whole batch"
        with seeded(0):
            create_hidden(model, batch_size, True)
        with seeded(0):
            mapped, mapped_begin = Network(model, "vmap"), fresh_hidden(model, batch_size, True)
            mapped_places, second = mapped.axes(batch_size), way(mapped, model, u)

        def as_mapped(values: dict[str, Any]) -> dict[str, Any]:
            """Hidden states with the axes of the mapped model."""

            def one(leaf: Any, axis: int | None, to: int | None) -> Any:
                if axis is None:
                    return leaf if to is None else jnp.broadcast_to(leaf, (batch_size, *leaf.shape))
                return jnp.moveaxis(leaf, axis, 0)

            moved = {}
            for name in values.keys() & places.keys():
                leaves, tree = jax.tree.flatten(values[name])
                each = zip(leaves, places[name], mapped_places[name], strict=True)
                moved[name] = tree.unflatten([one(*leaf) for leaf in each])
            return moved

        for name, value in as_mapped(begin).items():
            if not all(jax.tree.leaves(_alike(value, mapped_begin[name]))):
                return f"init_state makes other values of {name!r} without a batch axis"

        def over_batch(values: dict[str, Any], u: Any) -> dict[str, Any]:
            results = first(values, u)
            return {**results, **as_mapped(results)}

        def one_by_one(values: dict[str, Any], u: Any) -> dict[str, Any]:
            return second({**values, **as_mapped(values)}, u)

        return compare(over_batch, one_by_one, kept, begin, u)
    except Exception as error:  # mapping is only an optimisation, so any error is a reason not to map
        return one_line(error)


def mixed_loss(objective: Objective, network: Network, phases: Phases) -> str:
    """Check whether the loss of a sequence depends on the outputs or targets of others, as after a wrong broadcast.

    Random numbers are added to the outputs (ones here) and to targets of a floating type: in the first sequence, in all
    others, in both, and in none. If the loss has one value per sequence, the first value must not change when only
    others do. If it is one number for the batch, the two changes must add up.

    Returns:
        A line for the report, or "" if the sequences are independent.
    """
    batch, step = phases.sizes[2], objective.module.learning_step
    if batch == 1 or objective.by_sequence:  # a time step has no loss of its own
        return ""
    shapes: list[Any] = []

    def loss(first: jax.Array, others: jax.Array, x: Any, y: Any, extras: dict[str, Any]) -> jax.Array:
        size = jnp.where(jnp.arange(batch) == 0, first, others)

        def changed(number: int, leaf: Any) -> Any:
            if is_key(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.shape[:1] != (batch,):
                return leaf
            noise = np.random.default_rng(number).normal(size=leaf.shape)  # compiles faster than jax.random
            return leaf + (noise * size.reshape(-1, *(1,) * (leaf.ndim - 1))).astype(leaf.dtype)

        def every(tree: Any, start: int) -> Any:
            leaves, of = jax.tree.flatten(tree)
            return of.unflatten([changed(start + number, leaf) for number, leaf in enumerate(leaves)])

        def forward(u: Any) -> Any:
            out = StatefulFunction(network).make_jaxpr(u).get_out_shapes(u)[0]
            shapes[:] = [leaf.shape for leaf in jax.tree.leaves(out)]
            return every(jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), out), 0)

        result = step(forward, objective.encode(x), every(y, 100), **extras)
        return jnp.asarray(result[0] if isinstance(result, tuple) else result, jnp.float32)

    x, y, extras = jax.tree.map(lambda leaf: leaf[0], (phases.inputs, phases.targets, phases.extras or {}))
    changes = tuple(np.array([[0, 0, 1, 1], [0, 1, 0, 1]], np.float32))  # of the first sequence, and of all others
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
        states, run = pure(loss, *(change[0] for change in changes), x, y, extras)
        values = [state.value for state in states]
        each = jax.jit(lambda values, *rest: jax.lax.map(lambda at: run(values, *at, *rest)[1], changes))
        traced = each.trace(values, x, y, extras)
        if traced.jaxpr.effects:  # a print in the loss, for example, must not run before step 0
            return ""
        # It runs once, so it is compiled with little optimization.
        quickly = traced.lower().compile(compiler_options={"xla_backend_optimization_level": 0})
        losses = np.asarray(quickly(values, x, y, extras))
    none, rest, one, both = losses.reshape(4, -1)
    mixed = (rest - none if losses.ndim > 1 else both - one - rest + none)[0]
    if not abs(mixed) > 1e-4 * np.abs(losses).max():
        return ""
    given = ", ".join(map(str, [*shapes, *(jnp.shape(leaf) for leaf in jax.tree.leaves(y))]))
    return (
        f"{type(objective.module).__name__}.learning_step mixes sequences: the loss of one depends on the outputs or "
        f"targets of others; if that is not meant, see whether its shapes broadcast (output and targets are {given}; "
        f"an array ({batch},) minus one ({batch}, 1) is ({batch}, {batch}))"
    )


def way(call: Callable, model, u: Any) -> Way:
    """Turn a call that runs the model on its States into a function of their values by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
        states, run = pure(call, u)
    names = {id(state): name for name, state in states_of(model).items()}

    def step(values: dict[str, Any], u: Any) -> dict[str, Any]:
        new, out = run([values.get(names.get(id(state), ""), state.value) for state in states], u)
        known = [(s, value) for s, value in zip(states, new, strict=True) if isinstance(s, SHORT) and id(s) in names]
        return {"the output": out, **{names[id(state)]: value for state, value in known}}

    return step


def compare(first: Way, second: Way, kept: dict[str, Any], begin: dict[str, Any], u: Any) -> str:
    """Compare two ways to run a time step, on random inputs and hidden states.

    Args:
        first: One way.
        second: The other way.
        kept: Values of the States that are not varied.
        begin: Values of the hidden states, around which random values are drawn.
        u: Shapes and dtypes of the input.

    Returns:
        The difference, or "" if they agree.
    """

    @jax.jit
    def agree(key: jax.Array, kept: dict[str, Any]) -> dict[str, jax.Array]:
        inputs, hidden = jax.random.split(key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), u)
        values, x = {**kept, **_drawn(hidden, begin)}, _drawn(inputs, zeros)
        ours, theirs = first(values, x), second(values, x)
        every = lambda tree: jax.tree.reduce(jnp.logical_and, tree, jnp.asarray(True))  # noqa: E731
        return {name: every(_alike(value, theirs[name])) for name, value in ours.items()}

    wrong: list[str] = []
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
        for draw in range(DRAWS):
            wrong = [name for name, same in agree(jax.random.key(draw), kept).items() if not same]
            if not wrong:
                return ""
    return f"a time step over the batch gives another value of {wrong[0]} than one sequence at a time"


def _values(model) -> dict[str, Any]:
    return {name: state.value for name, state in states_of(model).items() if not isinstance(state, SHORT)}


def _drawn(key: jax.Array, value: Any) -> Any:
    """Random values around ``value`` and of its magnitude."""

    def one(number: int, leaf: Any) -> Any:
        own = jax.random.fold_in(key, number)
        if is_key(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf + (1 + jnp.abs(leaf)) * jax.random.normal(own, leaf.shape, leaf.dtype)
        return (leaf + jax.random.bernoulli(own, 0.5, leaf.shape)).astype(leaf.dtype)

    leaves, tree = jax.tree.flatten(value)
    return tree.unflatten([one(number, leaf) for number, leaf in enumerate(leaves)])


def _alike(a: Any, b: Any) -> Any:
    """For each leaf, whether two values are equal up to rounding."""

    def one(a: Any, b: Any) -> jax.Array:
        if a.shape != b.shape:
            return jnp.asarray(False)
        if is_key(a):
            return (jax.random.key_data(a) == jax.random.key_data(b)).all()
        same = (a == b) | ((a != a) & (b != b))
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return same.all()
        size = jnp.max(jnp.where(jnp.isfinite(b), jnp.abs(b), 0), initial=0)
        return (same | (jnp.abs(a - b) <= 100 * jnp.finfo(a.dtype).eps * size)).all()

    return jax.tree.map(one, a, b)
