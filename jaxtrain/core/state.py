"""Conversions between brainstate States and plain pytrees: the only module that uses brainstate's internals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from brainstate import State

SHORT = brainstate.ShortTermState
"""States that are recreated for every sequence; all other States outlive it."""


def name_of(path: Iterable[Any]) -> str:
    """The dotted name of a state, e.g. ``rnn.layers.0.Wh.weight``."""
    return ".".join(map(str, path))


def states_of(node) -> dict[str, State]:
    """Every State below a node of brainstate's graph (a module, an optimizer), by name."""
    found: Any = brainstate.graph.states(node)
    return {name_of(path): state for path, state in found.items()}


def parameters(model) -> dict[str, brainstate.ParamState]:
    return {name: state for name, state in states_of(model).items() if isinstance(state, brainstate.ParamState)}


def long_term_states(model) -> dict[str, State]:
    """States other than parameters that outlive a sequence: running statistics, a model's own random states."""
    others = (brainstate.ParamState, SHORT)
    return {name: state for name, state in states_of(model).items() if not isinstance(state, others)}


def short_term(model) -> dict[str, State]:
    return {name: state for name, state in states_of(model).items() if isinstance(state, SHORT)}


def is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def differentiable(value: Any) -> bool:
    """Return True if all leaves have a floating or complex dtype."""
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(value))


def with_strong_types(value: Any) -> Any:
    """Copy values to device arrays with strong types; weak types and Python numbers would recompile the second step."""

    def one(leaf):  # always a copy: donated buffers are not always marked as deleted
        if is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        array = jnp.asarray(leaf)
        return jax.device_put(np.asarray(array), may_alias=False)  # jnp.array would compile a program for each shape

    return jax.tree.map(one, value)


def stack(values: list[Any]) -> Any:
    """Stack pytrees of arrays along a new leading axis of each leaf."""

    def one(*leaves):
        if is_key(leaves[0]):
            return jax.random.wrap_key_data(one(*map(jax.random.key_data, leaves)), impl=jax.random.key_impl(leaves[0]))
        return jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves]))

    return jax.tree.map(one, *values)


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm over all leaves; physical units are ignored."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree)))


def drop_weak_types(states: Iterable[State]) -> None:
    """Convert the values of States to strong types."""
    for state in states:
        state.value = with_strong_types(state.value)


def wide_zeros(value: Any) -> Any:
    """Zeros for accumulating gradients of ``value``: at least float32, whatever the parameter's dtype."""
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.promote_types(leaf.dtype, jnp.float32)), value)


def add_to(total: Any, more: Any) -> Any:
    """``total + more`` in the dtypes of ``total``."""
    return jax.tree.map(lambda t, m: t + m.astype(t.dtype), total, more)


def set_key(key: jax.Array) -> None:
    """Set the root of all random numbers that a step draws from ``brainstate.random``."""
    brainstate.random.DEFAULT.value = key


def fold_in(root: jax.Array, *numbers: Any) -> jax.Array:
    for number in numbers:
        root = jax.random.fold_in(root, number)
    return root


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context for creating initial values under a seed; afterwards the caller's random state is restored."""
    before = brainstate.random.DEFAULT.value
    try:
        set_key(jax.random.key(seed))
        yield
    finally:
        set_key(before)


# ---------------------------------------------------------------------------------------------- hidden states


def create_hidden(model, batch_size: int, vmapped: bool) -> None:
    """Give the model hidden states for a batch.

    With ``vmapped``, ``init_state`` is mapped over the sequences; otherwise it creates states with a batch axis. States
    that outlive a sequence keep their values, even if ``init_state`` recreates the State. The random state is kept too,
    so random initial hidden states are the same however often they are created before a run.
    """
    before, key = states_of(model), brainstate.random.DEFAULT.value
    _init_states(model, batch_size, vmapped)
    brainstate.random.DEFAULT.value = key
    for name, state in states_of(model).items():
        old = before.get(name, state)
        if old is not state and not isinstance(state, SHORT) and _alike(old.value, state.value):
            state.value = old.value


def _alike(a: Any, b: Any) -> bool:
    types = [jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), value) for value in (a, b)]
    return types[0] == types[1]


def _init_states(model, batch_size: int, vmapped: bool) -> None:
    if vmapped:

        @brainstate.transform.vmap_new_states(state_tag="new", axis_size=batch_size)
        def init():
            brainstate.nn.init_all_states(model)

        init()
    else:
        brainstate.nn.init_all_states(model, batch_size=batch_size)


def fresh_hidden(model, batch_size: int, vmapped: bool) -> dict[str, Any]:
    """The values that ``init_state`` creates, by name; the model keeps its State objects.

    ``init_all_states`` replaces State objects, and programs compiled with the old ones would keep using those.
    Therefore the attributes of every node are restored.
    """
    with attributes_kept(model):
        _init_states(model, batch_size, vmapped)
        return {name: state.value for name, state in short_term(model).items()}


def restore_objects(nodes: list[tuple[Any, dict[str, State]]]) -> None:
    """Restore the State objects returned by ``state_objects``; a program traced with them does not use any others."""
    for node, states in nodes:
        vars(node).update(states)


def state_objects(model) -> list[tuple[Any, dict[str, State]]]:
    """The nodes of a model, each with its attributes that are States."""
    only_states = lambda held: {name: value for name, value in held.items() if isinstance(value, State)}  # noqa: E731
    return [(node, only_states(vars(node))) for node in _nodes(model)]


def _nodes(model) -> list[Any]:
    found: Any = brainstate.graph.nodes(model)
    return list({id(node): node for node in found.values()}.values())


@contextmanager
def attributes_kept(model) -> Iterator[None]:
    """Context after which the attributes of every node of a model are restored, State objects included."""
    kept = [(node, dict(vars(node))) for node in _nodes(model)]
    try:
        yield
    finally:
        for node, attributes in kept:
            vars(node).clear()
            vars(node).update(attributes)


# ---------------------------------------------------------------------------------------------- flat arrays


def kind_of(batch: Any) -> tuple[Any, ...]:
    """The tree, shapes and dtypes of a batch; batches of one kind share a compiled program."""
    leaves, tree = jax.tree.flatten(batch)
    return tree, tuple((np.shape(leaf), str(np.asarray(leaf).dtype)) for leaf in leaves)


def leaf_names(values: dict[str, Any]) -> list[str]:
    """One name per leaf: the state's name and the path inside its value."""
    return [_leaf_name(name, path) for name, value in values.items() for path, _ in _leaves(value)]


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Convert ``{name: pytree}`` to ``{leaf name: array}``; random keys become their uint32 data.

    Raises ValueError if two leaves have the same name.
    """
    flat = {}
    for name, value in values.items():
        for path, leaf in _leaves(value):
            key = _leaf_name(name, path)
            if key in flat:
                raise ValueError(f"two arrays of the state are both named {key!r}: rename one of them")
            flat[key] = jax.random.key_data(leaf) if is_key(leaf) else leaf
    return flat


def unflatten(template: dict[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten``; ``template`` provides the trees, the units, and which leaves are random keys."""
    result = {}
    for name, value in template.items():
        leaves = []
        for path, leaf in _leaves(value):
            array = jnp.asarray(flat[_leaf_name(name, path)])
            leaves.append(jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if is_key(leaf) else array)
        result[name] = jax.tree.unflatten(jax.tree.structure(value), leaves)
    return result


def signature(flat: dict[str, Any]) -> dict[str, str]:
    """``{leaf name: "float32[3,4]"}``, for comparing a checkpoint with a live model."""
    return {name: f"{np.dtype(leaf.dtype).name}{list(np.shape(leaf))}" for name, leaf in flat.items()}


def _leaves(value: Any):
    return jax.tree_util.tree_leaves_with_path(value)


def _leaf_name(name: str, path: Any) -> str:
    inside = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"{name}.{inside}" if inside else name
