"""Whether a model over a batch, and its loss, treat every sequence by itself: one time step on random values, taken in
several ways."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brainstate.transform import StatefulFunction

from ..core.functional import draws_random, pure
from ..core.module import Objective, Phases
from ..core.state import SHORT, create_hidden, fresh_hidden, is_key, seeded, states_of
from ..utils.logging import one_line
from .network import Network

Way = Callable[[dict[str, Any], Any], dict[str, Any]]
"""``way(values, u)``: the output of a time step, under "the output", and the new hidden states by name."""
DRAWS = 3
"""A unit so close to its threshold that rounding decides may differ in one draw; a model that mixes sequences differs
in all."""


def dependence(model, u: Any, batch_size: int) -> str:
    """Why a model with batched hidden states is another one when it is mapped over sequences; "" where it is not.

    Leaves the model with the hidden states of the mapped one.
    """
    try:
        with seeded(0):
            batched, begin, kept = Network(model, "batched"), fresh_hidden(model, batch_size, False), _values(model)
            places, first = batched.axes(batch_size), way(batched, model, u)
        if draws_random(batched, u):
            return "it draws random numbers, and other ones than for a whole batch"
        with seeded(0):
            create_hidden(model, batch_size, True)
        with seeded(0):
            mapped, mapped_begin = Network(model, "vmap"), fresh_hidden(model, batch_size, True)
            mapped_places, second = mapped.axes(batch_size), way(mapped, model, u)

        def as_mapped(values: dict[str, Any]) -> dict[str, Any]:
            """Hidden states with the axes that mapping gives them."""

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
            found = first(values, u)
            return {**found, **as_mapped(found)}

        def one_by_one(values: dict[str, Any], u: Any) -> dict[str, Any]:
            return second({**values, **as_mapped(values)}, u)

        return compare(over_batch, one_by_one, kept, begin, u)
    except Exception as error:  # mapping is only faster: whatever it runs into is a reason against it
        return one_line(error)


def mixed_loss(objective: Objective, network: Network, phases: Phases) -> str:
    """A line for the report where the loss of one sequence depends on the outputs or targets of others; else "".

    So it does where shapes broadcast by mistake. Outputs (ones here), and targets of a floating type, get random
    numbers added in the first sequence, in all others, in both and in none. A loss per sequence must stay the same in
    the first one where only others change; of one number for the batch both changes must add up.
    """
    batch, step = phases.sizes[2], objective.module.learning_step
    if batch == 1:
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
            made = StatefulFunction(network).make_jaxpr(u).get_out_shapes(u)[0]
            shapes[:] = [leaf.shape for leaf in jax.tree.leaves(made)]
            return every(jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), made), 0)

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
        if traced.jaxpr.effects:  # what it prints, say, would be seen before step 0
            return ""
        found = np.asarray(traced.lower().compile()(values, x, y, extras))
    none, rest, one, both = found.reshape(4, -1)
    mixed = (rest - none if found.ndim > 1 else both - one - rest + none)[0]
    if not abs(mixed) > 1e-4 * np.abs(found).max():
        return ""
    given = ", ".join(map(str, [*shapes, *(jnp.shape(leaf) for leaf in jax.tree.leaves(y))]))
    return (
        f"{type(objective.module).__name__}.learning_step mixes sequences: the loss of one depends on the outputs or "
        f"targets of others; if that is not meant, see whether its shapes broadcast (output and targets are {given}; "
        f"an array ({batch},) minus one ({batch}, 1) is ({batch}, {batch}))"
    )


def way(call: Callable, model, u: Any) -> Way:
    """A call that runs the model on its States, as a function of their values by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
        states, run = pure(call, u)
    names = {id(state): name for name, state in states_of(model).items()}

    def step(values: dict[str, Any], u: Any) -> dict[str, Any]:
        new, out = run([values.get(names.get(id(state), ""), state.value) for state in states], u)
        ours = zip(states, new, strict=True)
        return {
            "the output": out,
            **{names[id(state)]: value for state, value in ours if isinstance(state, SHORT) and id(state) in names},
        }

    return step


def compare(first: Way, second: Way, kept: dict[str, Any], begin: dict[str, Any], u: Any) -> str:
    """What two ways to take a time step differ in, on random inputs and hidden states; "" where they agree.

    ``kept``: values of States that stay as they are. ``begin``: of the hidden states, around which they are drawn.
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
    """Random values like ``value``, around it and as large as it is."""

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
    """Leaf by leaf, whether two values are the same but for rounding."""

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
