"""Batches on the host: time-major numpy arrays, and the structure that all batches of a source share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import ArrayBatch
from ..errors import DataError

# ---- the layout: which of the axes 0 and 1 is time ---------------------------------------------------------------

BATCH_FIRST = "pass batch_first=True if axis 0 is the batch"


def stated_layout(what: Any, name: str, batch_first: bool | None) -> bool | None:
    """The layout that the user or the data's own attribute ``batch_first`` states; None if neither does.

    Args:
        what: A source or a batch. ``jaxtrain.Phases`` and the data sets of jaxtrain state that they are time-major.
        name: Name of the data for messages, for example "train".
        batch_first: What the user states: True if axis 0 is the batch, False if it is time, None for nothing.

    Raises:
        DataError: The user and the data contradict each other, or ``batch_first`` is not a bool or None.
    """
    if type(batch_first) not in (bool, type(None)):
        raise DataError(f"{name} data: batch_first={batch_first!r}; expected True, False or None")
    own = getattr(what, "batch_first", None)
    if not isinstance(own, bool):
        return batch_first
    if batch_first not in (None, own):
        raise DataError(
            f"{name} data: batch_first={batch_first}, but {type(what).__name__} states batch_first={own}: leave it out"
        )
    return own


def time_major(batch: Any) -> Any:
    """Swap axes 0 and 1 of the arrays of a batch; arrays with fewer axes are not changed."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim > 1 else leaf, batch)


def layout_warning(batch: Any) -> str | None:
    """A warning that arrays of unstated layout are read as time-major; None if no array has two axes."""
    shape = max((leaf.shape for leaf in jax.tree.leaves(batch)), key=len)
    if len(shape) < 2:
        return None
    features = f", {' x '.join(map(str, shape[2:]))} features" if shape[2:] else ""
    return (
        f"reading arrays as {shape[0]} time steps, {shape[1]} sequences{features}; {BATCH_FIRST}, "
        "batch_first=False if it is time"
    )


# ---- arrays ------------------------------------------------------------------------------------------------------


def _numbers(node: Any) -> bool:
    """Return True for a (nested) list of plain numbers, which is one array and not a tree of scalars."""
    if not isinstance(node, list) or not node:
        return False
    return all(isinstance(v, (bool, int, float, complex, np.generic)) or _numbers(v) for v in node)


def _array(leaf: Any, where: str, number: int) -> np.ndarray:
    expected = "expected numbers of one shape; give numpy arrays"
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(leaf).__name__
        raise DataError(f"{where} is a {kind} that numpy cannot read ({error}); {expected}", number) from error
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise DataError(f"{where} has dtype {array.dtype}; {expected}", number)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))  # 64 to 32 bits, unless jax_enable_x64
    if dtype != array.dtype and dtype.kind in "iu" and array.size:
        low, high, limit = array.min(), array.max(), np.iinfo(dtype)
        if low < limit.min or high > limit.max:
            advice = "give smaller ones or set jax_enable_x64"
            raise DataError(f"{where} holds integers from {low} to {high}, which {dtype} cannot; {advice}", number)
    # A copy: sources may reuse one buffer while several batches are held here.
    return np.array(array, dtype=dtype)


_READY = frozenset(map(np.dtype, ["?", "b", "B", "h", "H", "i", "I", "e", "f", "F"]))
"""Dtypes that JAX does not convert, whether or not jax_enable_x64 is set."""


def host(batch: Any, name: str, number: int, batch_first: bool | None = None) -> Any:
    """Convert a batch to time-major numpy arrays with the dtypes that JAX will use."""
    arrays = _arrays(batch, name, number)
    if isinstance(batch, ArrayBatch):  # time-major; ``batch_first`` is the layout of the data set's arrays
        return arrays
    return time_major(arrays) if stated_layout(batch, name, batch_first) else arrays


def _arrays(batch: Any, name: str, number: int) -> Any:
    plain, treedef = jax.tree_util.tree_flatten(batch, is_leaf=_numbers)
    if plain and all(type(leaf) is np.ndarray and leaf.dtype in _READY for leaf in plain):
        return jax.tree_util.tree_unflatten(
            treedef, [np.array(leaf) for leaf in plain]
        )  # names of leaves are only needed for errors
    leaves, treedef = jax.tree_util.tree_flatten_with_path(batch, is_leaf=_numbers)
    if not leaves:
        raise DataError(f"{name} data: batch {number} holds no array; expected arrays as in (inputs, targets)", number)
    where = f"{name} data: batch {number}: leaf batch"
    arrays = [_array(leaf, where + jax.tree_util.keystr(path), number) for path, leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, arrays)


class Spec:
    """Tree, shapes and dtypes of a batch, which the other batches of the source must match.

    Args:
        batch: The first batch.
        batch_first: Layout stated for the source; if it is None, errors advise to state it.
    """

    def __init__(self, batch: Any, batch_first: bool | None = False) -> None:
        self._unstated = stated_layout(batch, "", batch_first) is None
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(batch)
        self.leaves = [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves]

    def mismatch(self, batch: Any) -> str | None:
        """Describe the first difference of ``batch``; None if there is none."""
        leaves, tree = jax.tree_util.tree_flatten(batch)
        if tree == self.tree and all(
            (leaf.shape, leaf.dtype) == known[1:] for leaf, known in zip(leaves, self.leaves, strict=True)
        ):
            return None  # the fast path of every batch of a run: names of leaves are only needed for errors
        other = Spec(batch)
        if other.tree != self.tree:
            return f"is a tree {other.tree}, expected {self.tree}"
        for (path, shape, dtype), (_, expected, expected_dtype) in zip(other.leaves, self.leaves, strict=True):
            if shape != expected:
                return f"leaf batch{path} has shape {shape}, expected {expected}"
            if dtype != expected_dtype:
                return f"leaf batch{path} has dtype {dtype}, expected {expected_dtype}"
        return None

    def short(self, batch: Any) -> bool:
        """Return True if ``batch`` differs only in a smaller batch axis: axis 1, or axis 0 of leaves with one axis."""
        return self._shorter(batch, axis=1)

    def looks_batch_major(self, batch: Any) -> bool:
        """Return True if no layout is stated and ``batch`` differs only in a smaller axis 0.

        The last batch of a batch-major loader looks like this.
        """
        return self._unstated and self._shorter(batch, axis=0)

    def _shorter(self, batch: Any, axis: int) -> bool:
        other, shorter = Spec(batch), 0
        if other.tree != self.tree:
            return False
        for (_, shape, dtype), (_, expected, expected_dtype) in zip(other.leaves, self.leaves, strict=True):
            if len(shape) < 2 and shape == expected:  # no batch axis, or one entry per time step
                continue
            at = min(axis, len(shape) - 1)
            if len(shape) != len(expected) or at < 0 or dtype != expected_dtype or shape[at] >= expected[at]:
                return False
            if shape[:at] + shape[at + 1 :] != expected[:at] + expected[at + 1 :]:
                return False
            shorter += len(shape) > 1 or axis == 1
        return shorter > 0

    def advice(self, batch: Any) -> str:
        """What to do about a batch that neither matches nor is short."""
        return "make all alike" + (f", or {BATCH_FIRST}" if self.looks_batch_major(batch) else "")
