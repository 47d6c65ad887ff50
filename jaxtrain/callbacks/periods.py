"""Periods as arguments. Errors name the class and the argument."""

from __future__ import annotations

from ..period import Period


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
