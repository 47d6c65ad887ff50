"""A batch on the host: numpy arrays, time-major, and what every batch of a source must look like."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import DataError

# ---- the layout: which of the axes 0 and 1 is time ---------------------------------------------------------------

BATCH_FIRST = "pass batch_first=True if axis 0 is the batch"


def stated_layout(what: Any, name: str, batch_first: bool | None) -> bool | None:
    """The layout of data, as its user or its own attribute ``batch_first`` states it; None where neither does.

    Args:
        what: A source or a batch. ``jaxtrain.Phases`` and the data sets of jaxtrain state that they are time-major.
        name: The data that an error names, as "train".
        batch_first: What the user states: True where axis 0 is the batch, False where it is time, None for nothing.

    Raises:
        DataError: The user and the data contradict each other, or the user states something else than a bool.
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
    """A batch-major batch with axes 0 and 1 of its arrays swapped; arrays with fewer axes stay as they are."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim > 1 else leaf, batch)


def layout_warning(batch: Any) -> str | None:
    """A line about time-major arrays whose layout nobody has stated; None where no array has two axes."""
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
    """A (nested) list of plain numbers is one array, not a tree of scalars."""
    if not isinstance(node, list) or not node:
        return False
    return all(isinstance(v, (bool, int, float, complex, np.generic)) or _numbers(v) for v in node)


def _array(leaf: Any, where: str, number: int) -> np.ndarray:
    expected = "expected numbers of one shape; give numpy arrays"
    try:
        found = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(leaf).__name__
        raise DataError(f"{where} is a {kind} that numpy cannot read ({error}); {expected}", number) from error
    if not (jnp.issubdtype(found.dtype, np.number) or found.dtype == np.bool_):
        raise DataError(f"{where} has dtype {found.dtype}; {expected}", number)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(found.dtype))  # 64 to 32 bits, unless jax_enable_x64
    if dtype != found.dtype and dtype.kind in "iu" and found.size:
        low, high, limit = found.min(), found.max(), np.iinfo(dtype)
        if low < limit.min or high > limit.max:
            advice = "give smaller ones or set jax_enable_x64"
            raise DataError(f"{where} holds integers from {low} to {high}, which {dtype} cannot; {advice}", number)
    # A copy: sources may fill one buffer again and again, while several batches are held here.
    return np.array(found, dtype=dtype)


_READY = frozenset(map(np.dtype, "? b B h H i I e f F".split()))
"""Dtypes that JAX takes as they are, whether or not jax_enable_x64 is set."""


def host(batch: Any, name: str, number: int, batch_first: bool | None = None) -> Any:
    """The batch with numpy leaves of the dtypes that JAX will use, time-major."""
    arrays = _arrays(batch, name, number)
    return time_major(arrays) if stated_layout(batch, name, batch_first) else arrays


def _arrays(batch: Any, name: str, number: int) -> Any:
    plain, treedef = jax.tree_util.tree_flatten(batch, is_leaf=_numbers)
    if plain and all(type(leaf) is np.ndarray and leaf.dtype in _READY for leaf in plain):
        return jax.tree_util.tree_unflatten(treedef, [np.array(leaf) for leaf in plain])  # nothing that needs a name
    leaves, treedef = jax.tree_util.tree_flatten_with_path(batch, is_leaf=_numbers)
    if not leaves:
        raise DataError(f"{name} data: batch {number} holds no array; expected arrays as in (inputs, targets)", number)
    where = f"{name} data: batch {number}: leaf batch"
    arrays = [_array(leaf, where + jax.tree_util.keystr(path), number) for path, leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, arrays)


class Spec:
    """What every batch must look like: the tree, shapes and dtypes of the first one.

    ``batch_first``: the layout of its source; where it is None, errors advise to state it.
    """

    def __init__(self, batch: Any, batch_first: bool | None = False) -> None:
        self._unstated = stated_layout(batch, "", batch_first) is None
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(batch)
        self.leaves = [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves]
        self._types = [(leaf.shape, leaf.dtype) for _, leaf in leaves]

    def mismatch(self, batch: Any) -> str | None:
        """Where `batch` differs, in words; None where it does not."""
        leaves, tree = jax.tree_util.tree_flatten(batch)
        if tree == self.tree and [(leaf.shape, leaf.dtype) for leaf in leaves] == self._types:
            return None  # every batch of a run comes this way: names of leaves are made for errors only
        other = Spec(batch)
        if other.tree != self.tree:
            return f"is a tree {other.tree}, expected {self.tree}"
        for (path, shape, dtype), (_, wanted, wanted_dtype) in zip(other.leaves, self.leaves, strict=True):
            if shape != wanted:
                return f"leaf batch{path} has shape {shape}, expected {wanted}"
            if dtype != wanted_dtype:
                return f"leaf batch{path} has dtype {dtype}, expected {wanted_dtype}"
        return None

    def short(self, batch: Any) -> bool:
        """Whether `batch` differs in nothing but a smaller batch axis: axis 1, or axis 0 of leaves with one axis."""
        other = Spec(batch)
        if other.tree != self.tree:
            return False
        smaller = 0
        for (_, shape, dtype), (_, wanted, wanted_dtype) in zip(other.leaves, self.leaves, strict=True):
            if len(shape) != len(wanted) or dtype != wanted_dtype:
                return False
            axis = min(1, len(shape) - 1)
            if axis < 0 or (len(shape) == 1 and shape == wanted):  # no batch axis, or one entry a time step
                continue
            if shape[axis] >= wanted[axis] or shape[:axis] + shape[axis + 1 :] != wanted[:axis] + wanted[axis + 1 :]:
                return False
            smaller += 1
        return smaller > 0

    def looks_batch_major(self, batch: Any) -> bool:
        """Whether the layout is not stated, and `batch` differs in nothing but a smaller axis 0.

        So does the last batch of a loader that puts the batch first.
        """
        other = Spec(batch)
        if not self._unstated or other.tree != self.tree:
            return False
        shorter = 0
        for (_, shape, _), (_, wanted, _) in zip(other.leaves, self.leaves, strict=True):
            if len(shape) == len(wanted) and shape[1:] == wanted[1:] and shape[:1] < wanted[:1]:
                shorter += len(shape) > 1
            elif shape != wanted or len(shape) > 1:
                return False
        return shorter > 0

    def advice(self, batch: Any) -> str:
        """What to do about a batch that is neither like the first one nor a short one."""
        return "make all alike" + (f", or {BATCH_FIRST}" if self.looks_batch_major(batch) else "")
