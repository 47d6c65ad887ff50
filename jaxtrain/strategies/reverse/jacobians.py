"""Derivatives of detached time steps, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..equations import ELEMENTWISE
from .blocks import Rows, leaf

if TYPE_CHECKING:
    from .learner import ReverseLearner


@dataclass
class Jacobians:
    """Derivatives of detached time steps side by side.

    Attributes:
        state: ``state[n][m]``: derivative of the new hidden state ``n`` by the old hidden state ``m``.
        factor: ``factor[n][i]``: derivative of the new hidden state ``n`` by the output of relation ``i``, in the shape
            of ``n``; only if the rule needs it.
        pull: From cotangents of the new hidden states to those of the relations' outputs, and gradients of initial
            states.
        inputs: The inputs of each relation.
    """

    state: dict[str, Any]
    factor: dict[str, Any]
    pull: Callable[[dict[str, Any]], tuple[dict[int, Any], dict[str, Any]]]
    inputs: dict[int, tuple[Any, ...]]


class Differentiate:
    """Computes the Jacobians of a block of time steps.

    Args:
        learner: The learner.
        learn: ``learn(forward, slices)`` runs one time step of the module.
        block: An example of a block.
    """

    def __init__(self, learner: ReverseLearner, learn: Callable, block: Rows):
        self._learner, self._learn = learner, learn
        self._step = self._detached(block)
        rule, products, step = learner.rule, learner.products, learner.step
        wanted = {products.relation[k] for k in products.own} if rule.own_recurrence else set()
        chosen = [i for i in step.chosen if rule.decay is not None or i in wanted]
        self._shared = [i for i in chosen if step.relations[i].name == ELEMENTWISE]
        """Relations whose output the sequences may share: their factors are the transposed derivative times ones."""
        self._factored = [i for i in chosen if i not in self._shared]

    def _acts(self, i: int, group: int) -> bool:
        return group in self._learner.step.relations[i].groups

    def _perturbations(self, block: Rows) -> dict[int, Any]:
        learner = self._learner
        count, every = block.steps.shape[0], learner.perturbed
        return learner.products.zeros(count, block.results, every, own=learner.rule.own_recurrence)

    def _detached(self, block: Rows) -> Callable:
        """One detached time step as a pure function: new hidden states, ``inside`` and inputs of its products."""
        learner = self._learner

        def step(slices, mask, results, perturbations, starts):
            box: list[Any] = []
            # A parameter that determines an initial state may also act in the time step.
            with learner.known.starts.replaced(starts):
                learner._reset(mask)
            forward = learner.products.detached
            self._learn(lambda u: forward(u, results, perturbations, box, learner.rule.own_recurrence), slices)
            inputs, inside = box[0]
            return ({name: leaf(state.value) for name, state in learner.known.credited.items()}, inside), inputs

        example = block.sequences, block.masks, block.results, self._perturbations(block)
        call = learner.known.stateless(
            step, *jax.tree.map(lambda leaf: leaf[0], example), learner.known.starts.values()
        )
        return lambda *args: call(*args)[1]

    def __call__(self, block: Rows) -> Jacobians:
        learner = self._learner
        rule, params = learner.rule, learner.known.parameters()

        def new(hidden, perturbations, starts):
            each = lambda *args: self._step(params, *args, starts)  # noqa: E731
            rows = block.memory, block.others, block.sequences, block.masks, block.results
            return jax.vmap(each)(hidden, *rows, perturbations)

        given = block.hidden, self._perturbations(block), learner.known.starts.values()
        (news, inside), vjp, inputs = jax.vjp(new, *given, has_aux=True)
        none = jax.tree.map(jnp.zeros_like, (news, inside))

        def pull(lam: dict[str, Any]) -> tuple[dict[int, Any], dict[str, Any]]:
            return vjp((lam, none[1]))[1:]

        state, factor = {}, {}
        for name, value in news.items():
            by_state, by_product, _ = vjp(({**none[0], name: jnp.ones_like(value)}, none[1]))
            group = learner.step.hidden_of[name]
            state[name] = {other: leaf(by_state[other]) for other in learner.step.groups[group] if other in by_state}
            factor[name] = {i: by_product[i].reshape(value.shape) for i in self._factored if self._acts(i, group)}
        for i in self._shared:
            back = lambda cotangents, i=i: pull(cotangents)[0][i]  # noqa: E731
            (along_y,) = jax.vjp(back, none[0])[1](jnp.ones_like(given[1][i]))
            for name, value in along_y.items():
                if self._acts(i, learner.step.hidden_of[name]):
                    factor[name][i] = value
        if rule.own_recurrence:
            through = lambda k: vjp((none[0], {**none[1], k: jnp.ones_like(inside[k])}))  # noqa: E731
            self._add_two_products(state, factor, through)
        return Jacobians(state, factor, pull, inputs)

    def _add_two_products(self, jacobian: dict[str, Any], factor: dict[str, Any], pull: Callable) -> None:
        """Add each unit's effect on itself through two products: ``sum_q W1[p, q] a[q] W2[q, p]``, ``a = dz2/dy1``."""
        products = self._learner.products
        for second in products.own:
            relation = products.relation[second]
            for first in products.own:
                if relation not in self._learner.step.chosen or products.relation[first] is not None:
                    continue
                between = pull(second)[1][-1 - first]
                into = pull(first)[0]
                w1, w2 = (products.weights(k)[1][products.own[k] :] for k in (first, second))
                around = between @ (w1.T * w2)
                for name, by_product in factor.items():
                    if relation in by_product:
                        path = by_product[relation] * around
                        jacobian[name] = {m: d + path * leaf(into[m]) for m, d in jacobian[name].items()}
