"""Time steps with known states and products: signals, Jacobians and gradients, block by block backward in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import brainstate
import jax
import jax.numpy as jnp

from ...core.metrics import Metrics, sum_over_time
from ...core.state import add_to
from .recursion import Signals, filtered_factors, propagate, propagate_factored

if TYPE_CHECKING:
    from .passes import PassesLearner

BLOCK = 32
"""Most time steps in a block. Larger blocks need more memory and are slower on a CPU."""


def leaf(value: Any) -> Any:
    """The one array of a hidden state, without its unit."""
    (only,) = jax.tree.leaves(value)
    return only


def merge(array: jax.Array, kept: int) -> jax.Array:
    """Merge all axes but the last ``kept`` ones."""
    return array.reshape(-1, *array.shape[array.ndim - kept :])


class TimeSteps:
    """Consecutive time steps of one kind: of the warm-up, in whole windows, or in the last, shorter window.

    Args:
        learner: The learner.
        learn: ``learn(forward, slices)`` runs one time step of the module.
        rows: Sequences, reset masks, hidden states and other States at the start of each time step, results of
            products, numbers of the time steps from 1, and whether the filter advances; all ``(T, ...)``.
        window: Time steps in a window.
        is_scored: Whether the time steps have a loss.
    """

    def __init__(self, learner: PassesLearner, learn: Callable, rows: Any, *, window: int, is_scored: bool):
        self._learner, self._learn, self._window, self._is_scored = learner, learn, window, is_scored
        size = self._block_size(jax.tree.leaves(rows)[0].shape[0] // window) * window
        self._blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
        self._step = self._detached(jax.tree.map(lambda leaf: leaf[0, 0], self._blocks))

    def _block_size(self, windows: int) -> int:
        """Windows per block: the largest divisor up to ``BLOCK`` time steps, or all if the divisors are small."""
        most = min(max(1, BLOCK // self._window), windows)
        divisor = next(size for size in range(most, 0, -1) if windows % size == 0)
        return divisor if 4 * divisor >= most else windows

    def factors(self, value: Any) -> tuple[Any, Any]:
        """The output side of a factored trace after these time steps, and at each of them."""
        decay = self._learner.rule.decay
        assert decay is not None

        def one(value, block):
            jacobian, factor, _ = self._jacobians(block)
            return filtered_factors(decay, value, jacobian, factor)

        return jax.lax.scan(one, value, self._blocks)

    def backward(self, factors: Any, carry: Any, weights: list[Any]) -> tuple[Any, Metrics | None]:
        """Passes 2 to 4, the last block first.

        Args:
            factors: The output side of a factored trace, from ``factors``, or None.
            carry: ``(state of the recursion, gradients by parameter, gradients by relation)`` from later time steps.
            weights: Weights of each relation.

        Returns:
            The carry for earlier time steps, and the metrics; None without a loss.
        """
        learner = self._learner

        def one(carry, given):
            block, eps = given
            state, grads, totals = carry
            _, masks, hidden, _, _, numbers, is_filtered = block
            if self._is_scored:
                more, before, after, direct, metrics = self._signals(block)
                grads = jax.tree.map(add_to, grads, more)
            else:
                before = {name: jnp.zeros_like(leaf(value)) for name, value in hidden.items()}
                after, direct, metrics = before, {}, None
            jacobian, factor, inputs = self._jacobians(block)
            keep = None if masks is None else 1 - masks.astype(jnp.float32)
            signals = Signals(before, after, jacobian, factor, keep, numbers, is_filtered)
            if eps is None:
                state, delta = propagate(learner.rule, state, signals)
                bias = delta
            else:
                current = learner.single or learner.window > 1
                state, (delta, bias) = propagate_factored(learner.rule, state, signals, eps, current)
            for i in learner.chosen:
                own = direct.get(i, 0)
                more = self._weight_gradients(i, inputs[i], delta[i] + own, bias[i] + own, weights[i])
                totals = {**totals, i: jax.tree.map(jnp.add, totals[i], more)}
            return (state, grads, totals), metrics

        metrics: Any
        carry, metrics = jax.lax.scan(one, carry, (self._blocks, factors), reverse=True)
        return carry, sum_over_time(metrics) if self._is_scored else None

    def _weight_gradients(self, i: int, inputs: tuple[Any, ...], delta: Any, bias: Any, weights: list) -> list[Any]:
        """Gradients of a relation's weight and bias from the cotangents of its outputs for each, ``(T, *y)``."""
        relation = self._learner.step.relations[i]
        if relation.name == "etp_mm" and not relation.equation.params.get("weight_fn") and delta.ndim == 3:
            # Without the barrier, XLA fuses the operands' producers into transposing copies, which take ten times long.
            *parts, delta, bias = jax.lax.optimization_barrier((*inputs, delta, bias))
            product = jnp.concatenate([merge(x, 1).T @ merge(delta, 1) for x in parts])
            return [product.astype(weights[0].dtype), *([merge(bias, 1).sum(0)] if len(weights) > 1 else [])]
        x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, -1)
        units, batched = len(relation.y_var.aval.shape), relation.batched
        x, delta = merge(x, len(relation.x_var.aval.shape) - batched), merge(delta, units - batched)
        pull = jax.vjp(lambda w: relation.product(x, w), weights)[1]
        return [*pull(delta)[0][:1], *pull(merge(bias, units - batched))[0][1:]]

    # ----------------------------------------------------------------------------------------- side by side

    def _perturbations(self, results: list[Any], *, own: bool) -> dict[int, Any]:
        """Zeros to add to the outputs of traced products; if ``own``, also (under ``-1 - k``) of product ``k`` between
        two hidden states that is no relation."""
        count, learner = jax.tree.leaves(results)[0].shape[0], self._learner
        shapes = {i: learner.step.relations[i].y_var.aval for i in learner.chosen}
        zeros = {i: jnp.zeros((count, *aval.shape), aval.dtype) for i, aval in shapes.items()}
        if own:
            between = [k for k in learner.products.own if learner.products.relation[k] is None]
            zeros |= {-1 - k: jnp.zeros_like(results[k]) for k in between}
        return zeros

    def _signals(self, block: Any) -> tuple[Any, ...]:
        """Gradients of parameters without a trace, signals before and after each time step, cotangents of traced
        products within their windows, and metrics."""
        learner, window = self._learner, self._window
        sequences, masks, hidden, others, results, *_ = block
        after = {name: jnp.zeros_like(leaf(value)) for name, value in hidden.items()} if learner.single else {}
        given = self._perturbations(results, own=False), after

        def step(slices, mask, results, perturbations, after):
            learner._reset(mask)

            def forward(u):
                if learner.single:
                    return learner.products.single(u, results, perturbations, after)
                return learner.products.window(u, results, perturbations)

            return self._learn(forward, slices)

        def run(*rows):
            if window == 1:
                return step(*jax.tree.map(lambda leaf: leaf[0], rows))
            losses, metrics = brainstate.transform.for_loop(step, *rows)
            return losses.sum(), sum_over_time(metrics)

        def tiled(tree):
            return jax.tree.map(lambda leaf: leaf.reshape(-1, window, *leaf.shape[1:]), tree)

        rows, given = tiled((sequences, masks, results)), tiled(given)
        hidden, others = jax.tree.map(lambda leaf: leaf[::window], (hidden, others))
        call = learner.stateless(run, *jax.tree.map(lambda leaf: leaf[0], (*rows, *given)))

        def total(params, hidden, perturbations, after):
            mapped = jax.vmap(lambda *args: call(params, *args))
            losses, metrics = mapped(hidden, others, *rows, perturbations, after)
            return losses.sum(), sum_over_time(metrics)

        args = learner.parameter_values(), hidden, *given
        (grads, before, direct, after), metrics = jax.grad(total, (0, 1, 2, 3), has_aux=True)(*args)
        direct, after = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (direct, after))
        before = {name: self._at_starts(signal) for name, signal in learner.project(before).items()}
        after = learner.project(after) if after else jax.tree.map(jnp.zeros_like, before)
        return grads, before, after, direct, metrics

    def _at_starts(self, signal: jax.Array) -> jax.Array:
        """Signals of windows at their first time steps, and zeros at the others."""
        if self._window == 1:
            return signal
        zeros = jnp.zeros((signal.shape[0], self._window - 1, *signal.shape[1:]), signal.dtype)
        return jnp.concatenate([signal[:, None], zeros], 1).reshape(-1, *signal.shape[1:])

    # ----------------------------------------------------------------------------------------- Jacobians

    def _detached(self, example: Any) -> Callable:
        """One detached time step as a pure function: new hidden states, ``inside`` and inputs of its products."""
        learner = self._learner
        slices, mask, _, _, results, *_ = example

        def step(slices, mask, results, perturbations):
            box: list[Any] = []
            learner._reset(mask)
            forward = learner.products.detached
            self._learn(lambda u: forward(u, results, perturbations, box, learner.rule.own_recurrence), slices)
            inputs, inside = box[0]
            return ({name: leaf(state.value) for name, state in learner.traced.items()}, inside), inputs

        zeros = self._perturbations([result[None] for result in results], own=learner.rule.own_recurrence)
        return learner.stateless(step, slices, mask, results, jax.tree.map(lambda leaf: leaf[0], zeros))

    def _jacobians(self, block: Any) -> tuple[dict[str, Any], dict[str, Any], dict[int, Any]]:
        """``jacobian[n][m]`` and ``factor[n][i]`` (see ``Signals``), and the inputs of each traced product."""
        learner = self._learner
        sequences, masks, hidden, others, results, *_ = block
        params = learner.parameter_values()

        def new(hidden, perturbations):
            mapped = jax.vmap(lambda *args: self._step(params, *args))
            return mapped(hidden, others, sequences, masks, results, perturbations)

        zeros = self._perturbations(results, own=learner.rule.own_recurrence)
        (news, inside), pull, inputs = jax.vjp(new, hidden, zeros, has_aux=True)
        none = jax.tree.map(jnp.zeros_like, (news, inside))
        jacobian, factor = {}, {}
        for name, value in news.items():
            by_state, by_product = pull(({**none[0], name: jnp.ones_like(value)}, none[1]))
            group = learner.group[name]
            jacobian[name] = {other: leaf(by_state[other]) for other in learner.step.groups[group]}
            relations = [i for i in learner.chosen if group in learner.step.relations[i].groups]
            factor[name] = {i: by_product[i] for i in relations}
        if learner.rule.own_recurrence:
            self._add_two_products(
                jacobian, factor, lambda k: pull((none[0], {**none[1], k: jnp.ones_like(inside[k])}))
            )
        return jacobian, factor, inputs

    def _add_two_products(self, jacobian: dict[str, Any], factor: dict[str, Any], pull: Callable) -> None:
        """Add each unit's effect on itself through two products: ``sum_q W1[p, q] a[q] W2[q, p]``, ``a = dz2/dy1``."""
        products = self._learner.products
        for second in products.own:
            relation = products.relation[second]
            for first in products.own:
                if relation not in self._learner.chosen or products.relation[first] is not None:
                    continue
                between = pull(second)[1][-1 - first]
                into = pull(first)[0]
                w1, w2 = (products.weights(k)[1][products.own[k] :] for k in (first, second))
                around = between @ (w1.T * w2)
                for name, by_product in factor.items():
                    if relation in by_product:
                        path = by_product[relation] * around
                        jacobian[name] = {m: d + path * leaf(into[m]) for m, d in jacobian[name].items()}
