"""Ready projections for ``Module.project``: constraints that parameters satisfy after every update.

Each function returns a projection, which maps an array or a quantity to one of the same shape, dtype and unit.
Projections are composed by calls: ``clip(-1, 1)(zero_diagonal()(weight))``. NaN stays NaN.

A weight is a matrix ``(n_in, n_out)``: row i holds the outgoing weights of input i, column j the incoming weights of
unit j. Recurrent cells of braintrace stack the weights of the input and of the hidden state in one matrix
``(n_in + n, n_out)``. ``rows`` restricts a projection to a block: ``rows=slice(n_in, None)`` are the recurrent weights.

Example::

    class Excitatory(jaxtrain.Module):
        constraint = staticmethod(jaxtrain.projections.non_negative(rows=slice(10, None)))

        def project(self, name, value):
            if name == "rnn.W.weight":              # a dict with "weight" and "bias"
                return {**value, "weight": self.constraint(value["weight"])}
            return value
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u
from jax.core import Tracer
from jax.typing import ArrayLike

type Projection = Callable[[Any], Any]
"""Maps an array or a quantity to one of the same shape, dtype and unit."""

__all__ = ["clip", "dale", "max_norm", "non_negative", "sparse", "zero_diagonal"]


def dale(signs: ArrayLike, *, rows: slice | None = None) -> Projection:
    """Dale's law: all outgoing weights of a unit have the sign of the unit. Others become zero.

    Example::

        dale([1, 1, 1, -1], rows=slice(10, None))    # recurrent weights of three excitatory and one inhibitory unit

    Args:
        signs: Signs ``(n_rows,)`` of the presynaptic units, each 1 or -1.
        rows: Rows of the weight to project; None: all.

    Returns:
        A projection of weights ``(n_rows, ...)``.

    Raises:
        ValueError: ``signs`` holds other values, or is not a vector.
        TypeError: ``rows`` is not a slice.
    """
    given = _constant("dale", "signs", signs, (-1, 1))
    if given.ndim != 1:
        raise ValueError(f"dale: signs have shape {given.shape}; expected one sign per row of the weight, (n_rows,)")

    def change(block: jax.Array) -> jax.Array:
        if block.shape[:1] != given.shape:
            raise ValueError(f"dale: {len(given)} signs for a weight {block.shape}; expected one sign per row{_ROWS}")
        wrong = block * given.astype(block.dtype).reshape(-1, *[1] * (block.ndim - 1)) < 0
        return jnp.where(wrong, 0, block)

    return _projection("dale", change, rows)


def sparse(mask: ArrayLike, *, rows: slice | None = None) -> Projection:
    """A fixed connectivity: weights outside of the mask are zero.

    Example::

        sparse(np.random.default_rng(0).random((64, 64)) < 0.1, rows=slice(10, None))    # 10 % of all connections

    Args:
        mask: Bool, or 0 and 1, of the shape of the weight or of its ``rows``. True: the weight is free.
        rows: Rows of the weight to project; None: all.

    Returns:
        A projection of arrays of the shape of the mask.

    Raises:
        ValueError: ``mask`` holds other values.
        TypeError: ``rows`` is not a slice.
    """
    given = _constant("sparse", "the mask", mask, (0, 1))

    def change(block: jax.Array) -> jax.Array:
        if block.shape != given.shape:
            raise ValueError(f"sparse: a mask {given.shape} for a weight {block.shape}; expected the same shape{_ROWS}")
        return jnp.where(given != 0, block, 0)

    return _projection("sparse", change, rows, real=False)


def non_negative(*, rows: slice | None = None) -> Projection:
    """Negative entries become zero.

    Args:
        rows: Rows of the weight to project; None: all.

    Returns:
        A projection of real arrays of any shape.

    Raises:
        TypeError: ``rows`` is not a slice.

    >>> non_negative()(np.array([[0.5, -0.5]])).tolist()
    [[0.5, 0.0]]
    """
    return _projection("non_negative", lambda block: jnp.where(block < 0, 0, block), rows)


def max_norm(limit: Any, *, rows: slice | None = None) -> Projection:
    """The Euclidean norm of the incoming weights of a unit is at most ``limit``. A larger column is scaled to it.

    The norm is at most ``limit`` up to rounding.

    Example::

        max_norm(2.0)    # for weights in mA: max_norm(2.0 * u.mA)

    Args:
        limit: Largest norm of a column, positive, in the unit of the weight.
        rows: Rows of the weight to project, whose norm is limited; None: all.

    Returns:
        A projection of weights ``(..., n_out)`` with at least two axes. The norm is taken over all axes but the last.

    Raises:
        ValueError: ``limit`` is not a positive number.
        TypeError: ``rows`` is not a slice.
    """
    if not _number("max_norm", "limit", limit) > 0:
        raise ValueError(f"max_norm: limit={limit}; expected a positive number")

    def change(block: jax.Array, limit: float) -> jax.Array:
        if block.ndim < 2:
            raise ValueError(f"max_norm: a weight of shape {block.shape}; expected columns, (n_in, n_out)")
        wide = block.astype(jnp.promote_types(block.dtype, jnp.float32))
        norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(wide)), axis=range(block.ndim - 1), keepdims=True))
        return (wide * (limit / jnp.maximum(norm, limit))).astype(block.dtype)

    return _projection("max_norm", change, rows, limit, real=False)


def zero_diagonal(*, rows: slice | None = None) -> Projection:
    """No self-connections: the diagonal of a square matrix, or of a square block of rows, is zero.

    Args:
        rows: Rows of the weight to project, for example ``slice(n_in, None)`` of recurrent weights; None: all.

    Returns:
        A projection of weights whose ``rows`` are a square matrix.

    Raises:
        TypeError: ``rows`` is not a slice.

    >>> zero_diagonal()(np.ones((2, 2))).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def change(block: jax.Array) -> jax.Array:
        if block.ndim != 2 or block.shape[0] != block.shape[1]:
            raise ValueError(f"zero_diagonal: a weight {block.shape}; expected a square matrix{_ROWS}")
        return jnp.where(np.eye(len(block), dtype=bool), 0, block)

    return _projection("zero_diagonal", change, rows, real=False)


def clip(low: Any, high: Any, *, rows: slice | None = None) -> Projection:
    """Entries below ``low`` become ``low``, and entries above ``high`` become ``high``.

    Example::

        clip(-1.0, 1.0)    # for weights in mA: clip(-1.0 * u.mA, 1.0 * u.mA)

    Args:
        low: Lower limit, a number in the unit of the weight.
        high: Upper limit, a number in the unit of the weight.
        rows: Rows of the weight to project; None: all.

    Returns:
        A projection of real arrays of any shape.

    Raises:
        ValueError: A limit is not a number, ``low`` is above ``high``, or their units differ.
        TypeError: ``rows`` is not a slice.
    """
    _number("clip", "low", low)
    _number("clip", "high", high)
    unit = u.get_unit(low)
    if not u.have_same_dim(low, high) or _decimal(low, unit) > _decimal(high, unit):
        raise ValueError(f"clip: low={low}, high={high}; expected low <= high, in the same unit")
    return _projection("clip", lambda block, *limits: jnp.clip(block, *limits), rows, low, high)


_ROWS = "; rows=slice(n_in, None) selects the recurrent rows of stacked weights"


def _projection(
    name: str, change: Callable[..., jax.Array], rows: slice | None, *limits: Any, real: bool = True
) -> Projection:
    """Apply ``change(block, *limits)`` to the rows of an array, with limits in the unit of the array."""
    if not isinstance(rows, slice | None):
        raise TypeError(f"{name}: rows={rows!r}; expected a slice, for example slice(n_in, None)")

    def project(weight: Any) -> Any:
        if not isinstance(weight, u.Quantity | jax.Array | np.ndarray):
            kind = f"a dict with {list(weight)}" if isinstance(weight, dict) else type(weight).__name__
            raise TypeError(
                f"{name}: expected an array or a quantity, got {kind}; project one entry and keep the others: "
                '{**value, "weight": projection(value["weight"])}'
            )
        unit = u.get_unit(weight)
        try:
            numbers = [_decimal(limit, unit) for limit in limits]
        except u.UnitMismatchError as error:
            raise ValueError(f"{name}: limits {limits} for a weight in {unit}; expected the same unit") from error
        array = jnp.asarray(u.get_mantissa(weight))
        if real and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name}: a weight of dtype {array.dtype}; expected real floating-point numbers")
        new = _changed(name, lambda block: change(block, *numbers), rows, array)
        return u.Quantity(new, unit=unit) if isinstance(weight, u.Quantity) else new

    return project


def _changed(name: str, change: Callable, rows: slice | None, array: jax.Array) -> jax.Array:
    if rows is None:
        return change(array)
    block = array[rows]
    if not block.size:
        raise ValueError(f"{name}: {rows} selects no rows of a weight {array.shape}")
    return array.at[rows].set(change(block))


def _decimal(limit: Any, unit: Any) -> Any:
    """A limit as a number in a unit."""
    return u.Quantity(limit).to_decimal(unit)


def _number(name: str, argument: str, limit: Any) -> float:
    """The number of a limit, without its unit. Raise ValueError if it is no number."""
    value = u.get_mantissa(limit)
    try:
        if np.ndim(value) == 0 and not np.isnan(float(value)):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name}: {argument}={limit!r}; expected a number")


def _constant(name: str, argument: str, given: Any, allowed: tuple[int, int]) -> Any:
    """A constant array. Its values are checked, unless it is traced, as the value of a State of the model is."""
    if isinstance(given, Tracer):
        return given
    # Numpy's: an array of JAX would start JAX before the number of devices is set.
    array = np.asarray(given)
    if not np.isin(array, allowed).all():
        raise ValueError(f"{name}: {argument} must hold {allowed[0]} and {allowed[1]} only, got {array!r:.80}")
    return array
