"""Periods as arguments of callbacks: errors say which argument of which callback is meant."""

from __future__ import annotations

from ..period import Period


def optional_period(every: int | str | Period | None, owner: str, name: str = "every") -> Period | None:
    """The argument ``every`` of a callback, or another that is called ``name``; None stays None."""
    try:
        return Period.of(every)
    except ValueError as error:
        raise ValueError(f"{owner}({name}={every!r}): {error}") from None


def steps_or_epochs(every: int | str | Period, owner: str) -> Period:
    """The argument ``every`` of a callback whose turn comes at a step; a time never does."""
    period = optional_period(every, owner)
    if period is None or period.unit == "time":
        raise ValueError(f'{owner}(every={every!r}): expected steps (500) or epochs ("1ep")')
    return period
