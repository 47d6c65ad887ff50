"""Objective: checks a batch, and calls the steps of a ``Module`` in the same way for every strategy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit

from ..utils.logging import calls_of
from .arrays import ArrayBatch
from .decisions import Metric, SequenceLoss
from .metrics import Mean
from .module import ONE_TARGET, TIME_MAJOR, Module, Phases

RESERVED = ("loss", "lr", "grad_norm", "param_norm", "nonfinite", "skipped_fraction")
"""Metrics that the trainer computes itself."""


# ---- the arrays of a batch ---------------------------------------------------------------------------------------


def check_phases(phases: Any) -> Phases:
    """Return ``phases`` unchanged.

    Raises:
        TypeError: It is not a ``Phases``, or its extras are not a dict.
        ValueError: Its arrays do not match each other.
    """
    if not isinstance(phases, Phases):
        raise TypeError(f"Module.phases must return jaxtrain.Phases, got {type(phases).__name__}")
    if not jax.tree.leaves(phases.inputs):
        raise ValueError("the batch holds no inputs for the learning phase")
    parts = {name: getattr(phases, name) for name in ("inputs", "targets", "warmup", "extras")}
    leaves = [
        (part, part + jax.tree_util.keystr(path), np.shape(leaf))
        for part, tree in parts.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    advice = {part: f"; {TIME_MAJOR}" + f"; {ONE_TARGET}" * (part == "targets") for part in parts}
    for part, name, shape in leaves:
        if len(shape) < 2:
            raise ValueError(
                f"{name} has shape {shape}; expected at least (T, B): every array has a time axis and a batch axis"
                + f"; {ONE_TARGET}" * (part == "targets")
            )
    warm, time, batch = phases.sizes
    for part, name, shape in leaves:
        if shape[1] != batch:
            raise ValueError(f"{name} has shape {shape}, but the inputs' batch axis is {batch}{advice[part]}")
        if part != "warmup" and shape[0] != time:
            raise ValueError(f"{name} has shape {shape}, but the learning phase is {time} time steps{advice[part]}")
        if 0 in shape[:2]:
            raise ValueError(f"{name} has shape {shape}: no time steps or an empty batch")
    if phases.weights is not None and np.shape(phases.weights) not in ((time,), (time, batch)):
        raise ValueError(f"weights have shape {np.shape(phases.weights)}; expected ({time},) or ({time}, {batch})")
    if phases.reset is not None and np.shape(phases.reset) != (warm + time, batch):
        raise ValueError(f"reset has shape {np.shape(phases.reset)}; expected ({warm + time}, {batch})")
    if phases.reset is not None and (kind := jnp.result_type(phases.reset)) != jnp.bool_:
        raise ValueError(f"reset has dtype {kind}; expected bool, True at the first time step of a sequence")
    if phases.extras is not None and not isinstance(phases.extras, dict):
        raise TypeError(f"extras must be a dict of sequences, got {type(phases.extras).__name__}")
    return phases


def phases_of(module: Module, batch: Any) -> Phases:
    """Split a batch in time with its module's ``phases``, and check the result with ``check_phases``."""
    if isinstance(batch, ArrayBatch):
        return batch.weighted(phases_of(module, batch.sequences()))
    try:
        phases = module.phases(batch)
    except Exception as error:
        if type(module).phases is not Module.phases:
            shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), batch)
            name = type(module).__name__
            error.add_note(f"jaxtrain: in {name}.phases, given a batch of arrays of shape {shapes}, (T, B, ...)")
        raise
    return check_phases(phases)


def weights_of(phases: Phases) -> jax.Array:
    """The weights of the learning phase, ``(T_l,)`` or ``(T_l, B)``; ones if the batch has none."""
    return jnp.ones((phases.sizes[1],), jnp.float32) if phases.weights is None else jnp.asarray(phases.weights)


def total_weight(phases: Phases) -> float | jax.Array:
    """The sum of the weights of the learning phase; see ``sum_of_weights``."""
    _, time, batch = phases.sizes
    return sum_of_weights(phases.weights, time, batch)


def sum_of_weights(weights: Any, time: int, batch: int) -> float | jax.Array:
    """The float32 sum of weights ``(T,)`` or ``(T, B)`` broadcast to ``(T, B)``.

    Without weights, it is the number of entries, as a Python float, so that it is static in a compiled program.
    """
    if weights is None:
        return float(time * batch)
    w = jnp.asarray(weights, jnp.float32)
    return jnp.sum(jnp.broadcast_to(w if w.ndim == 2 else w[:, None], (time, batch)))


# ---- the steps of a module ---------------------------------------------------------------------------------------


class Objective:
    """Calls the steps of a module with encoded inputs, and checks and weights what they return.

    The objective is ``sum(w * loss) / sum(w)`` over time steps and sequences. The steps return its numerator; the
    division happens once, where gradients become an update.
    """

    def __init__(self, module: Module, encode: Callable):
        self.module = module
        self.model = module.model
        self.encode = encode
        self.takes_sequences = False
        """Whether the learner differentiates a ``SequenceLoss``."""
        self.by_sequence = False
        """Whether the last traced time step returned one."""

    def warmup(self, forward: Callable, x: Any) -> None:
        with _explained(f"{type(self.module).__name__}.warmup_step", x):
            self.module.warmup_step(forward, self.encode(x))

    def learn(self, forward: Callable, x: Any, y: Any, w: Any, extras: dict[str, Any]) -> tuple[Any, dict[str, Mean]]:
        """One time step of the learning phase: ``(sum of w * loss, metrics)``. ``w`` is ``()`` or ``(B,)``.

        A ``SequenceLoss`` is returned as it is, and has no entry in the metrics yet.
        Metrics that are no means over time steps are left out: they are for validations.
        """
        means = self._score(self.module.learning_step, "learning_step", forward, x, y, w, extras)
        kept = {name: mean for name, mean in means.items() if isinstance(mean, Mean)}
        self.by_sequence = isinstance(means["loss"], SequenceLoss)
        if self.by_sequence and not self.takes_sequences:
            raise ValueError(
                f"{type(self.module).__name__}.learning_step returned a SequenceLoss, which needs all time steps of a "
                "sequence at once: use strategy='bptt'. For other rules, return a loss of the last output, or of the "
                "sum or mean by a model in jaxtrain.nn.Running, and give weight to the last time step only"
            )
        return means["loss"] if self.by_sequence else kept["loss"].num, kept

    def evaluate(self, forward: Callable, x: Any, y: Any, w: Any, extras: dict[str, Any]) -> dict[str, Any]:
        """One time step of a validation: means, and every other ``Metric`` for ``over_time``."""
        return self._score(self.module.evaluation_step, "evaluation_step", forward, x, y, w, extras)

    def predict(self, forward: Callable, x: Any) -> Any:
        with _explained(f"{type(self.module).__name__}.predict_step", x):
            return self.module.predict_step(forward, self.encode(x))

    def _score(self, step, name, forward, x, y, w, extras):
        batch = jax.tree.leaves(x)[0].shape[0]
        calls = []

        def counted(u):
            calls.append(u)
            return forward(u)

        where = f"{type(self.module).__name__}.{name}"
        try:
            inspect.signature(step).bind(counted, x, y, **extras)
        except TypeError as error:
            raise TypeError(
                f"{where}{inspect.signature(step)} {error}: it is called with forward, x, y"
                + "".join(f", {key}=" for key in extras)
                + (" (Phases.extras come by keyword)" if extras else "")
            ) from None
        with _explained(where, x, y):
            result = step(counted, self.encode(x), y, **extras)
        if len(calls) != 1:
            raise ValueError(f"{where} called forward {len(calls)} times; expected exactly one call per time step")
        if result is None or isinstance(result, dict) or (isinstance(result, tuple) and len(result) != 2):
            kind = "None" if result is None else f"a {type(result).__name__}"
            raise TypeError(f"{where} returned {kind}; expected loss, or (loss, metrics)")
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        if not isinstance(metrics, dict):
            raise TypeError(f"{where} returned metrics of type {type(metrics).__name__}; expected a dict name -> value")
        for key in metrics:
            if key in RESERVED or key.startswith("lr/"):
                raise ValueError(f"{where} returned a metric {key!r}; the trainer uses this name: choose another")
        scored = {"loss": loss, **metrics}
        return {key: _weighted(value, w, batch, f"{where}: {key}", key == "loss") for key, value in scored.items()}


def _weighted(value: Any, w: Any, batch: int, what: str, is_loss: bool) -> Mean | Metric:
    """Sum a loss or metric over the sequences: ``sum(w * value)`` and ``sum(w)``; or give a ``Metric`` its weight."""
    if isinstance(value, Metric) and (not is_loss or isinstance(value, SequenceLoss)):
        metric = value.checked(batch, what)
        w = w * _per_sequence(metric.weight, batch, f"the weight of {what}").astype(jnp.float32)
        if (each := metric.per_step()) is None:
            return replace(metric, weight=jnp.broadcast_to(w, (batch,)).astype(jnp.float32))
        value = each
    if isinstance(value, tuple) and not isinstance(value, Mean) and len(value) == 2 and not is_loss:
        value, own = value
        w = w * _per_sequence(own, batch, f"the weight of {what}").astype(jnp.float32)
    value = _per_sequence(value, batch, what)
    if is_loss and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{what} has dtype {value.dtype}; expected a floating type")
    if is_loss and value.shape == () and jnp.ndim(w) == 1:
        raise ValueError(
            f"{what} is a scalar, but the batch has weights per sequence; return one loss per sequence, ({batch},)"
        )
    sequences = jnp.broadcast_to(w, (batch,)).astype(jnp.float32)
    if value.shape == ():
        total = jnp.sum(sequences)
        return Mean(jnp.where(total != 0, value * total, 0), total)
    value = value.astype(value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.float32)
    # A sequence with weight 0 may have any value, NaN included.
    return Mean(jnp.sum(jnp.where(sequences != 0, sequences * value, 0)), jnp.sum(sequences))


def _per_sequence(value: Any, batch: int, what: str) -> jax.Array:
    """A value ``()`` or ``(B,)`` as an array."""
    try:
        if isinstance(value, tuple):
            raise TypeError
        value = jnp.asarray(value)
    except TypeError:
        expected = "an array" if what.endswith(": loss") else "an array, or a pair (value, weight)"
        raise TypeError(f"{what} is a {type(value).__name__}; expected {expected}") from None
    if value.shape not in ((), (batch,)):
        raise ValueError(f"{what} has shape {value.shape}; expected () or ({batch},), one value per sequence")
    return value


# ---- notes on errors of the user's code --------------------------------------------------------------------------

TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@contextmanager
def _explained(where: str, x: Any, y: Any = None) -> Iterator[None]:
    """Add a note to an error of a module's step: which step, the shapes of its arguments, and what to do."""
    try:
        yield
    except Exception as error:
        advice = ""
        if isinstance(error, TRACER_ERRORS):
            advice = "; values are not known while tracing: use jnp.where or jax.lax.cond for if, jax.numpy for numpy"
        elif isinstance(error, TypeError | ValueError):
            advice = dtype_advice(error, y) or "; check that the model's sizes fit these shapes" + axis_advice(x)
        shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), (x,) if y is None else (x, y))
        named = " and ".join(f"{name} of shape {shape}" for name, shape in zip("xy", shapes, strict=False))
        error.add_note(f"jaxtrain: in {where}, traced for one time step of a batch with {named}, (B, ...){advice}")
        raise


def axis_advice(x: Any) -> str:
    """What to ask about inputs that have one axis and are no indices."""
    missing = any(leaf.ndim == 1 and not jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(x))
    return "; is the batch axis missing? expected (B, features)" if missing else ""


def dtype_advice(error: Exception, y: Any) -> str:
    """What to do about targets that are no integers, if the error asks for integers."""
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if not kinds or not re.search(r"\b(u?int\d*|integers?|integral)\b", str(error)):
        return ""
    return f"; y is {', '.join(sorted(kinds))}, and class labels must be integers: pass targets.astype('int32')"


@contextmanager
def environ_explained(module: str) -> Iterator[None]:
    """Add a note to the error of a model whose ``brainstate.environ`` lacks a value or the unit of ``dt``."""
    try:
        yield
    except Exception as error:
        dt, text = brainstate.environ.get("dt", None), str(error)
        key, value = "dt", "1.0 * u.ms"
        if match := re.search(r"Key '(\w+)' not found in environment", text):
            key, value = match[1], value if match[1] == "dt" else "..."
        elif dt is None or isinstance(dt, saiunit.Quantity) or "saiunit" not in calls_of(error)[-1][0].parts:
            raise
        needs = f"{key!r}" if match else f"'dt' with a unit, and has {dt}"
        how = f"set Module.environ, as environ = {{{key!r}: {value}}} in its class"
        error.add_note(f"jaxtrain: {module} needs {needs}: {how}{' (import saiunit as u)' * (key == 'dt')}")
        raise
