"""Rows of arrays, and of data sets with ``__len__`` and ``__getitem__``, without copying more than a batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..errors import DataError


def is_array(value: Any) -> bool:
    """Return True for numpy, JAX and torch arrays, memory maps, and what is indexed in the same way (HDF5, Zarr)."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def is_items(value: Any) -> bool:
    """Return True for a map-style data set: a list, or an object with ``__len__`` and ``__getitem__``."""
    plain = isinstance(value, (tuple, Mapping, str, bytes)) or is_array(value)
    return not plain and hasattr(value, "__len__") and hasattr(value, "__getitem__")


class Columns:
    """A pytree of arrays whose sequences are on one axis.

    Args:
        tree: The arrays. Those with one axis have one entry per sequence.
        name: Name for messages.
        axis: The axis of the sequences.
    """

    def __init__(self, tree: Any, name: str, axis: int):
        leaves, self.tree = jax.tree.flatten(tree)
        for leaf in leaves:
            if not is_array(leaf) or not len(leaf.shape):
                kind = f"an array of shape {tuple(leaf.shape)}" if is_array(leaf) else f"a {type(leaf).__name__}"
                raise DataError(f"ArrayDataset: {name} holds {kind}; expected arrays with one entry per sequence")
        self.leaves, self._axis, self.name = [_on_host(leaf) for leaf in leaves], axis, name
        lengths = {leaf.shape[self._axis_of(leaf)] for leaf in self.leaves}
        if len(lengths) != 1:
            raise DataError(f"ArrayDataset: the arrays of {name} hold {sorted(lengths)} sequences; expected one number")
        (self.length,) = lengths

    def _axis_of(self, leaf: Any) -> int:
        return min(self._axis, len(leaf.shape) - 1)

    def read(self, rows: np.ndarray) -> list[Any]:
        """The rows of each array, with the sequences on axis 0."""
        return [self._rows(leaf, rows) for leaf in self.leaves]

    def _rows(self, leaf: Any, rows: np.ndarray) -> np.ndarray:
        axis = self._axis_of(leaf)
        if isinstance(leaf, np.ndarray):
            taken = np.asarray(leaf[rows] if axis == 0 else leaf[:, rows])
        else:  # HDF5 takes increasing rows only
            some, order = np.unique(rows, return_inverse=True)
            taken = np.asarray(leaf[some] if axis == 0 else leaf[:, some]).take(order, axis)
        return taken.swapaxes(0, 1) if axis else taken


class Items:
    """The items of a map-style data set, as ``(inputs, targets)`` or inputs alone.

    Args:
        items: The data set. An item must be a function of its index, or a resumed run reads other data.
        targets: Targets by index, or None if the items contain them.
        item: Function of an item that returns ``(inputs, targets)`` or the inputs; None: the item itself.
    """

    def __init__(self, items: Any, targets: Any, item: Callable[[Any], Any] | None):
        self._items, self._targets, self._item, self.length = items, targets, item, len(items)
        if targets is not None and len(targets) != self.length:
            raise DataError(f"ArrayDataset: {self.length} inputs, but {len(targets)} targets; expected one per input")

    def read(self, row: int) -> tuple[Any, Any]:
        """Inputs and targets of one item, as numpy arrays."""
        return jax.tree.map(np.asarray, self._pair(row), is_leaf=lambda node: isinstance(node, list))

    def _pair(self, row: int) -> tuple[Any, Any]:
        item = self._items[row]
        if self._item is not None:
            item = self._item(item)
        if isinstance(item, Mapping):
            raise DataError(
                f"ArrayDataset: item {row} is a dict with the keys {list(item)}; pass item=, a function of it that "
                "returns (inputs, targets), as item=lambda d: (d['x'], d['y'])"
            )
        if self._targets is not None:
            return item, self._targets[row]
        if not isinstance(item, (tuple, list)):
            return item, None
        if len(item) != 2:
            raise DataError(
                f"ArrayDataset: item {row} has {len(item)} parts; expected (inputs, targets), or pass item=, a "
                "function that returns them"
            )
        return item[0], item[1]


def stacked(arrays: Sequence[np.ndarray], name: str, rows: np.ndarray) -> np.ndarray:
    """Stack arrays of one shape on a new axis 0."""
    for array, row in zip(arrays, rows, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"ArrayDataset: {name} {row} has shape {array.shape}, {name} {rows[0]} {arrays[0].shape}; expected one "
                "shape: for sequences of several lengths use jaxtrain.datasets.bucket"
            )
    return np.stack(arrays)


def _on_host(leaf: Any) -> Any:
    """The array as numpy array if that takes no copy."""
    torch = sys.modules.get("torch")
    in_memory = isinstance(leaf, jax.Array) or (torch is not None and isinstance(leaf, torch.Tensor))
    return np.asarray(leaf) if in_memory else leaf
