"""A common interface to optimizers of braintools and optax."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from braintools.optim import OptaxOptimizer

from ..core.one_program import at_once
from ..core.state import State, drop_weak_types, states_of

UNJITTED = {
    "ReduceLROnPlateau": (
        "optax.contrib.reduce_on_plateau, chained after the optimizer, which receives the train loss of every update "
        "(its accumulation_size averages that many losses)"
    ),
    "SequentialLR": "optax.join_schedules",
    "ChainedScheduler": "one optax schedule that multiplies the factors",
    "CosineAnnealingWarmRestarts": "optax.sgdr_schedule",
}
"""braintools schedulers that cannot run in a compiled program, and the optax replacement that the error suggests."""


class Braintools:
    """A braintools.optim optimizer with its scheduler. The scheduler advances by one at every update."""

    wants_loss = False

    def __init__(self, optimizer: OptaxOptimizer, params: dict[str, State], idle: dict[str, State], where: str):
        self.optimizer = optimizer
        if optimizer.opt_state is not None and int(optimizer.step_count.value) > 0:
            raise ValueError(
                f"the optimizer {where}has already made {int(optimizer.step_count.value)} updates: "
                "configure_optimizer must return a new one each time"
            )
        if optimizer.opt_state is None:
            optimizer.register_trainable_weights(params)
        known = {id(state): name for name, state in (params | idle).items()}
        registered = optimizer.param_states.to_dict()
        missing = [name for name, state in params.items() if id(state) not in {id(s) for s in registered.values()}]
        if missing:
            raise ValueError(
                f"the optimizer {where}misses {missing}: register every trained parameter, or none (jaxtrain then "
                "does it), or exclude them with Module.trainable"
            )
        extra = [str(key) for key, state in registered.items() if id(state) not in known]
        if extra:
            raise ValueError(f"the optimizer {where}holds {extra}, which the module does not train (Module.trainable)")
        # The code that registered the weights chose their keys, possibly nested; gradients must have the same tree.
        self._names = jax.tree.map(
            lambda state: known[id(state)], optimizer.param_states.to_pytree(), is_leaf=lambda x: isinstance(x, State)
        )
        registered_names = jax.tree.leaves(self._names)
        self._idle = {name: state for name, state in idle.items() if name in registered_names}

    def apply(self, grads: dict[str, Any], updates: Any, *loss: Any) -> Any:
        """Update the parameters; return the learning rate of this update."""
        rate = self.rate(updates)
        # Registered parameters that the rule does not train are restored, so that weight decay cannot move them.
        held = {name: state.value for name, state in self._idle.items()}
        grads = grads | {name: jax.tree.map(jnp.zeros_like, value) for name, value in held.items()}
        self.optimizer.update(jax.tree.map(lambda name: grads[name], self._names))
        self.optimizer.lr_scheduler.step()
        for name, value in held.items():
            self._idle[name].value = value
        return rate

    def rate(self, updates: Any) -> Any:
        """The learning rate of the next update, of which ``updates`` were made before."""
        return self.optimizer.lr_scheduler.current_lrs.value[0]

    def states(self) -> dict[str, State]:
        own = states_of(self.optimizer)
        own = {name: state for name, state in own.items() if not isinstance(state, brainstate.ParamState)}
        # The scheduler is a plain object, so states_of(optimizer) does not find its States.
        scheduler = vars(self.optimizer.lr_scheduler)
        own |= {f"scheduler.{name.lstrip('_')}": state for name, state in scheduler.items() if isinstance(state, State)}
        return own

    def settings(self) -> dict[str, Any]:
        return {"base_lrs": [float(rate) for rate in self.optimizer.lr_scheduler.base_lrs]}

    def renew(self, saved: dict[str, Any]) -> None:
        """After a restore, apply a learning rate that was changed since the checkpoint, instead of the saved one."""
        if saved != self.settings():
            scheduler = self.optimizer.lr_scheduler
            scheduler.step(int(scheduler.last_epoch.value))
            drop_weak_types(self.states().values())


class Optax:
    """An optax transformation. Schedules inside it count updates themselves.

    If the transformation requires ``value``, as ``optax.contrib.reduce_on_plateau`` does, it receives the train loss
    of the update.
    """

    def __init__(self, transformation: optax.GradientTransformation, params: dict[str, State], schedule: Any = None):
        self._tx = optax.with_extra_args_support(transformation)
        self._params, self._schedule = params, schedule
        self._state = State(at_once(self._tx.init, {name: state.value for name, state in params.items()}))
        self._initial = self._hyperparameters()
        self.wants_loss = isinstance(transformation, optax.GradientTransformationExtraArgs) and self._refuses()

    def _refuses(self) -> bool:
        """Return True if an update needs more than gradients and parameters."""
        values = {name: state.value for name, state in self._params.items()}
        try:
            jax.eval_shape(self._tx.update, values, self._state.value, values)
        except (TypeError, ValueError):
            return True
        return False

    def apply(self, grads: dict[str, Any], updates: Any, *loss: Any) -> Any:
        """Update the parameters; return the learning rate of this update, or None if it is unknown."""
        values = {name: state.value for name, state in self._params.items()}
        mine = {name: grads[name] for name in values}
        extra = {"value": loss[0]} if self.wants_loss else {}
        changes, self._state.value = self._tx.update(mine, self._state.value, values, **extra)
        new: Any = optax.apply_updates(values, changes)
        for name, state in self._params.items():
            state.value = new[name]
        return self.rate(updates)  # inject_hyperparams stores the rates that it has just used

    def rate(self, updates: Any) -> Any:
        """The learning rate: of the schedule, or from ``optax.inject_hyperparams``, else None.

        Args:
            updates: Number of updates made before.
        """
        if self._schedule is not None:
            return self._schedule(updates) if callable(self._schedule) else self._schedule
        rates = [value for path, value in self._injected().items() if path.endswith("['learning_rate']")]
        return rates[0] if len(rates) == 1 else None

    def states(self) -> dict[str, State]:
        return {"state": self._state}

    def settings(self) -> dict[str, Any]:
        return {"hyperparameters": self._initial}

    def renew(self, saved: dict[str, Any]) -> None:
        """After a restore, apply injected hyperparameters that were changed since the checkpoint."""
        changed = {k: v for k, v in self._initial.items() if saved.get("hyperparameters", {}).get(k, v) != v}
        if changed:
            leaves, tree = jax.tree_util.tree_flatten_with_path(self._state.value)
            new = [
                jnp.asarray(changed.get(jax.tree_util.keystr(path), leaf), jnp.asarray(leaf).dtype)
                for path, leaf in leaves
            ]
            self._state.value = jax.tree.unflatten(tree, new)

    def _injected(self) -> dict[str, Any]:
        """Hyperparameters that ``optax.inject_hyperparams`` keeps in the state, by path."""
        leaves = jax.tree_util.tree_leaves_with_path(self._state.value)
        paths = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        return {path: leaf for path, leaf in paths.items() if ".hyperparams[" in path}

    def _hyperparameters(self) -> dict[str, float]:
        return {path: float(leaf) for path, leaf in self._injected().items() if np.ndim(leaf) == 0}


def cast(grad: Any, value: Any) -> Any:
    """Cast a gradient to the dtypes of its parameter."""
    leaves, tree = jax.tree.flatten(grad)
    return tree.unflatten([g.astype(v.dtype) for g, v in zip(leaves, jax.tree.leaves(value), strict=True)])
