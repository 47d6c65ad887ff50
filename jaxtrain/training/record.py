"""Recording: hidden states, spikes and outputs as numpy arrays, with their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import saiunit as u

from ..callbacks.arguments import is_names
from ..strategies.recording import record
from .reader import What


def recording(states: Sequence[str] | None) -> What:
    """What is read to record these states; None: all.

    Raises:
        TypeError: ``states`` is not a list of names.
    """
    if states is not None and not is_names(states):
        raise TypeError(f'record: states={states!r}; expected a list of names, as ["rnn.h", "output"]; None for all')
    names = None if states is None else tuple(states)
    return What("predict", lambda learner, phases, root, index: record(learner, phases, names), ("record", names))


class Recording(dict[str, Any]):
    """Arrays by name. ``units`` has the unit of each that has one: ``recording[name] * recording.units[name]``."""

    units: dict[str, Any]

    @classmethod
    def of(cls, found: dict[str, Any]) -> Recording:
        """A recording of arrays and quantities."""
        made = cls({name: jax.tree.map(u.get_mantissa, value, is_leaf=_is_quantity) for name, value in found.items()})
        made.units = {name: u.get_unit(value) for name, value in found.items() if _is_quantity(value)}
        return made


def _is_quantity(value: Any) -> bool:
    return isinstance(value, u.Quantity)
