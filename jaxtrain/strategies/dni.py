"""The learner of decoupled neural interfaces: D-RTRL with a learned estimate of the gradient of later losses."""

from __future__ import annotations

import math
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp

from ..core.functional import Functional, gradient
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import long_term_states, parameters, set_key
from ..utils.logging import log
from .base import Learner, scored, warm_up
from .online import OnlineLearner
from .padding import inert
from .specs.rules import DNI


def fitted(strategy: DNI, objective: Objective, compiled: Any, example: Phases) -> Learner:
    """Create a learner and fit its synthesiser on the first batch."""
    inner: Any = compiled.module if isinstance(compiled, brainstate.nn.Vmap) else compiled
    inner.attach_synthesizer(braintrace.SyntheticGradient(inner.group_signal_shapes()))
    schedule, reach = strategy.update_schedule(), strategy.reach(example.sizes[1])
    learner = _Learner(objective, compiled, update_schedule=schedule, reach=reach)
    for name, state in learner.network.hidden.items():
        for leaf in jax.tree.leaves(state.value):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"dni: the hidden state {name!r} is {leaf.dtype}, which has no gradient to add an estimate to; "
                    "keep it as a float, or use strategy='drtrl'"
                )
    example = inert(example, objective.learn, learner.network, carried=False)
    learner.fit(example, strategy.fit_epochs, strategy.fit_lr)
    return learner


class _Learner(OnlineLearner):
    def __init__(self, objective: Objective, rule: Any, **options: Any):
        super().__init__(objective, rule, **options)
        # The synthesiser outlives a sequence and is saved in checkpoints; the other states of the rule are reset.
        self._synthesiser = {k: s for k, s in self.own.items() if isinstance(s, brainstate.ParamState)}
        self.own = {k: s for k, s in self.own.items() if k not in self._synthesiser}

    def states(self):
        return {**super().states(), **self._synthesiser}

    def fit(self, example: Phases, epochs: int, rate: float) -> None:
        """Fit the synthesiser to the gradients that the rule sends back to the hidden states."""
        hidden, synthesiser = self._grouped_hidden(), self.inner.synthesizer
        states = dict(self._synthesiser)

        def regress(before: dict[str, Any], target: dict[str, Any]) -> jax.Array:
            def error():
                predicted = synthesiser.apply(synthesiser.param_values(), self._grouped(before))
                wanted = self._grouped(target)
                loss = sum(jnp.mean((predicted[i] - jax.lax.stop_gradient(wanted[i])) ** 2) for i in wanted)
                return loss, loss

            grads, loss = gradient(error, states)()
            for name, state in states.items():
                state.value = state.value - rate * grads[name]
            return loss

        def epoch(phases: Phases) -> jax.Array:
            set_key(jax.random.key(0))
            self.restart(phases.sizes[2])
            warm_up(self.objective, self._warm_forward, phases, self._reset_with_traces)

            def step(x, y, w, extras, reset):
                self._reset_with_traces(reset)
                before = {name: state.value for name, state in hidden.items()}
                loss = lambda: self.objective.learn(self.rule, x, y, w, extras)  # noqa: E731
                return regress(before, gradient(loss, hidden)()[0])

            errors = brainstate.transform.for_loop(step, *scored(phases))
            # No loss follows the last time step, so its target is zero.
            last = {name: state.value for name, state in hidden.items()}
            regress(last, jax.tree.map(jnp.zeros_like, last))
            return errors.mean()

        model = self.objective.model
        named = {**parameters(model), **long_term_states(model), **{f"synthesiser.{k}": s for k, s in states.items()}}
        functional = Functional(epoch, named, [*self.network.hidden.values(), *self.own.values()], example)
        values = {name: state.value for name, state in named.items()}
        step = jax.jit(functional)
        errors = []
        for _ in range(epochs):
            new, error = step(values, example)
            values = {**values, **{k: v for k, v in new.items() if k.startswith("synthesiser.")}}
            errors.append(float(error))
        for name, state in states.items():
            state.value = values[f"synthesiser.{name}"]
        if not math.isfinite(sum(errors)) or not all(jnp.isfinite(state.value).all() for state in states.values()):
            raise ValueError(
                f"DNI(fit_epochs={epochs}, fit_lr={rate}): the fit of the synthesiser diverged, its errors were "
                f"{errors[0]:.3g} to {errors[-1]:.3g}; give a smaller fit_lr"
            )
        log.info("dni: synthesiser fitted, error %.3g to %.3g in %d epochs", errors[0], errors[-1], epochs)
