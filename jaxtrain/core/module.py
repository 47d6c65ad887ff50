"""What a user writes: a ``Module`` (model, loss, optimizer), and the ``Phases`` of one batch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..utils.logging import warn_of_foreign
from .metrics import Mean


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Phases:
    """One batch of sequences, split in time. Every array is time-major: ``(T, B, ...)``, whatever the data's layout.

    ``warmup``: inputs ``(T_w, B, ...)`` that only evolve the hidden state, or None.
    ``inputs``, ``targets``: ``(T_l, B, ...)``, the learning phase; targets may be None.
    ``weights``: ``(T_l,)`` or ``(T_l, B)`` weights of the loss; None counts every scored time step once.
    ``reset``: bool ``(T_w + T_l, B)``, clears a lane's hidden state and traces before that time step.
    ``extras``: a dict of further sequences over the learning phase, passed to ``learning_step`` by keyword.

    What weighs nothing changes neither loss nor gradient, whatever it holds, NaN included: targets and extras with
    weight 0, and inputs behind the last weighted time step of their sequence, up to its reset or end.
    """

    batch_first: ClassVar[bool] = False
    warmup: Any
    inputs: Any
    targets: Any = None
    weights: Any = None
    reset: Any = None
    extras: dict[str, Any] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``(T_w, T_l, B)``"""
        time, batch = jax.tree.leaves(self.inputs)[0].shape[:2]
        warm = jax.tree.leaves(self.warmup)
        return (warm[0].shape[0] if warm else 0), time, batch


class Module:
    """A model with its loss and optimizer; a plain Python class to subclass.

    Required are ``build`` (or an attribute ``model``), ``learning_step`` and ``configure_optimizer``.

    Example::

        class Copy(jaxtrain.Module):
            def build(self):
                return GRUNet(10, 128, 10)              # a brainstate.nn.Module that makes one time step

            def learning_step(self, forward, x, y):
                logits = forward(x)                     # (B, 10)
                loss = cross_entropy(logits, y)         # (B,)
                return loss, {"accuracy": logits.argmax(-1) == y}

            def configure_optimizer(self):
                return braintools.optim.Adam(1e-3)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        warn_of_foreign(cls, LIGHTNING_METHODS)

    model: Any = None
    environ: Mapping[str, Any] = MappingProxyType({})
    """``brainstate.environ`` values to build, compile and train under, e.g. ``{"dt": 0.1 * u.ms}``."""

    def build(self):
        """The model: a ``brainstate.nn.Module`` whose call is one time step, ``(B, ...) -> (B, ...)``."""
        raise TypeError(f"{type(self).__name__} defines neither build() nor a model")

    def learning_step(self, forward: Callable, x, y, **extras):
        """One scored time step: call ``forward(x)`` exactly once and return ``loss`` or ``(loss, metrics)``.

        ``loss`` and every metric are ``()`` or ``(B,)``. A metric may be a pair ``(value, weight)`` with a weight of
        its own, ``()`` or ``(B,)``, which multiplies that of ``Phases.weights``: a metric of a whole sequence has
        weight 1 at its last time step and 0 before.
        """
        raise TypeError(f"{type(self).__name__} defines no learning_step(forward, x, y)")

    def warmup_step(self, forward: Callable, x):
        """One time step of the warm-up phase."""
        return forward(x)

    def evaluation_step(self, forward: Callable, x, y, **extras):
        """One scored time step of a validation or test; as ``learning_step`` by default."""
        return self.learning_step(forward, x, y, **extras)

    def predict_step(self, forward: Callable, x):
        """One time step of a prediction: whatever it returns is stacked over time, ``(T_l, B, ...)``."""
        return forward(x)

    def phases(self, batch) -> Phases:
        """Split a batch in time. For ``(inputs, targets)`` the last ``len(targets)`` time steps are scored."""
        if isinstance(batch, Phases):
            return batch
        if isinstance(batch, tuple | list) and len(batch) != 2:
            raise TypeError(
                f"a batch of {len(batch)} parts; expected (inputs, targets). For weights, resets and "
                "further sequences let Module.phases return jaxtrain.Phases"
            )
        if not isinstance(batch, tuple | list):
            return Phases(warmup=None, inputs=batch)
        inputs, targets = batch
        scored = {np.shape(leaf)[0] for leaf in jax.tree.leaves(targets) if np.ndim(leaf)}
        if not scored:
            return Phases(warmup=None, inputs=inputs, targets=targets)
        steps = [np.shape(leaf)[0] for leaf in jax.tree.leaves(inputs) if np.ndim(leaf)]
        if not steps:
            raise ValueError(f"targets have {max(scored)} time steps and inputs no time axis; {_TIME_MAJOR}")
        warm = min(steps) - max(scored)
        if warm < 0:
            raise ValueError(
                f"targets have {max(scored)} time steps and inputs only {warm + max(scored)}{_advice('targets')}"
            )
        if warm == 0:
            return Phases(warmup=None, inputs=inputs, targets=targets)
        head = jax.tree.map(lambda leaf: leaf[:warm], inputs)
        tail = jax.tree.map(lambda leaf: leaf[warm:], inputs)
        return Phases(warmup=head, inputs=tail, targets=targets)

    def configure_optimizer(self):
        """A braintools.optim optimizer, an optax transformation, or ``{label: optimizer}`` with ``group(name)``."""
        raise TypeError(
            f"{type(self).__name__} defines no configure_optimizer(); return an optax transformation, as "
            "optax.adam(1e-3), or a braintools.optim optimizer from it"
        )

    def group(self, name: str) -> str:
        """The label of the optimizer that trains parameter ``name``, where ``configure_optimizer`` gives several."""
        raise TypeError(f"{type(self).__name__}.configure_optimizer gives a dict, so define group(name) -> label")

    def trainable(self, name: str) -> bool:
        """Whether parameter ``name`` (its dotted path) is trained."""
        return True


LIGHTNING_METHODS = {
    "training_step": "define learning_step(forward, x, y), which is one time step",
    **dict.fromkeys(
        ("validation_step", "test_step"), "define evaluation_step(forward, x, y); by itself it is learning_step"
    ),
    "configure_optimizers": "define configure_optimizer()",
    **dict.fromkeys(
        ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"), "give data to Fit.run"
    ),
    **dict.fromkeys(
        ("training_epoch_end", "validation_epoch_end", "on_train_start", "on_train_end", "on_train_epoch_start",
         "on_train_epoch_end", "on_train_batch_start", "on_train_batch_end", "on_validation_epoch_start",
         "on_validation_epoch_end"),
        "use a jaxtrain.Callback",
    ),
}  # fmt: skip
"""What methods of Lightning's modules are here."""
RESERVED = ("loss", "lr", "grad_norm", "param_norm", "nonfinite", "skipped_fraction")
"""Names of what the trainer measures itself."""
_TIME_MAJOR = (
    "arrays are time-major, (T, B, ...), here; data with the batch on axis 0 needs batch_first=True, passed with bare "
    "data or set on the DataModule"
)
_ONE_TARGET = "a target for a whole sequence is (1, B, ...), or (B, 1, ...) with batch_first=True"


def _advice(part: str) -> str:
    """What to do about an array of a batch that does not fit."""
    return f"; {_TIME_MAJOR}" + (f"; {_ONE_TARGET}" if part == "targets" else "")


def check_phases(phases: Any) -> Phases:
    """Raise one clear line where the arrays of a batch do not fit together."""
    if not isinstance(phases, Phases):
        raise TypeError(f"Module.phases must return jaxtrain.Phases, got {type(phases).__name__}")
    if not jax.tree.leaves(phases.inputs):
        raise ValueError("the batch holds no inputs for the learning phase")
    parts = {"inputs": phases.inputs, "targets": phases.targets, "warmup": phases.warmup, "extras": phases.extras}
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if np.ndim(leaf) < 2:
                raise ValueError(
                    f"{part}{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}; expected at least (T, B): "
                    "every array carries a time axis and a batch axis" + _advice(part)
                )
    _, time, batch = phases.sizes
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            shape, name = np.shape(leaf), part + jax.tree_util.keystr(path)
            if shape[1] != batch:
                raise ValueError(f"{name} has shape {shape}, but the inputs' batch axis is {batch}{_advice(part)}")
            if part != "warmup" and shape[0] != time:
                raise ValueError(
                    f"{name} has shape {shape}, but the learning phase is {time} time steps{_advice(part)}"
                )
            if 0 in shape[:2]:
                raise ValueError(f"{name} has shape {shape}: no time steps or an empty batch")
    warm = phases.sizes[0]
    if phases.weights is not None and np.shape(phases.weights) not in ((time,), (time, batch)):
        raise ValueError(f"weights have shape {np.shape(phases.weights)}; expected ({time},) or ({time}, {batch})")
    if phases.reset is not None and np.shape(phases.reset) != (warm + time, batch):
        raise ValueError(f"reset has shape {np.shape(phases.reset)}; expected ({warm + time}, {batch})")
    if phases.reset is not None and (kind := jnp.result_type(phases.reset)) != jnp.bool_:
        raise ValueError(f"reset has dtype {kind}; expected bool, True where a lane's sequence begins")
    if phases.extras is not None and not isinstance(phases.extras, dict):
        raise TypeError(f"extras must be a dict of sequences, got {type(phases.extras).__name__}")
    return phases


def phases_of(module: Module, batch: Any) -> Phases:
    """A batch split in time by its module, with the checks of ``check_phases``."""
    try:
        phases = module.phases(batch)
    except Exception as error:
        if type(module).phases is not Module.phases:
            shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), batch)
            name = type(module).__name__
            error.add_note(f"jaxtrain: in {name}.phases, given a batch of arrays of shape {shapes}, (T, B, ...)")
        raise
    return check_phases(phases)


@contextmanager
def environ_explained(module: str) -> Iterator[None]:
    """A note for what a model raises where its environment lacks a value."""
    try:
        yield
    except KeyError as error:
        if found := re.search(r"Key '(\w+)' not found in environment", str(error)):
            value = "0.1 * u.ms" if found[1] == "dt" else "..."
            environ = f"environ = {{{found[1]!r}: {value}}}"
            error.add_note(
                f"jaxtrain: {module} needs {found[1]!r}: set Module.environ, as {environ} in its class"
                + (" (import saiunit as u)" if found[1] == "dt" else "")
            )
        raise


class Objective:
    """A module's steps with the data's encoding in front and one normaliser behind, for every strategy alike.

    The objective is ``sum(w * loss) / sum(w)`` over time steps and lanes. The steps here return its numerator; the
    division happens once, where gradients become an update.
    """

    def __init__(self, module: Module, encode: Callable):
        self.module = module
        self.model = module.model
        self.encode = encode

    def warmup(self, forward: Callable, x) -> None:
        with _explained(f"{type(self.module).__name__}.warmup_step", x):
            self.module.warmup_step(forward, self.encode(x))

    def learn(self, forward: Callable, x, y, w, extras: dict[str, Any]) -> tuple[jax.Array, dict[str, Mean]]:
        """One scored time step: ``(sum of w * loss, metrics)``; ``w`` is ``()`` or ``(B,)``."""
        return self._score(self.module.learning_step, "learning_step", forward, x, y, w, extras)

    def evaluate(self, forward: Callable, x, y, w, extras: dict[str, Any]) -> dict[str, Mean]:
        return self._score(self.module.evaluation_step, "evaluation_step", forward, x, y, w, extras)[1]

    def predict(self, forward: Callable, x) -> Any:
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
            raise ValueError(f"{where} called forward {len(calls)} times; expected exactly one call a time step")
        if result is None or isinstance(result, dict) or (isinstance(result, tuple) and len(result) != 2):
            found = "None" if result is None else f"a {type(result).__name__}"
            raise TypeError(f"{where} returned {found}; expected loss, or (loss, metrics)")
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        if not isinstance(metrics, dict):
            raise TypeError(f"{where} returned metrics of type {type(metrics).__name__}; expected a dict name -> value")
        for key in metrics:
            if key in RESERVED or key.startswith("lr/"):
                owner = "the loss's own" if key == "loss" else "one of the trainer's own"
                raise ValueError(f"{where} names a metric {key!r}; that name is {owner}, choose another")
        scored = {"loss": loss, **metrics}
        means = {key: _weighted(value, w, batch, f"{where}: {key}", key == "loss") for key, value in scored.items()}
        return means["loss"].num, means


VALUELESS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@contextmanager
def _explained(where: str, x: Any, y: Any = None) -> Iterator[None]:
    """A note for what a module's own step raises: which step, on what, and what to do."""
    try:
        yield
    except Exception as error:
        advice = ""
        if isinstance(error, VALUELESS):
            advice = "; no value is known while it is traced: use jnp.where or jax.lax.cond for if, jax.numpy for numpy"
        elif isinstance(error, TypeError | ValueError):
            advice = "; see that the model's sizes fit these shapes"
        shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), (x,) if y is None else (x, y))
        named = " and ".join(f"{name} of shape {shape}" for name, shape in zip("xy", shapes, strict=False))
        error.add_note(f"jaxtrain: in {where}, traced for one time step of a batch with {named}, (B, ...){advice}")
        raise


def _weighted(value, w, batch: int, what: str, is_loss: bool) -> Mean:
    """``sum(w * value)`` and ``sum(w)`` over sequences; a metric may be ``(value, weight)``."""
    if isinstance(value, tuple) and not isinstance(value, Mean) and len(value) == 2 and not is_loss:
        value, own = value
        w = w * _per_sequence(own, batch, f"the weight of {what}").astype(jnp.float32)
    value = _per_sequence(value, batch, what)
    if is_loss and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{what} has dtype {value.dtype}; expected a floating type")
    if is_loss and value.shape == () and jnp.ndim(w) == 1:
        raise ValueError(f"{what} is a scalar, but the batch has weights a lane; return one loss a lane, ({batch},)")
    sequences = jnp.broadcast_to(w, (batch,)).astype(jnp.float32)
    if value.shape == ():
        total = jnp.sum(sequences)
        return Mean(jnp.where(total != 0, value * total, 0), total)
    value = value.astype(value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.float32)
    # A lane that weighs nothing may hold anything, NaN included.
    return Mean(jnp.sum(jnp.where(sequences != 0, sequences * value, 0)), jnp.sum(sequences))


def _per_sequence(value: Any, batch: int, what: str) -> jax.Array:
    """A number, or one for each sequence, as an array."""
    try:
        if isinstance(value, tuple):
            raise TypeError
        value = jnp.asarray(value)
    except TypeError:
        expected = "an array" if what.endswith(": loss") else "an array, or a pair (value, weight)"
        raise TypeError(f"{what} is a {type(value).__name__}; expected {expected}") from None
    if value.shape not in ((), (batch,)):
        raise ValueError(f"{what} has shape {value.shape}; expected () or ({batch},), one value a lane")
    return value


def weights_of(phases: Phases) -> Any:
    """Weights over the learning phase, ``(T_l,)`` or ``(T_l, B)``, ones where the batch has none."""
    return jnp.ones((phases.sizes[1],), jnp.float32) if phases.weights is None else jnp.asarray(phases.weights)


def total_weight(phases: Phases) -> Any:
    """``sum(w)`` broadcast to ``(T_l, B)``: a Python float where it is known beforehand."""
    _, time, batch = phases.sizes
    return sum_of_weights(phases.weights, time, batch)


def sum_of_weights(weights: Any, time: int, batch: int) -> Any:
    """Of weights ``(T,)`` or ``(T, B)`` broadcast to ``(T, B)``, in float32; None weighs every entry one."""
    if weights is None:
        return float(time * batch)
    w = jnp.asarray(weights, jnp.float32)
    return jnp.sum(jnp.broadcast_to(w if w.ndim == 2 else w[:, None], (time, batch)))
