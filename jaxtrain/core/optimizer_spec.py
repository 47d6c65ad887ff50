"""What ``Module.configure_optimizer`` may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import optax

if TYPE_CHECKING:
    from braintools.optim import OptaxOptimizer

type Schedule = float | Callable[[Any], Any]
"""A learning rate, or a function from the number of updates to the learning rate."""
type OneOptimizer = optax.GradientTransformation | OptaxOptimizer
type Configured = (
    OneOptimizer
    | Mapping[str, OneOptimizer]
    | tuple[optax.GradientTransformation, Schedule]
    | tuple[Mapping[str, OneOptimizer], Mapping[str, Schedule]]
)


def split_schedule(returned: Any, where: str = "configure_optimizer") -> tuple[Any, Any]:
    """Separate an optimizer from the learning rate that is to be logged.

    Args:
        returned: What ``Module.configure_optimizer`` returned: an optimizer, a pair ``(optimizer, schedule)``, a dict
            ``{label: optimizer}``, or a pair of such a dict and a dict ``{label: schedule}``.
        where: Name of the method, for messages.

    Returns:
        ``(optimizer, schedule)``. The schedule is None if there is none. For several optimizers it is a dict, which
        may lack labels.

    Raises:
        TypeError: A tuple is not a pair, its second part is not a learning rate, or its first part is not an optax
            transformation.
        ValueError: A schedule belongs to no optimizer.
    """
    # An optax transformation is a named tuple itself.
    if not isinstance(returned, tuple) or isinstance(returned, optax.GradientTransformation):
        return returned, None
    if len(returned) != 2:
        raise TypeError(f"{where} returned a tuple of {len(returned)}; expected an optimizer or (optimizer, schedule)")
    optimizer, schedule = returned
    if not isinstance(optimizer, dict):
        _check(optimizer, schedule, where)
        return optimizer, schedule
    if not isinstance(schedule, dict):
        raise TypeError(
            f"{where} returned several optimizers with a schedule of type {type(schedule).__name__}; expected a dict "
            "{label: schedule}"
        )
    if unknown := [label for label in schedule if label not in optimizer]:
        raise ValueError(
            f"{where} returned schedules for {unknown}, but optimizers for {list(optimizer)}: use the same labels"
        )
    for label, one in schedule.items():
        _check(optimizer[label], one, f"{where}, label {label!r},")
    return optimizer, schedule


def _check(optimizer: Any, schedule: Any, where: str) -> None:
    """Raise TypeError if this is not an optax transformation with a learning rate."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"{where} returned a pair of {type(optimizer).__name__} and {type(schedule).__name__}; expected an optax "
            "transformation and its learning rate. Return any other optimizer alone: it reports its own learning rate"
        )
    number = isinstance(schedule, Real) or (np.ndim(schedule) == 0 and hasattr(schedule, "dtype"))
    if isinstance(schedule, bool) or not (number or callable(schedule)):
        raise TypeError(
            f"{where} returned a schedule of type {type(schedule).__name__}; expected a number, or a function of the "
            "number of updates"
        )
