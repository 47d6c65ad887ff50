"""The arrays of the time steps of a batch, and the input that a module's step makes of them for the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import brainstate
import jax

from ..core.module import Phases
from ..core.objective import Objective, weights_of


def split_reset(phases: Phases) -> tuple[Any, Any]:
    """Split ``Phases.reset`` into the warm-up and the learning phase."""
    warm = phases.sizes[0]
    return (None, None) if phases.reset is None else (phases.reset[:warm], phases.reset[warm:])


def scored(phases: Phases) -> tuple[Any, ...]:
    """The arrays of the learning phase: inputs, targets, weights, extras, reset; each ``(T_l, B, ...)``."""
    return phases.inputs, phases.targets, weights_of(phases), phases.extras or {}, split_reset(phases)[1]


class _Captured(BaseException):
    """Carries the model's input out of a module's step."""


class NeverCalled(Exception):
    """A module's step never calls ``forward``."""


def input_in(step: Callable[..., Any], *args: Any) -> Any:
    """The model's input in ``step(forward, *args)``. What follows the call of ``forward`` is not run.

    Raises:
        NeverCalled: The step does not call it.
    """

    def forward(u: Any) -> Any:
        raise _Captured(u)

    try:
        step(forward, *args)
    except _Captured as captured:
        return captured.args[0]
    raise NeverCalled


def input_of(objective: Objective, phases: Phases, kind: Literal["learn", "evaluate", "predict"] = "learn") -> Any:
    """Find the model's input in one time step, which the module may compute from the batch.

    Args:
        objective: The module, with its model and its loss.
        phases: An example of a batch.
        kind: Which step of the module is traced.

    Returns:
        Shapes and dtypes, ``(B, ...)``.
    """
    name = {"learn": "learning", "evaluate": "evaluation", "predict": "predict"}[kind]

    def first(*slices: Any) -> Any:
        try:
            return input_in(getattr(objective, kind), *slices[: 1 if kind == "predict" else None])
        except NeverCalled:
            model = "which runs the model"
            raise ValueError(f"{type(objective.module).__name__}.{name}_step never calls forward, {model}") from None
        except Exception as error:
            error.add_note(f"jaxtrain: raised before {name}_step called forward(x), which is what runs the model")
            raise

    head = jax.tree.map(lambda leaf: leaf[0], scored(phases)[:4])
    return brainstate.transform.StatefulFunction(first).make_jaxpr(*head).get_out_shapes(*head)[0]
