"""Detects whether an object has changed since a program was traced from it, before the program is used again."""

from __future__ import annotations

import hashlib
import types
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .state import SHORT, State

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, np.generic, np.dtype)
WHOLE = (jax.Array, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
"""Types that are compared by identity only."""


class _Same:
    """Equal to another wrapper of the same object; does not keep the object alive."""

    def __init__(self, value: Any):
        try:
            self._get = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and (mine := self._get()) is not None and mine is other._get()


def snapshot(value: Any, seen: dict[int, int] | None = None) -> Any:
    """A value that equals a later snapshot of the same object if no attribute that a trace could read has changed.

    Containers and attributes of objects are followed. States are compared by identity, tree, shapes and dtypes, because
    programs read their values at every call. Short-term States are ignored, because ``init_state`` recreates them.
    """
    seen = {} if seen is None else seen
    if isinstance(value, PLAIN):
        return type(value), repr(value)
    if isinstance(value, SHORT):
        return SHORT
    if isinstance(value, State):
        leaves, tree = jax.tree.flatten(value.value)
        return _Same(value), tree, [(np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]
    if isinstance(value, WHOLE):
        return _Same(value)
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.dtype, value.shape, hashlib.sha256(np.ascontiguousarray(value)).digest()
    if isinstance(value, bytearray | memoryview):
        return type(value), bytes(value)
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(snapshot(each, dict(seen))) for each in value)
    if isinstance(value, list | tuple | deque):
        return type(value), [snapshot(each, seen) for each in value]
    if isinstance(value, Mapping):
        return type(value), [(snapshot(key, seen), snapshot(each, seen)) for key, each in value.items()]
    if isinstance(value, types.MethodType):
        return _Same(value.__func__), snapshot(value.__self__, seen)
    slots = [name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
    if not hasattr(value, "__dict__") and not slots:
        return object()  # changes cannot be detected, so it is equal to nothing
    held = {name: getattr(value, name) for name in slots if name != "__dict__" and hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    return _Same(value), [(name, snapshot(each, seen)) for name, each in held.items()]


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(name for name in slots if name != "__weakref__")
