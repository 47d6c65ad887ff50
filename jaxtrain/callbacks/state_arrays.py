"""Arrays in the states of callbacks: a checkpoint holds them with its other arrays, and the rest as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.digests import host
from ..utils.files import as_json

if TYPE_CHECKING:
    from .base import Callback

PREFIX = "callbacks/"
"""Prefix of the names of these arrays in a checkpoint."""
ARRAY = "__array__"
"""Key of a dict that stands for an array in JSON."""


def split(states: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The states by callback with each array replaced by its name, and the arrays by name."""
    arrays: dict[str, np.ndarray] = {}

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            key = f"{PREFIX}{name}/{sum(other.startswith(f'{PREFIX}{name}/') for other in arrays)}"
            arrays[key] = value
            return {ARRAY: key}
        if isinstance(value, dict):
            return {key: plain(name, each) for key, each in value.items()}
        return [plain(name, each) for each in value] if isinstance(value, list | tuple) else value

    return {name: plain(name, state) for name, state in states.items()}, arrays


def joined(value: Any, arrays: Mapping[str, Any]) -> Any:
    """The inverse of ``split``. The arrays are copies."""
    if isinstance(value, dict) and value.keys() == {ARRAY}:
        return np.array(arrays[value[ARRAY]])
    if isinstance(value, dict):
        return {key: joined(each, arrays) for key, each in value.items()}
    return [joined(each, arrays) for each in value] if isinstance(value, list) else value


def state_of(name: str, callback: Callback) -> Any:
    """The state of a callback as it is restored from a checkpoint: tuples become lists, and arrays are copied.

    Raises:
        TypeError: It holds something else than JSON and arrays of numbers. Arrays of a logger are refused, because
            several processes save arrays together, and only the first has loggers.
    """
    what, state = f"the state of callback {name}", callback.state()
    if callback.rank == "record":
        return as_json(state, what)
    plain, arrays = split({name: state})
    return joined(as_json(plain[name], what, "plain numbers, text, lists, dicts and numpy arrays"), host(what, arrays))
