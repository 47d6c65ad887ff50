"""``Module.project``, with its result checked: applied to initial values here, and after updates by ``Optimizer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..core.functional import pure
from ..core.module import Module
from ..core.state import parameters
from ..utils.logging import log

type Projection = Callable[[str, Any], Any]
"""``project(name, value) -> value``, for one parameter."""


def projection_of(module: Module) -> Projection | None:
    """``module.project`` as a function that checks its result, or None if the module does not override it."""
    if type(module).project is Module.project:
        return None

    def project(name: str, value: Any) -> Any:
        new = module.project(name, value)
        before, after = _types(value), _types(new)
        if before != after:
            raise ValueError(
                f"{type(module).__name__}.project changes {name!r} from {_text(value)} to {_text(new)}; expected the "
                "same tree, shapes, dtypes and units. Return the value itself for parameters without a constraint"
            )
        # jnp.asarray removes weak types, which an update must not introduce.
        return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), new, value)

    return project


def project_initial_values(module: Module, project: Projection) -> None:
    """Replace the value of each parameter of the module's model by its projection.

    A warning is logged if ``Module.project`` returns every array itself, as if it compares with names of no parameter.

    Raises:
        ValueError: ``Module.project`` draws random numbers or returns a value of another type.
    """
    params, changed = parameters(module.model), set()

    def projected(name: str, value: Any) -> Any:
        new = project(name, value)
        if any(leaf is not old for leaf, old in zip(*map(jax.tree.leaves, (new, value)), strict=True)):
            changed.add(name)
        return new

    for name, state in params.items():
        states, call = pure(lambda value, name=name: projected(name, value), state.value)
        if any(isinstance(used, brainstate.random.RandomState) for used in states):
            raise ValueError(
                f"{type(module).__name__}.project draws random numbers for {name!r}; expected a function of the value "
                "alone, so that all devices compute the same. Draw random numbers in build, into a State of the model"
            )
        state.value = jax.jit(call)([used.value for used in states], state.value)[1]
    if not changed:
        owner, names = type(module).__name__, ", ".join(sorted(params))
        log.warning("%s.project returns every parameter unchanged; names are %s", owner, names)


def _types(value: Any) -> Any:
    """The tree, and the shape and dtype of each leaf."""
    leaves, tree = jax.tree.flatten(value)
    return tree, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _text(value: Any) -> str:
    tree, types = _types(value)
    return f"{[f'{dtype.name}{list(shape)}' for shape, dtype in types]} in {tree}"
