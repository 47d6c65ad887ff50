"""braintools and optax behind one face: a gradient comes in, clipped and accumulated, and parameters change."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from braintools.optim import OptaxOptimizer

from ..core.metrics import Mean, Metrics
from ..core.module import Module
from ..core.state import State, add_to, global_norm, leaf_names, states_of, strengthen, wide_zeros
from ..distributed import processes
from ..utils.logging import one_line

LIGHTNING = {"optimizer", "lr_scheduler", "lr_scheduler_config", "monitor"}
_UNJITTED = {
    "ReduceLROnPlateau": (
        "optax.contrib.reduce_on_plateau, chained behind the optimizer, which sees the train loss of every update (its "
        "accumulation_size averages so many of them)"
    ),
    "SequentialLR": "optax.join_schedules",
    "ChainedScheduler": "one optax schedule that multiplies the factors",
    "CosineAnnealingWarmRestarts": "optax.sgdr_schedule",
}


class _Braintools:
    """A braintools.optim optimizer with its scheduler, which is stepped at every update."""

    wants_loss = False

    def __init__(self, optimizer: OptaxOptimizer, params: dict[str, State], idle: dict[str, State], where: str):
        self.optimizer = optimizer
        if optimizer.opt_state is not None and int(optimizer.step_count.value) > 0:
            raise ValueError(
                f"the optimizer {where}has made {int(optimizer.step_count.value)} updates already: "
                "configure_optimizer must return a new one each time"
            )
        if optimizer.opt_state is None:
            optimizer.register_trainable_weights(params)
        known = {id(state): name for name, state in (params | idle).items()}
        registered = optimizer.param_states.to_dict()
        missing = [name for name, state in params.items() if id(state) not in {id(s) for s in registered.values()}]
        if missing:
            raise ValueError(
                f"the optimizer {where}misses {missing}: register every trained parameter, or none (jaxtrain does it), "
                "or exclude them with Module.trainable"
            )
        extra = [str(key) for key, state in registered.items() if id(state) not in known]
        if extra:
            raise ValueError(f"the optimizer {where}holds {extra}, which the module does not train (Module.trainable)")
        # Whoever registered them chose the keys, or a tree of dicts: the gradients take its shape.
        self._names = jax.tree.map(
            lambda state: known[id(state)], optimizer.param_states.to_pytree(), is_leaf=lambda x: isinstance(x, State)
        )
        registered_names = jax.tree.leaves(self._names)
        self._idle = {name: state for name, state in idle.items() if name in registered_names}

    def apply(self, grads: dict[str, Any], *loss: Any) -> None:
        # Who registers parameters that the rule does not train gets them back as they were, weight decay or not.
        held = {name: state.value for name, state in self._idle.items()}
        grads = grads | {name: jax.tree.map(jnp.zeros_like, value) for name, value in held.items()}
        self.optimizer.update(jax.tree.map(lambda name: grads[name], self._names))
        self.optimizer.lr_scheduler.step()
        for name, value in held.items():
            self._idle[name].value = value

    def rate(self) -> Any:
        return self.optimizer.lr_scheduler.current_lrs.value[0]

    def states(self) -> dict[str, State]:
        own = {
            name: state
            for name, state in states_of(self.optimizer).items()
            if not isinstance(state, brainstate.ParamState)
        }
        # The scheduler is a plain object: no enumeration of the optimizer's states reaches it.
        scheduler = vars(self.optimizer.lr_scheduler)
        own |= {f"scheduler.{name.lstrip('_')}": state for name, state in scheduler.items() if isinstance(state, State)}
        return own

    def settings(self) -> dict[str, Any]:
        return {"base_lrs": [float(rate) for rate in self.optimizer.lr_scheduler.base_lrs]}

    def renew(self, saved: dict[str, Any]) -> None:
        """After a restore: a learning rate that was changed since wins over the one in the checkpoint."""
        if saved != self.settings():
            scheduler = self.optimizer.lr_scheduler
            scheduler.step(int(scheduler.last_epoch.value))
            strengthen(self.states().values())


class _Optax:
    """An optax transformation; a schedule inside it counts updates by itself. One that asks for ``value``, as
    ``optax.contrib.reduce_on_plateau``, is given the train loss of the update."""

    def __init__(self, transformation: optax.GradientTransformation, params: dict[str, State]):
        self._tx = optax.with_extra_args_support(transformation)
        self._params = params
        self._state = State(self._tx.init({name: state.value for name, state in params.items()}))
        self._initial = self._hyperparameters()
        self.wants_loss = isinstance(transformation, optax.GradientTransformationExtraArgs) and self._refuses()

    def _refuses(self) -> bool:
        """Whether an update needs more than gradients and parameters."""
        values = {name: state.value for name, state in self._params.items()}
        try:
            jax.eval_shape(self._tx.update, values, self._state.value, values)
        except (TypeError, ValueError):
            return True
        return False

    def apply(self, grads: dict[str, Any], *loss: Any) -> None:
        values = {name: state.value for name, state in self._params.items()}
        mine = {name: grads[name] for name in values}
        extra = {"value": loss[0]} if self.wants_loss else {}
        updates, self._state.value = self._tx.update(mine, self._state.value, values, **extra)
        new: Any = optax.apply_updates(values, updates)
        for name, state in self._params.items():
            state.value = new[name]

    def rate(self) -> Any:
        """Known where the transformation is wrapped in ``optax.inject_hyperparams``, else None."""
        rates = [value for path, value in self._injected() if path.endswith("learning_rate")]
        return rates[0] if len(rates) == 1 else None

    def states(self) -> dict[str, State]:
        return {"state": self._state}

    def settings(self) -> dict[str, Any]:
        return {"hyperparameters": self._initial}

    def renew(self, saved: dict[str, Any]) -> None:
        """After a restore: injected hyperparameters that were changed since win over those in the checkpoint."""
        changed = {k: v for k, v in self._initial.items() if saved.get("hyperparameters", {}).get(k, v) != v}
        if changed:
            leaves, tree = jax.tree_util.tree_flatten_with_path(self._state.value)
            new = [
                jnp.asarray(changed.get(jax.tree_util.keystr(path), leaf), jnp.asarray(leaf).dtype)
                for path, leaf in leaves
            ]
            self._state.value = jax.tree.unflatten(tree, new)

    def _injected(self):
        return [
            (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(self._state.value)
            if ".hyperparams[" in jax.tree_util.keystr(path)
        ]

    def _hyperparameters(self) -> dict[str, float]:
        return {
            jax.tree_util.keystr(path): float(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(self._state.value)
            if ".hyperparams[" in jax.tree_util.keystr(path) and np.ndim(leaf) == 0
        }


class Optimizer:
    """Everything between a gradient and new parameters, for the parameters that are trained.

    ``params``: those that the optimizer changes. ``idle``: those that the module would train and the rule does
    not: nothing moves them, weight decay neither.

    ``update(grads, weight, loss)`` takes gradients of ``sum(w * loss)``, ``sum(w)`` and that sum itself, for an
    optimizer that looks at the loss. It adds them up over ``accumulate`` calls, divides once, clips by global norm and
    applies the optimizer; where nothing weighs anything there is no update. ``updates`` counts applications, and
    schedules advance by them.
    """

    def __init__(self, module, params: dict[str, State], *, clip: float | None, accumulate: int,
                 idle: dict[str, State] | None = None):  # fmt: skip
        self._params = params
        self._clip = clip
        self._accumulate = accumulate
        self._parts = _bind(module, params, idle or {})
        self._updates = State(jnp.int32(0))
        self._total = {name: State(wide_zeros(state.value)) for name, state in params.items()}
        self._weight, self._count = State(jnp.float32(0)), State(jnp.int32(0))
        self._loss = State(jnp.float32(0))
        self.wants_loss = any(part.wants_loss for part in self._parts.values())
        self.names = list(params)
        self.leaves = leaf_names({name: params[name].value for name in params})
        strengthen(self.states().values())
        self._try(module)

    def states(self) -> dict[str, State]:
        """Everything of the optimizer that a checkpoint must hold, under stable names."""
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
        """Traced. Returns ``grad_norm`` (before clipping) and ``lr``, weighing nothing where there was no update."""
        seen = (jnp.asarray(loss, jnp.float32),) if self.wants_loss else ()
        if self._accumulate == 1:
            if isinstance(weight, float):
                return self._apply(grads, weight, *seen)
            return brainstate.transform.cond(weight > 0, self._apply, self._skip, grads, weight, *seen)
        for name, value in self.accumulated(grads).items():
            self._total[name].value = value
        self._weight.value = self._weight.value + weight
        self._count.value = self._count.value + 1
        if seen:
            self._loss.value = self._loss.value + seen[0]
            seen = (self._loss.value,)
        total = {name: state.value for name, state in self._total.items()}
        full = self._count.value >= self._accumulate
        metrics = brainstate.transform.cond(
            full & (self._weight.value > 0), self._apply, self._skip, total, self._weight.value, *seen
        )
        for state in (*self._total.values(), self._weight, self._count, *([self._loss] if seen else [])):
            state.value = jax.tree.map(lambda leaf: jnp.where(full, jnp.zeros_like(leaf), leaf), state.value)
        return metrics

    def accumulated(self, grads: dict[str, Any]) -> dict[str, Any]:
        """Traced: the gradients with what has been added up before them, of the parameters that are trained."""
        if self._accumulate == 1:
            return {name: grads[name] for name in self.names}
        return {name: add_to(total.value, grads[name]) for name, total in self._total.items()}

    def _apply(self, grads: dict[str, Any], weight: Any, *loss: Any) -> Metrics:
        grads = {name: jax.tree.map(lambda leaf: leaf / weight, grads[name]) for name in self.names}
        norm = global_norm(grads)
        if self._clip is not None:
            scale = jnp.minimum(1.0, self._clip / jnp.maximum(norm, 1e-12))
            grads = jax.tree.map(lambda leaf: leaf * scale, grads)
        grads = {name: _cast(grads[name], self._params[name].value) for name in self.names}
        rates = self._rates()
        for part in self._parts.values():
            part.apply(grads, *(total / weight for total in loss))
        self._updates.value = self._updates.value + 1
        return self._metrics(norm, rates, 1.0)

    def _skip(self, grads: dict[str, Any], weight: Any, *loss: Any) -> Metrics:
        return self._metrics(0.0, self._rates(), 0.0)

    def _rates(self) -> dict[str, Any]:
        rates = {f"lr/{label}" if label else "lr": part.rate() for label, part in self._parts.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _metrics(self, norm: Any, rates: dict[str, Any], weight: float) -> Metrics:
        mean = lambda value, weight: Mean(jnp.asarray(value, jnp.float32), jnp.float32(weight))  # noqa: E731
        return {"grad_norm": mean(norm, weight), **{name: mean(rate, 1.0) for name, rate in rates.items()}}

    def _try(self, module) -> None:
        """Trace one update now, so that what cannot run compiled is named before step 0."""
        zeros = {name: jax.tree.map(jnp.zeros_like, state.value) for name, state in self._params.items()}
        loss = (jnp.float32(0),) if self.wants_loss else ()
        try:
            brainstate.transform.StatefulFunction(lambda g: self._apply(g, 1.0, *loss)).make_jaxpr(zeros)
        except Exception as error:
            given = ", given gradients, parameters and the loss as value" if loss else ""
            raise ValueError(
                f"the optimizer of {type(module).__name__} cannot run in a compiled program{given} "
                f"({one_line(error)}): use another one, as optax.adam of optax"
            ) from error


def _cast(grad: Any, value: Any) -> Any:
    """A gradient in the types of its parameter."""
    leaves, tree = jax.tree.flatten(grad)
    return tree.unflatten([g.astype(v.dtype) for g, v in zip(leaves, jax.tree.leaves(value), strict=True)])


def _bind(module, params: dict[str, State], idle: dict[str, State]) -> dict[str, _Braintools | _Optax]:
    configured = module.configure_optimizer()
    if not isinstance(configured, dict):
        return {"": _one(configured, params, idle, "")}
    if "optimizer" in configured and configured.keys() <= LIGHTNING and type(module).group is Module.group:
        raise TypeError(
            f"{type(module).__name__}.configure_optimizer gave a dict {list(configured)}, as Lightning has it; return "
            "the optimizer alone, and a schedule as its learning rate: "
            "optax.adam(optax.cosine_decay_schedule(1e-3, 1000))"
        )
    labels = {name: module.group(name) for name in (*params, *idle)}
    of = lambda label, states: {name: states[name] for name in states if labels[name] == label}  # noqa: E731
    unknown = {name: label for name, label in labels.items() if label not in configured}
    if unknown:
        raise ValueError(f"Module.group gives labels without an optimizer: {unknown}; there are {list(configured)}")
    unused = [label for label in configured if label not in labels.values()]
    if unused:
        raise ValueError(f"no parameter belongs to the optimizer(s) {unused}; Module.group gives {labels}")
    return {
        label: _one(part, of(label, params), of(label, idle), f"of group {label!r} ")
        for label, part in configured.items()
        if of(label, params)  # the rule may train nothing of a group
    }


def _one(optimizer: Any, params: dict[str, State], idle: dict[str, State], where: str) -> _Braintools | _Optax:
    if isinstance(optimizer, OptaxOptimizer):
        scheduler = type(optimizer.lr_scheduler).__name__
        if scheduler in _UNJITTED:
            raise ValueError(
                f"the scheduler {scheduler} cannot run in a compiled program: use optax with {_UNJITTED[scheduler]}"
            )
        return _Braintools(optimizer, params, idle, where)
    if isinstance(optimizer, optax.GradientTransformation):
        return _Optax(optimizer, params)
    raise TypeError(
        f"configure_optimizer {where}gave {type(optimizer).__name__}; expected a gradient-based braintools.optim "
        "optimizer (an OptaxOptimizer), an optax transformation, or a dict of them"
    )


def accumulated_batches(values: dict[str, Any]) -> int:
    """How many batches are added up for an update that has not been made yet; ``values``: those of one seed."""
    return int(processes.whole(values["optimizer/accumulated_batches"]))
