"""Period: one type for intervals and durations (200 steps, 1 epoch, 10 minutes)."""

import math
import numbers
import re
from dataclasses import dataclass
from typing import Literal

_UNITS: dict[str, tuple[Literal["step", "epoch", "time"], float]] = {
    "": ("step", 1),
    "st": ("step", 1),
    "ep": ("epoch", 1),
    "s": ("time", 1),
    "min": ("time", 60),
    "h": ("time", 3600),
}
_TEXT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_EXPECTED = 'expected a number of steps (200, "200", "200st"), epochs ("1ep") or time ("30s", "10min", "2h")'


@dataclass(frozen=True)
class Period:
    """A number of steps, epochs or seconds.

    >>> Period.of("10min")
    Period(n=600.0, unit='time')
    >>> Period.of(200).next(350, epoch_length=None)
    400

    Args:
        n: The number: positive and finite, and whole if the unit is "step".
        unit: "step", "epoch" or "time" (seconds).

    Raises:
        ValueError: ``n`` or ``unit`` is invalid.
    """

    n: float
    unit: Literal["step", "epoch", "time"]

    def __post_init__(self) -> None:
        if self.unit not in ("step", "epoch", "time"):
            raise ValueError(f"period: unit {self.unit!r} is unknown; expected 'step', 'epoch' or 'time'")
        if isinstance(self.n, bool) or not isinstance(self.n, numbers.Real):
            raise ValueError(f"period: {self.n!r} is not a number; {_EXPECTED}")
        n = float(self.n)
        if not math.isfinite(n) or n <= 0:
            raise ValueError(f"period: {self.n!r} is not positive and finite; {_EXPECTED}")
        if self.unit == "step" and not n.is_integer():
            raise ValueError(f"period: {self.n!r} is not a whole number of steps; {_EXPECTED}")
        object.__setattr__(self, "n", n)

    @staticmethod
    def of(value: "int | float | str | Period | None") -> "Period | None":
        """Make a period.

        Args:
            value: A number of steps, a text such as "200", "1ep" or "10min", a Period, or None.

        Returns:
            The period; None for None.

        Raises:
            ValueError: ``value`` is not understood.
        """
        if value is None or isinstance(value, Period):
            return value
        if not isinstance(value, str):
            return Period(value, "step")
        match = _TEXT.fullmatch(value)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"period: {value!r} is not understood; {_EXPECTED}")
        unit, factor = _UNITS[match[2].lower()]
        try:
            n = float(match[1])
        except ValueError:
            raise ValueError(f"period: {value!r} is not understood; {_EXPECTED}") from None
        return Period(n * factor, unit)

    def __str__(self) -> str:
        """The text from which `Period.of` makes this period."""
        n = int(self.n) if self.n.is_integer() else self.n
        return f"{n}{ {'step': '', 'epoch': 'ep', 'time': 's'}[self.unit] }"

    def shown(self) -> str:
        """The period as a user writes it: `200`, `'1ep'`."""
        return str(self) if self.unit == "step" else repr(str(self))

    def steps(self, epoch_length: int | None) -> int | None:
        """The period in steps, or None for a time.

        A fraction of an epoch is rounded down to whole steps, but not below one.

        Args:
            epoch_length: Steps per epoch, or None if unknown.

        Raises:
            ValueError: The period counts epochs and ``epoch_length`` is None.
        """
        if self.unit == "time":
            return None
        if self.unit == "step":
            return int(self.n)
        if epoch_length is None:
            raise ValueError(
                f'period: "{self}" counts epochs, but the train data has no length; give the data a __len__ '
                'or count steps ("200")'
            )
        return max(1, math.floor(self.n * epoch_length + 1e-9))  # 0.29 * 100 is 28.999...

    def next(self, step: int, epoch_length: int | None) -> int | None:
        """The first multiple of the period that is greater than `step`, or None for a time.

        Args:
            step: Number of completed steps.
            epoch_length: Steps per epoch, or None if unknown.

        Raises:
            ValueError: The period counts epochs and ``epoch_length`` is None.
        """
        steps = self.steps(epoch_length)
        return None if steps is None else (step // steps + 1) * steps

    def due(self, step: int, epoch_length: int | None) -> bool:
        """Return True if `step` is a positive multiple of the period; always False for a time.

        Args:
            step: Number of completed steps.
            epoch_length: Steps per epoch, or None if unknown.

        Raises:
            ValueError: The period counts epochs and ``epoch_length`` is None.
        """
        steps = self.steps(epoch_length)
        return steps is not None and step > 0 and step % steps == 0
