"""Differences between JSON values, and a check that all processes have equal values."""

from __future__ import annotations

from typing import Any

from ..distributed import processes
from .files import jsonable


def first_difference(saved: Any, live: Any, where: str = "",
                     which: tuple[str, str] = ("in the checkpoint", "now")) -> str | None:  # fmt: skip
    """The first entry in which two JSON values differ, as ``name: 1 in the checkpoint, 2 now``, or None."""
    if isinstance(saved, dict) and isinstance(live, dict):
        # "name" first, then common keys: the name of another rule is more informative than its different fields.
        for key in sorted({*saved, *live}, key=lambda key: (key != "name", not (key in saved and key in live), key)):
            name = f"{where}.{key}" if where else str(key)
            difference = first_difference(saved.get(key), live.get(key), name, which)
            if difference:
                return difference
        return None
    return None if saved == live else f"{where}: {saved!r} {which[0]}, {live!r} {which[1]}"


def require_equal(own: dict[str, Any], advice: str = "start all with the same options") -> None:
    """Raise ValueError in every process if the value ``own`` of any process differs from that of the first process."""
    own = jsonable(own)
    for number, other in enumerate(processes.gather(own)):
        difference = first_difference(own, other, which=("in process 0", f"in process {number}"))
        if difference:
            raise ValueError(f"the processes disagree: {difference}; {advice}")
    processes.broadcast()
