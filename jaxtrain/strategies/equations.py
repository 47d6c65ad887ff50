"""Tools for the equations of a jaxpr: evaluation, dependence on inputs, and whether an equation mixes positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax.extend.core import Literal

ELEMENTWISE = "etp_elemwise"
"""The primitive of braintrace's element-wise weight, the only weight that does not mix positions."""
POINTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj convert_element_type copy copy_p "
    "cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt heaviside_surrogate_gradient imag integer_pow "
    "is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow real rem round rsqrt select_n "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
RESHAPES = frozenset(("broadcast_in_dim", "expand_dims", "reshape", "squeeze"))


class Irreversible(Exception):
    """Raised with the property of a model for which reverse mode does not give the rule's gradient."""


def follow(equation: Any, depends: dict[int, frozenset]) -> None:
    """Add to ``depends`` what the results of an equation depend on; raise Irreversible if it mixes positions."""
    ins = [(var, depends[id(var)]) for var in equation.invars if not isinstance(var, Literal) and id(var) in depends]
    if not ins:
        return
    name = equation.primitive.name
    inner = next((equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params), None)
    if inner is not None and name not in ("scan", "while", "cond"):
        body = getattr(inner, "jaxpr", inner)
        if len(body.invars) != len(equation.invars):
            raise Irreversible(f"{name} within the time step cannot be followed")
        within = {
            id(to): depends[id(var)]
            for var, to in zip(equation.invars, body.invars, strict=True)
            if not isinstance(var, Literal) and id(var) in depends
        }
        for sub in body.eqns:
            follow(sub, within)
        for var, out in zip(equation.outvars, body.outvars, strict=True):
            if not isinstance(out, Literal) and id(out) in within:
                depends[id(var)] = within[id(out)]
        return
    for var, _ in ins:
        for out in equation.outvars:
            suffix = _plain(var.aval.shape)
            fits = name in POINTWISE or name in RESHAPES
            if not fits or out.aval.shape[len(out.aval.shape) - len(suffix) :] != suffix:
                raise Irreversible(f"{name} mixes positions between a weight or a hidden state and the next one")
            if name == "broadcast_in_dim":
                dims, rank = equation.params["broadcast_dimensions"], len(out.aval.shape)
                if tuple(dims) != tuple(range(rank - len(dims), rank)):
                    raise Irreversible("an axis is inserted between a weight or a hidden state and the next one")
    union = frozenset().union(*(of for _, of in ins))
    for out in equation.outvars:
        depends[id(out)] = union


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its leading axes of size 1."""
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def read(env: dict[int, Any], var: Any) -> Any:
    """The value of a variable or literal."""
    return var.val if isinstance(var, Literal) else env[id(var)]


def bind(equation: Any, operands: list[Any]) -> list[Any]:
    """Evaluate an equation."""
    primitive = equation.primitive
    given = primitive.get_bind_params(equation.params)  # (functions, params) in jax < 0.11, params alone from 0.11 on
    functions, params = given if isinstance(given, tuple) else ((), given)
    with equation.ctx.manager:
        out = primitive.bind(*functions, *operands, **params)
    return list(out) if primitive.multiple_results else [out]


MIXING = ("dot_general", "conv_general_dilated")


def mixes(equation: Any) -> bool:
    """Whether an equation applies a weight, directly or inside a loop or a function."""
    name = equation.primitive.name
    if name in MIXING or (name.startswith("etp_") and name != ELEMENTWISE):
        return True
    bodies = [sub for value in equation.params.values() for sub in _bodies(value)]
    return any(mixes(inner) for body in bodies for inner in body.eqns)


def _bodies(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, tuple | list):
        return [body for item in value for body in _bodies(item)]
    body = getattr(value, "jaxpr", value)
    return [body] if hasattr(body, "eqns") else []


def origins(jaxpr: Any, given: Mapping[int, Any]) -> Callable[[Any], dict[Any, bool]]:
    """Trace the results of a jaxpr back to some of its inputs.

    Args:
        jaxpr: The jaxpr.
        given: Labels of the inputs, ``{id(var): label}``.

    Returns:
        A function of a variable that returns, for each label that it depends on, whether a weight acts in between.
    """
    found: dict[int, dict[Any, bool]] = {var: {label: False} for var, label in given.items()}
    for equation in jaxpr.eqns:
        weighted = mixes(equation)
        merged: dict[Any, bool] = {}
        for var in equation.invars:
            for label, before in found.get(id(var), {}).items():
                merged[label] = merged.get(label, False) or before or weighted
        for var in equation.outvars:
            found[id(var)] = merged
    return lambda var: found.get(id(var), {})
