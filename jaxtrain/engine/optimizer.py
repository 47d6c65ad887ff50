"""The optimizer of a run: clips and accumulates gradients and applies a braintools or optax optimizer."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax
from braintools.optim import OptaxOptimizer

from ..core.metrics import Mean, Metrics
from ..core.module import Module
from ..core.optimizer_spec import split_schedule
from ..core.state import State, add_to, drop_weak_types, global_norm, leaf_names, wide_zeros
from ..distributed import processes
from ..utils.logging import one_line
from .backends import UNJITTED, Braintools, Optax, cast
from .projection import Projection

LIGHTNING = {"optimizer", "lr_scheduler", "lr_scheduler_config", "monitor"}
"""Keys of the dict that Lightning's configure_optimizers may return."""


class Optimizer:
    """Turns gradients into new parameters, for the parameters that are trained.

    ``update(grads, weight, loss)`` takes the gradients of ``sum(w * loss)``, the weight ``sum(w)``, and
    ``sum(w * loss)`` itself for optimizers that use the loss. It sums them over ``accumulate`` calls, divides once,
    clips by global norm and applies the optimizer. If the total weight is 0, there is no update. ``updates`` counts
    applied updates, and schedules advance by this count.

    Args:
        module: The module whose ``configure_optimizer`` and ``group`` are called.
        params: Parameters that the optimizer changes, by name.
        clip: Largest global norm of a gradient, or None.
        accumulate: Number of batches per update.
        idle: Parameters that are trainable in the module but not trained by the rule. Nothing changes them, not even
            weight decay.
        project: ``project(name, value)``, applied to each parameter after each update, or None.

    Raises:
        ValueError: The optimizer does not match the parameters or cannot run in a compiled program.
        TypeError: ``configure_optimizer`` returned something that is not an optimizer.
    """

    def __init__(self, module, params: dict[str, State], *, clip: float | None, accumulate: int,
                 idle: dict[str, State] | None = None, project: Projection | None = None):  # fmt: skip
        self._params = params
        self._project = project
        self._clip = clip
        self._accumulate = accumulate
        self._parts = _bind(module, params, idle or {})
        self._updates = State(jnp.int32(0))
        summed = params if accumulate > 1 else {}
        self._total = {name: State(wide_zeros(state.value)) for name, state in summed.items()}
        self._weight, self._count = State(jnp.float32(0)), State(jnp.int32(0))
        self._loss = State(jnp.float32(0))
        self.wants_loss = any(part.wants_loss for part in self._parts.values())
        self.leaves = {leaf: name for name in params for leaf in leaf_names({name: params[name].value})}
        """The parameter that each leaf belongs to, by the name of the leaf."""
        drop_weak_types(self.states().values())
        self._try(module)

    @property
    def names(self) -> list[str]:
        """Names of the parameters that the optimizer changes."""
        return list(self._params)

    def states(self) -> dict[str, State]:
        """All States of the optimizer that a checkpoint must hold, under stable names."""
        states = {"updates": self._updates}
        for label, part in self._parts.items():
            states |= {f"{label}.{name}" if label else name: state for name, state in part.states().items()}
        if self._accumulate > 1:
            states |= {f"accumulated.{name}": state for name, state in self._total.items()}
            states |= {"accumulated_weight": self._weight, "accumulated_batches": self._count}
            states |= {"accumulated_loss": self._loss} if self.wants_loss else {}
        return states

    def settings(self) -> dict[str, Any]:
        return {label: part.settings() for label, part in self._parts.items()}

    def renew(self, saved: dict[str, Any]) -> None:
        for label, part in self._parts.items():
            part.renew(saved.get(label, part.settings()))

    def update(self, grads: dict[str, Any], weight: Any, loss: Any = 0.0) -> Metrics:
        """Accumulate gradients and apply the optimizer when an update is due. Called while tracing.

        Returns:
            ``grad_norm`` (before clipping) and ``lr``. ``grad_norm`` has weight 0 if there was no update.
        """
        losses = (jnp.asarray(loss, jnp.float32),) if self.wants_loss else ()
        if self._accumulate == 1:
            if isinstance(weight, float):
                return self._apply(grads, weight, *losses)
            return brainstate.transform.cond(weight > 0, self._apply, self._skip, grads, weight, *losses)
        for name, value in self.accumulated(grads).items():
            self._total[name].value = value
        self._weight.value = self._weight.value + weight
        self._count.value = self._count.value + 1
        if losses:
            self._loss.value = self._loss.value + losses[0]
            losses = (self._loss.value,)
        total = {name: state.value for name, state in self._total.items()}
        full = self._count.value >= self._accumulate
        metrics = brainstate.transform.cond(
            full & (self._weight.value > 0), self._apply, self._skip, total, self._weight.value, *losses
        )
        for state in (*self._total.values(), self._weight, self._count, *([self._loss] if losses else [])):
            state.value = jax.tree.map(lambda leaf: jnp.where(full, jnp.zeros_like(leaf), leaf), state.value)
        return metrics

    def accumulated(self, grads: dict[str, Any]) -> dict[str, Any]:
        """Gradients of the trained parameters plus those accumulated so far. Called while tracing."""
        if self._accumulate == 1:
            return {name: grads[name] for name in self.names}
        return {name: add_to(total.value, grads[name]) for name, total in self._total.items()}

    def _apply(self, grads: dict[str, Any], weight: Any, *loss: Any) -> Metrics:
        grads = {name: jax.tree.map(lambda leaf: leaf / weight, grads[name]) for name in self.names}
        norm = global_norm(grads)
        if self._clip is not None:
            scale = jnp.minimum(1.0, self._clip / jnp.maximum(norm, 1e-12))
            grads = jax.tree.map(lambda leaf: leaf * scale, grads)
        grads = {name: cast(grads[name], self._params[name].value) for name in self.names}
        losses = [total / weight for total in loss]
        rates = {label: part.apply(grads, self._updates.value, *losses) for label, part in self._parts.items()}
        self._updates.value = self._updates.value + 1
        self.project()
        return self._metrics(norm, rates, 1.0)

    def project(self) -> None:
        """Apply ``Module.project`` to the parameters. Called while tracing."""
        if self._project is not None:
            for name, state in self._params.items():
                state.value = self._project(name, state.value)

    def _skip(self, grads: dict[str, Any], weight: Any, *loss: Any) -> Metrics:
        rates = {label: part.rate(self._updates.value) for label, part in self._parts.items()}
        return self._metrics(0.0, rates, 0.0)

    def _metrics(self, norm: Any, rates: dict[str, Any], weight: float) -> Metrics:
        mean = lambda value, weight: Mean(jnp.asarray(value, jnp.float32), jnp.float32(weight))  # noqa: E731
        known = {f"lr/{label}" if label else "lr": rate for label, rate in rates.items() if rate is not None}
        return {"grad_norm": mean(norm, weight), **{name: mean(rate, 1.0) for name, rate in known.items()}}

    def _try(self, module) -> None:
        """Trace one update now, so that an optimizer that cannot be compiled is reported before step 0."""
        zeros = {name: jax.tree.map(jnp.zeros_like, state.value) for name, state in self._params.items()}
        loss = (jnp.float32(0),) if self.wants_loss else ()
        try:
            brainstate.transform.StatefulFunction(lambda g: self._apply(g, 1.0, *loss)).make_jaxpr(zeros)
        except Exception as error:
            given = ", given gradients, parameters and the loss as value" if loss else ""
            raise ValueError(
                f"the optimizer of {type(module).__name__} cannot run in a compiled program{given} "
                f"({one_line(error)}): use another one, for example optax.adam of optax"
            ) from error


def _bind(module: Module, params: dict[str, State], idle: dict[str, State]) -> dict[str, Braintools | Optax]:
    configured, schedules = split_schedule(module.configure_optimizer())
    if not isinstance(configured, dict):
        return {"": _one(configured, schedules, params, idle, "")}
    if "optimizer" in configured and configured.keys() <= LIGHTNING and type(module).group is Module.group:
        raise TypeError(
            f"{type(module).__name__}.configure_optimizer returned a dict {list(configured)} in Lightning's format; "
            "return the optimizer alone, with a schedule as its learning rate: "
            "optax.adam(optax.cosine_decay_schedule(1e-3, 1000))"
        )
    labels = {name: module.group(name) for name in (*params, *idle)}
    within = lambda label, states: {name: states[name] for name in states if labels[name] == label}  # noqa: E731
    unknown = {name: label for name, label in labels.items() if label not in configured}
    if unknown:
        raise ValueError(
            f"Module.group gives labels without an optimizer: {unknown}; expected one of {list(configured)}"
        )
    unused = [label for label in configured if label not in labels.values()]
    if unused:
        raise ValueError(f"no parameter belongs to the optimizer(s) {unused}; Module.group gives {labels}")
    return {
        label: _one(
            part, (schedules or {}).get(label), within(label, params), within(label, idle), f"of group {label!r} "
        )
        for label, part in configured.items()
        if within(label, params)  # the rule may train no parameter of a group
    }


def _one(
    optimizer: Any, schedule: Any, params: dict[str, State], idle: dict[str, State], where: str
) -> Braintools | Optax:
    if isinstance(optimizer, OptaxOptimizer):
        scheduler = type(optimizer.lr_scheduler).__name__
        if scheduler in UNJITTED:
            raise ValueError(
                f"the scheduler {scheduler} cannot run in a compiled program: use optax with {UNJITTED[scheduler]}"
            )
        return Braintools(optimizer, params, idle, where)
    if isinstance(optimizer, optax.GradientTransformation):
        return Optax(optimizer, params, schedule)
    raise TypeError(
        f"configure_optimizer {where}returned {type(optimizer).__name__}; expected a gradient-based braintools.optim "
        "optimizer (an OptaxOptimizer), an optax transformation, or a dict of them"
    )


def accumulated_batches(values: dict[str, Any]) -> int:
    """Number of batches accumulated for the next update; ``values`` are the program values of one seed."""
    return int(processes.allgather(values["optimizer/accumulated_batches"]))
