"""What a user writes: ``Module`` (model, loss, optimizer) and ``Phases`` (one batch, split in time)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import brainstate
import jax
import numpy as np
from jax.typing import ArrayLike

from ..utils.logging import warn_of_foreign
from .method_names import LIGHTNING_METHODS, alias

if TYPE_CHECKING:
    from .optimizer_spec import Configured

type Forward = Callable[[Any], Any]
"""Runs the model for one time step: inputs ``(B, ...)`` -> outputs ``(B, ...)``."""
type Scored = ArrayLike | tuple[ArrayLike, dict[str, Any]]
"""What a scored step returns: ``loss`` or ``(loss, metrics)``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Phases:
    """One batch of sequences, split in time into a warm-up phase and a learning phase.

    Every array is time-major, ``(T, B, ...)``, whatever the layout of the data. ``T_w`` and ``T_l`` are the time steps
    of the two phases and ``B`` is the number of sequences.

    Entries with weight 0 change neither loss nor gradient, whatever they contain, NaN included. This holds for targets
    and extras with weight 0, and for inputs after the last weighted time step of their sequence, up to its next reset
    or its end.

    Args:
        warmup: Inputs ``(T_w, B, ...)`` that only update the hidden state, or None.
        inputs: Inputs ``(T_l, B, ...)`` of the learning phase.
        targets: Targets ``(T_l, B, ...)``, or None.
        weights: Weights ``(T_l,)`` or ``(T_l, B)`` of the loss; None gives every time step of the learning phase
            weight 1.
        reset: Bool ``(T_w + T_l, B)``; True clears the hidden state and traces of a sequence before that time step.
        extras: Further sequences ``(T_l, B, ...)``, passed to ``learning_step`` by keyword.

    >>> late = Phases(warmup=np.zeros((5, 8, 2)), inputs=np.zeros((3, 8, 2)), targets=np.zeros((3, 8)))
    >>> late.sizes  # five time steps of warm-up, three that are scored, eight sequences
    (5, 3, 8)
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
    """A model with its loss and optimizer. It is a plain Python class to subclass.

    A subclass must define ``build`` (or an attribute ``model``), ``learning_step`` and ``configure_optimizer``.
    ``configure_optimizers`` is accepted as another name for ``configure_optimizer``.

    Example::

        class Copy(jaxtrain.Module):
            def build(self):
                return GRUNet(10, 128, 10)              # a brainstate.nn.Module; one call is one time step

            def learning_step(self, forward, x, y):
                logits = forward(x)                     # (B, 10)
                loss = cross_entropy(logits, y)         # (B,)
                return loss, {"accuracy": logits.argmax(-1) == y}

            def configure_optimizer(self):
                return braintools.optim.Adam(1e-3)

    Raises:
        TypeError: A subclass defines both ``configure_optimizer`` and ``configure_optimizers``.
    """

    model: Any = None
    """The ``brainstate.nn.Module``. None until the first run builds it, unless the subclass sets it."""
    environ: Mapping[str, Any] = MappingProxyType({})
    """``brainstate.environ`` values to build, compile and train under, for example ``{"dt": 1.0 * u.ms}``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        warn_of_foreign(cls, LIGHTNING_METHODS)
        alias(cls, "configure_optimizer", "configure_optimizers")

    def build(self) -> brainstate.nn.Module:
        """Create the model. It is called once per seed, and not at all if the module has a ``model``.

        Returns:
            A ``brainstate.nn.Module`` whose call is one time step, ``(B, ...) -> (B, ...)``.
        """
        raise TypeError(f"{type(self).__name__} defines neither build() nor a model")

    # `/` and `*args: Any` let a subclass choose names for its parameters and leave out `**extras`.
    def learning_step(self, forward: Forward, x: Any, y: Any, /, *args: Any, **extras: Any) -> Scored:
        """Compute the loss of one time step of the learning phase. Called while tracing.

        Args:
            forward: Runs the model for one time step. It must be called exactly once.
            x: Inputs of the time step, ``(B, ...)``, after the data's ``encode``.
            y: Targets of the time step, ``(B, ...)``, or None.
            **extras: The time step of every entry of ``Phases.extras``, ``(B, ...)``.

        Returns:
            ``loss`` or ``(loss, metrics)`` with ``metrics`` a dict name -> value. The loss and every metric have shape
            ``()`` or ``(B,)``. A metric may be a pair ``(value, weight)`` with a weight of shape ``()`` or ``(B,)``,
            which is multiplied with ``Phases.weights``; or an object of ``jaxtrain.metrics``, such as
            ``Accuracy(logits, y, decide="sum")``. Under BPTT, the loss may be a ``jaxtrain.metrics.SequenceLoss``.
        """
        raise TypeError(f"{type(self).__name__} defines no learning_step(forward, x, y)")

    def warmup_step(self, forward: Forward, x: Any, /) -> Any:
        """Run one time step of the warm-up phase. The default calls ``forward(x)``; the result is not used.

        Args:
            forward: Runs the model for one time step.
            x: Inputs of the time step, ``(B, ...)``.

        Returns:
            Anything; it is not used.
        """
        return forward(x)

    def evaluation_step(self, forward: Forward, x: Any, y: Any, /, *args: Any, **extras: Any) -> Scored:
        """Compute the loss and metrics of one time step of a validation or test. The default is ``learning_step``.

        Args:
            forward: Runs the model for one time step. It must be called exactly once.
            x: Inputs of the time step, ``(B, ...)``.
            y: Targets of the time step, ``(B, ...)``, or None.
            **extras: The time step of every entry of ``Phases.extras``, ``(B, ...)``.

        Returns:
            As ``learning_step``.
        """
        return self.learning_step(forward, x, y, *args, **extras)

    def predict_step(self, forward: Forward, x: Any, /) -> Any:
        """Compute the prediction of one time step. The default is ``forward(x)``.

        Args:
            forward: Runs the model for one time step.
            x: Inputs of the time step, ``(B, ...)``.

        Returns:
            A pytree of arrays ``(B, ...)``, which are stacked over time to ``(T_l, B, ...)``.
        """
        return forward(x)

    def phases(self, batch: Any, /) -> Phases:
        """Split a batch in time. Called on the host and while tracing.

        By default, the last ``len(targets)`` time steps of a batch ``(inputs, targets)`` are the learning phase, and
        those before are the warm-up phase. In a batch of inputs alone, every time step belongs to the learning phase.

        Args:
            batch: One batch of the data, time-major.

        Returns:
            The batch as ``Phases``.

        Raises:
            TypeError: The batch is a tuple or list, but not a pair, or a dict with a key such as "targets" or "y".
            ValueError: The targets have more time steps than the inputs.
        """
        if isinstance(batch, Phases):
            return batch
        if isinstance(batch, tuple | list) and len(batch) != 2:
            raise TypeError(
                f"a batch of {len(batch)} parts; expected (inputs, targets). For weights, resets and "
                "further sequences let Module.phases return jaxtrain.Phases"
            )
        if isinstance(batch, dict) and (named := [key for key in batch if key in TARGETS]):
            raise TypeError(
                f"a batch is a dict with the key {named[0]!r}, and by default a dict is the model's input: define "
                f"Module.phases, and return jaxtrain.Phases(warmup=None, inputs=..., targets=batch[{named[0]!r}])"
            )
        inputs, targets = batch if isinstance(batch, tuple | list) else (batch, None)
        scored = {np.shape(leaf)[0] for leaf in jax.tree.leaves(targets) if np.ndim(leaf)}
        if not scored:
            return Phases(warmup=None, inputs=inputs, targets=targets)
        steps = [np.shape(leaf)[0] for leaf in jax.tree.leaves(inputs) if np.ndim(leaf)]
        if not steps:
            raise ValueError(f"targets have {max(scored)} time steps and inputs no time axis; {TIME_MAJOR}")
        warm = min(steps) - max(scored)
        if warm < 0:
            flat, count = 1 in map(np.ndim, jax.tree.leaves(targets)), max(scored)
            what = f"one axis, ({count},)" if flat else f"{count} time steps and inputs only {min(steps)}; {TIME_MAJOR}"
            raise ValueError(f"targets have {what}; {ONE_TARGET}")
        if warm == 0:
            return Phases(warmup=None, inputs=inputs, targets=targets)
        head = jax.tree.map(lambda leaf: leaf[:warm], inputs)
        tail = jax.tree.map(lambda leaf: leaf[warm:], inputs)
        return Phases(warmup=head, inputs=tail, targets=targets)

    def configure_optimizer(self) -> Configured:
        """Create the optimizer. Called once per run, after the model is built.

        Returns:
            One of:

            - a ``braintools.optim`` optimizer or an optax transformation;
            - a pair ``(optimizer, schedule)`` of an optax transformation and the learning rate that it uses, a number
                or a function of the number of updates. The learning rate is then logged. Otherwise an optax
                transformation logs it only if it is wrapped in ``optax.inject_hyperparams``;
            - a dict ``{label: optimizer}``, with ``group`` to choose a label for each parameter; or a pair of such a
                dict and a dict ``{label: schedule}``.
        """
        raise TypeError(
            f"{type(self).__name__} defines no configure_optimizer(); return an optax transformation, as "
            "optax.adam(1e-3), or a braintools.optim optimizer from it"
        )

    configure_optimizers = configure_optimizer
    """Another name for ``configure_optimizer``."""

    def group(self, name: str, /) -> str:
        """Choose the optimizer of a parameter. Called only if ``configure_optimizer`` returns a dict.

        Args:
            name: The parameter's dotted path.

        Returns:
            A label of the dict.
        """
        raise TypeError(f"{type(self).__name__}.configure_optimizer gives a dict, so define group(name) -> label")

    def trainable(self, name: str, /) -> bool:
        """Whether a parameter is trained. The default is True for all.

        Args:
            name: The parameter's dotted path.

        Returns:
            False for a parameter that keeps its initial value.
        """
        return True

    def project(self, name: str, value: Any, /) -> Any:
        """Make a parameter satisfy a constraint. Called while tracing. The default returns the value unchanged.

        A run calls it for the initial value of every parameter, and after each update for every trained parameter.

        Args:
            name: The name in the parameter report, such as ``rec.weight``.
            value: An array or a pytree of arrays, for example ``{"weight": (n_in, n_out), "bias": (n_out,)}`` of a
                linear layer. Leaves may be quantities with a unit. Ready projections: ``jaxtrain.projections``.

        Returns:
            The projected value, with the tree, shapes, dtypes and units of ``value``.
        """
        return value


TIME_MAJOR = (
    "arrays are read as time-major, (T, B, ...). If axis 0 of the data is the batch, pass batch_first=True with bare "
    "data or set it on the DataModule"
)
ONE_TARGET = "a target for a whole sequence is (1, B, ...), or (B, 1, ...) with batch_first=True"
TARGETS = ("y", "target", "targets", "label", "labels")
"""Keys under which other data holds targets."""
