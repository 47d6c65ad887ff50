"""Checks before States are created that their memory can be allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import brainstate
import jax

from ..utils import memory
from .state import attributes_kept, parameters, short_term, states_of

SMALL = 64
"""Traces that fit this often need no check, which takes a fraction of a second."""


def require_room_for_traces(make: Callable[[], Any], model: Any, batch_size: int, mapped: bool) -> None:
    """Raise InsufficientMemory if the States of a rule cannot be allocated.

    Args:
        make: Creates an object that holds them. It is traced, so nothing is allocated.
        model: The model that the rule trains; its States stay as they are.
        batch_size: Number of sequences.
        mapped: Whether the model is mapped over sequences. A rule may then trace each weight's effect on every unit.
    """
    free = memory.available()
    weights = sum(leaf.nbytes for state in parameters(model).values() for leaf in jax.tree.leaves(state.value))
    units = sum(leaf.size for state in short_term(model).values() for leaf in jax.tree.leaves(state.value))
    if free is None or batch_size * weights * max(1, units if mapped else 1) < free / SMALL:
        return

    def values() -> list[Any]:
        states, known = states_of(make()), {id(state) for state in states_of(model).values()}
        return [state.value for state in states.values() if id(state) not in known]

    with attributes_kept(model):
        try:
            shapes: Any = brainstate.transform.StatefulFunction(values).make_jaxpr().get_out_shapes()[0]
        except jax.errors.ConcretizationTypeError:
            # braintrace's UORO reads a number while it is created. It keeps one value per sequence and weight.
            shapes = [jax.ShapeDtypeStruct((batch_size, weights), "uint8")]
    require_traces(jax.tree.leaves(shapes))


def require_traces(shapes: Iterable[Any]) -> None:
    """Raise InsufficientMemory if arrays of these shapes and dtypes cannot be allocated.

    One of them at a time exists twice, when it is copied to a strong type.
    """
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in shapes]
    advice = "use a smaller batch or model, or a strategy without a trace of size batch x parameters"
    memory.require(sum(sizes) + max(sizes, default=0), "the trace of the strategy", advice)
