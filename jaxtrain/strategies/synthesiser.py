"""The synthesiser of decoupled neural interfaces: a linear map from hidden states to the gradient of later losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import saiunit as u

from ..core.functional import Functional, gradient
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import State, long_term_states, parameters, set_key, states_of
from ..utils.logging import log
from .base import Network, scored, warm_up
from .padding import inert


class Synthesiser:
    """Estimates of the gradient of later losses with respect to hidden states.

    Args:
        network: The model over a batch.
        groups: The names of the hidden states of each of braintrace's groups, by number of the group.
        module: braintrace's synthesiser; None creates one that estimates zero.

    Raises:
        ValueError: A hidden state has no gradient.
    """

    def __init__(self, network: Network, groups: Mapping[int, Sequence[str]], module: Any = None):
        self._network, self._groups = network, groups
        for name, state in network.hidden.items():
            for leaf in jax.tree.leaves(state.value):
                if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                    raise ValueError(
                        f"dni: the hidden state {name!r} is {leaf.dtype}, which has no gradient to add an estimate to; "
                        "keep it as a float, or use strategy='drtrl'"
                    )
        self._hidden = {name: network.hidden[name] for names in groups.values() for name in names}
        if module is None:
            shapes = self._joined({name: state.value for name, state in self._hidden.items()})
            module = braintrace.SyntheticGradient({index: value.shape for index, value in shapes.items()})
        self._module = module
        self.states: dict[str, State] = states_of(module)

    def estimate(self, hidden: dict[str, Any]) -> dict[str, Any]:
        """The estimated gradient with respect to each hidden state, ``(..., B, units)``, without units."""
        found = self._module.apply(self._module.param_values(), self._joined(hidden))
        parts: dict[str, Any] = {}
        for index, names in self._groups.items():
            start = 0
            for name in names:
                columns = self._columns(name, hidden[name])
                part = found[index][..., start : start + columns.shape[-1]]
                parts[name], start = part.reshape(u.get_mantissa(hidden[name]).shape), start + columns.shape[-1]
        return jax.lax.stop_gradient(parts)

    def _joined(self, values: dict[str, Any]) -> dict[int, jax.Array]:
        """Values of the hidden states without units, arranged in groups, ``(..., units, states)``."""
        return {
            index: jnp.concatenate([self._columns(name, values[name]) for name in names], -1)
            for index, names in self._groups.items()
        }

    def _columns(self, name: str, value: Any) -> jax.Array:
        (value,) = jax.tree.leaves(value)
        return value if isinstance(self._hidden[name], brainstate.HiddenGroupState) else value[..., None]

    def fit(self, objective: Objective, example: Phases, epochs: int, rate: float) -> None:
        """Fit the estimates to the gradients that losses send back to the hidden states, by gradient descent.

        Raises:
            ValueError: The fit diverges.
        """
        network, hidden, states = self._network, self._hidden, self.states
        example = inert(example, objective.learn, network, carried=False)

        def reset(mask: Any) -> None:
            if mask is not None:
                network.reset_sequences(mask)

        def values() -> dict[str, Any]:
            return {name: state.value for name, state in hidden.items()}

        def regress(before: dict[str, Any], target: dict[str, Any]) -> jax.Array:
            def error():
                predicted = self._module.apply(self._module.param_values(), self._joined(before))
                wanted = self._joined(target)
                loss = sum(jnp.mean((predicted[i] - jax.lax.stop_gradient(wanted[i])) ** 2) for i in wanted)
                return loss, loss

            grads, loss = gradient(error, states)()
            for name, state in states.items():
                state.value = state.value - rate * grads[name]
            return loss

        def epoch(phases: Phases) -> jax.Array:
            set_key(jax.random.key(0))
            network.reset(phases.sizes[2])
            warm_up(objective, network, phases, reset)

            def step(x, y, w, extras, mask):
                reset(mask)

                def loss():
                    own, _ = objective.learn(network, x, y, w, extras)
                    after = {name: jax.tree.leaves(value)[0] for name, value in values().items()}
                    later = self.estimate(after)
                    return own + sum(jnp.vdot(later[name], after[name]) for name in after), None

                return regress(values(), gradient(loss, hidden)()[0])

            errors = brainstate.transform.for_loop(step, *scored(phases))
            # No loss follows the last time step, so its target is zero.
            regress(values(), jax.tree.map(jnp.zeros_like, values()))
            return errors.mean()

        model = objective.model
        named = {**parameters(model), **long_term_states(model), **{f"synthesiser.{k}": s for k, s in states.items()}}
        functional = Functional(epoch, named, network.hidden.values(), example)
        current = {name: state.value for name, state in named.items()}
        step = jax.jit(functional)
        errors = []
        for _ in range(epochs):
            new, error = step(current, example)
            current = {**current, **{k: v for k, v in new.items() if k.startswith("synthesiser.")}}
            errors.append(float(error))
        for name, state in states.items():
            state.value = current[f"synthesiser.{name}"]
        if not math.isfinite(sum(errors)) or not all(jnp.isfinite(state.value).all() for state in states.values()):
            raise ValueError(
                f"DNI(fit_epochs={epochs}, fit_lr={rate}): the fit of the synthesiser diverged, its errors were "
                f"{errors[0]:.3g} to {errors[-1]:.3g}; give a smaller fit_lr"
            )
        log.info("dni: synthesiser fitted, error %.3g to %.3g in %d epochs", errors[0], errors[-1], epochs)
