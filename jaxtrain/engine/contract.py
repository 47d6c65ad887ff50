"""Checks of what a learner passes to ``update`` and returns. They run while tracing, so compiled steps lack them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import Mean, Metrics
from ..core.module import Phases
from ..core.state import State
from ..strategies.base import Learner, ParameterReport, Update
from ..utils.coerce import did_you_mean

RETURN = "end learn with `return update(grads, weight, metrics)`, or return the sum of what several calls returned"


def learn(
    learner: Learner, phases: Phases, update: Update, params: Mapping[str, State], needed: Iterable[str]
) -> Metrics:
    """Call ``learner.learn``.

    Args:
        learner: The learner.
        phases: The batch.
        update: Applies gradients, see ``Update``.
        params: All parameters of the model.
        needed: Names of the parameters that the optimizer holds.

    Raises:
        TypeError: The learner passes something of the wrong type to ``update``, or returns something else than metrics.
        ValueError: It never calls ``update``, or names or shapes of gradients do not match the parameters.
    """
    name, returned = type(learner).__name__, list[Metrics]()

    def checked(grads: Any, weight: Any, metrics: Any) -> Metrics:
        _check_gradients(name, grads, params, needed)
        if not isinstance(weight, int | float | jax.Array | np.ndarray | np.generic) or np.shape(weight):
            raise TypeError(f"{name} passed the weight {_kind(weight)} to update; expected one number, sum(w)")
        if not _is_metrics(metrics) or "loss" not in metrics:
            raise TypeError(
                f"{name} passed invalid metrics to update; expected those that score() returns, with 'loss'"
            )
        returned.append(update(grads, weight, metrics))
        return returned[-1]

    result = learner.learn(phases, checked)
    if not returned:
        raise ValueError(f"{name}.learn did not call update, so it trains nothing: {RETURN}")
    if problem := _problem(result, returned[0]):
        raise TypeError(f"{name}.learn returned {problem}; expected the metrics that update returned: {RETURN}")
    return result


def _problem(result: Any, expected: Metrics) -> str:
    """How the result of ``learn`` differs from what a call of ``update`` returned; "" if it does not."""
    if not _is_metrics(result):
        return "None" if result is None else f"a {type(result).__name__}"
    if missing := [key for key in expected if key not in result]:
        return f"a dict without {missing[0]!r}"
    stacked = any(np.shape(result[key].num) != np.shape(mean.num) for key, mean in expected.items())
    return "stacked metrics" if stacked else ""


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(mean, Mean) for mean in value.values())


def _check_gradients(name: str, grads: Any, params: Mapping[str, State], needed: Iterable[str]) -> None:
    if not isinstance(grads, Mapping):
        raise TypeError(f"{name} passed {_kind(grads)} to update; expected a dict of gradients by parameter name")
    if unknown := [key for key in grads if key not in params]:
        raise ValueError(f"{name} passed a gradient of {unknown[0]!r} to update; {did_you_mean(unknown[0], params)}")
    if missing := [key for key in needed if key not in grads]:
        raise ValueError(
            f"{name} passed no gradient of {missing[0]!r} to update: pass one, or let {name}.report return "
            f'ParameterReport({missing[0]!r}, "no", why)'
        )
    for key, grad in grads.items():
        value = params[key].value
        leaves, expected = jax.tree.leaves(grad), jax.tree.leaves(value)
        if len(leaves) != len(expected) or not all(map(_fits, leaves, expected)):
            shapes = f"the shapes of the parameter, {_kinds(value)}"
            raise ValueError(f"{name} passed a gradient of {key!r} to update that is {_kinds(grad)}; expected {shapes}")


def _fits(grad: Any, value: Any) -> bool:
    """Whether this is a floating-point array (complex only for a complex parameter) of the parameter's shape."""
    dtype = getattr(grad, "dtype", None)
    allowed = jnp.inexact if jnp.iscomplexobj(value) else jnp.floating
    return dtype is not None and jnp.issubdtype(dtype, allowed) and np.shape(grad) == np.shape(value)


def _kinds(tree: Any) -> str:
    kinds = [_kind(leaf) for leaf in jax.tree.leaves(tree)]
    return kinds[0] if len(kinds) == 1 else f"[{', '.join(kinds)}]"


def _kind(value: Any) -> str:
    return jax.typeof(value).str_short() if hasattr(value, "dtype") else f"a {type(value).__name__}"


def report(learner: Learner, phases: Phases, params: Mapping[str, State]) -> list[ParameterReport]:
    """Call ``learner.report``.

    Args:
        learner: The learner.
        phases: An example of a batch.
        params: The parameters that the module trains.

    Raises:
        TypeError: The result is not a list of ``ParameterReport``.
        ValueError: It does not name each parameter exactly once.
    """
    reports, name = learner.report(phases), type(learner).__name__
    if not isinstance(reports, list) or not all(isinstance(entry, ParameterReport) for entry in reports):
        raise TypeError(
            f"{name}.report returned {_kind(reports)}; expected a list of ParameterReport, one per parameter"
        )
    names = [entry.name for entry in reports]
    if unknown := [key for key in names if key not in params]:
        raise ValueError(f"{name}.report names {unknown[0]!r}; {did_you_mean(unknown[0], params)}")
    if missing := [key for key in params if names.count(key) != 1]:
        count = "twice" if missing[0] in names else "not at all"
        raise ValueError(
            f"{name}.report names {missing[0]!r} {count}; expected one ParameterReport for each of {[*params]}"
        )
    return reports
