"""Checks of arguments. Errors name the class and the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Any

from ..period import Period

COUNT = "a whole number, 1 or more"


def expect(ok: bool, owner: str, name: str, value: Any, expected: str) -> None:
    """Raise ValueError, which names the argument ``name`` of the class ``owner``, unless ``ok``."""
    if not ok:
        raise ValueError(f"{owner}: {name} is {value!r}; expected {expected}")


def is_count(value: Any) -> bool:
    """Whether this is a whole number, 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_names(value: Any) -> bool:
    """Whether this is a list (or another collection) with at least one name."""
    return (
        isinstance(value, Sequence | Set)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
    )


def is_number(value: Any) -> bool:
    """Whether this is a number other than NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def optional_period(every: int | str | Period | None, owner: str, name: str = "every") -> Period | None:
    """Convert the argument ``name`` of the class ``owner`` to a Period; None stays None."""
    try:
        return Period.of(every)
    except ValueError as error:
        raise ValueError(f"{owner}({name}={every!r}): {error}") from None


def steps_or_epochs(every: int | str | Period, owner: str) -> Period:
    """Convert the argument ``every`` of a callback that runs at certain steps, which cannot be a time."""
    period = optional_period(every, owner)
    if period is None or period.unit == "time":
        raise ValueError(f'{owner}(every={every!r}): expected steps (500) or epochs ("1ep")')
    return period
