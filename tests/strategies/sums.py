"""All that a learner hands to ``update`` over several batches, however often it does."""

from collections.abc import Callable, Iterable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.core.functional import Functional
from jaxtrain.core.metrics import Metrics
from jaxtrain.core.objective import Objective, check_phases
from jaxtrain.core.state import drop_weak_types, long_term_states, parameters, set_key, with_strong_types
from jaxtrain.strategies.base import trained, zeros_like_parameters


def sums(lab, strategy, module, batches: list[Any]) -> tuple[dict[str, Any], list[dict[str, float]], list[str]]:
    """The sum of the gradients over all batches, the weights held fixed; each batch's mean metrics; the notes."""
    with brainstate.environ.context(**module.environ, fit=True), brainstate.random.seed_context(1):
        drop_weak_types(parameters(module.model).values())
        learner = strategy.bind(Objective(module, lambda x: x), check_phases(batches[0]))
        zeros = zeros_like_parameters(trained(learner.objective))
        total = {f"sum/{name}": brainstate.LongTermState(value) for name, value in zeros.items()}
        lasts = {f"learner/{name}": state for name, state in learner.states().items()}
        named = {**parameters(module.model), **long_term_states(module.model), **lasts, **total}
        drop_weak_types([*lasts.values(), *learner.short_term_states()])

        def step(phases, number) -> Metrics:
            set_key(jax.random.fold_in(lab.KEY, number))

            def update(grads, weight, metrics):
                for name, grad in grads.items():
                    state = total[f"sum/{name}"]
                    state.value = jax.tree.map(jnp.add, state.value, grad)
                return metrics

            return learner.learn(phases, update)

        values = {name: with_strong_types(state.value) for name, state in named.items()}
        call = jax.jit(Functional(step, named, learner.short_term_states(), batches[0], jnp.int32(0)))
        means = []
        for number, phases in enumerate(batches):
            values, metrics = call(values, phases, jnp.int32(number))
            means.append({name: float(np.sum(mean.num) / np.sum(mean.weight)) for name, mean in metrics.items()})
    return {name: values[f"sum/{name}"] for name in zeros}, means, learner.notes


def assert_same_sums(lab, strategies: Iterable[Any], make: Callable[[], Any], batches: list[Any]) -> None:
    """Two strategies give the same sum of all gradients, and the same metrics for each batch."""
    (grads, means, _), (wanted, others, _) = (sums(lab, each, make(), batches) for each in strategies)
    lab.same(grads, wanted)
    assert means == [pytest.approx(other, rel=1e-5) for other in others]
