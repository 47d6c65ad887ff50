"""Time steps with known states and products: signals, Jacobians and gradients, block by block backward in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import brainstate
import jax
import jax.numpy as jnp

from ...core.metrics import Metrics, sum_over_time
from ...core.state import add_to, differentiable
from .. import reward
from ..equations import ELEMENTWISE
from ..products import is_plain, matrix_gradient, merge
from .blocks import Carry, Rows, leaf, windows_per_block
from .jacobians import Differentiate, Jacobians
from .recursion import Signals, filtered_factors, propagate, propagate_factored
from .traces import Kept

if TYPE_CHECKING:
    from .learner import ReverseLearner


class TimeSteps:
    """Consecutive time steps of one kind: of the warm-up, in whole windows, or in the last, shorter window.

    Args:
        learner: The learner.
        learn: ``learn(forward, slices)`` runs one time step of the module.
        rows: What is known of the time steps.
        window: Time steps in a window.
        is_scored: Whether the time steps have a loss.
        has_signals: Whether there are learning signals: time steps with a loss, or with readout memory before them.
    """

    def __init__(
        self, learner: ReverseLearner, learn: Callable, rows: Rows, *, window: int, is_scored: bool, has_signals: bool
    ):
        self._learner, self._learn, self._window = learner, learn, window
        self._is_scored, self._has_signals = is_scored, has_signals
        self.count = rows.steps.shape[0]
        size = windows_per_block(self.count // window, window) * window
        self._blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
        self._jacobians = Differentiate(learner, learn, jax.tree.map(lambda leaf: leaf[0], self._blocks))

    def factors(self, value: Any) -> tuple[Any, Any]:
        """The output side of a factored trace after these time steps, and at each of them."""
        decay = self._learner.rule.decay
        assert decay is not None

        def one(value, block):
            jacobians = self._jacobians(block)
            return filtered_factors(decay, value, jacobians.state, jacobians.factor)

        return jax.lax.scan(one, value, self._blocks)

    def backward(self, factors: Any, carry: Carry, weights: list[Any]) -> tuple[Carry, Metrics | None, Kept | None]:
        """Passes 2 to 4, the last block first.

        Args:
            factors: The output side of a factored trace, from ``factors``, or None.
            carry: From later time steps.
            weights: Weights of each relation.

        Returns:
            The carry for earlier time steps; the metrics, or None without a loss; and what the learner's trace needs.
        """
        learner = self._learner

        def one(carry: Carry, given: Any) -> tuple[Carry, Any]:
            block, eps = given
            metrics, direct, memory, grads = None, {}, carry.memory, carry.grads
            before = {name: jnp.zeros_like(leaf(block.hidden[name])) for name in learner.known.credited}
            after = dict(before)
            if self._has_signals:
                more, found, new, memory, direct, metrics = self._signals(block, memory)
                before, after = before | found, after | new
                grads = grads | {name: add_to(grads[name], grad) for name, grad in more.items()}
            jacobians = self._jacobians(block)
            keep = None if block.masks is None else 1 - block.masks.astype(jnp.float32)
            signals = Signals(before, after, jacobians.state, keep, block.steps, block.is_filtered)
            if eps is None:
                recursion, lam = propagate(learner.rule, carry.recursion, signals)
                delta, starts = jacobians.pull(lam)
                grads |= {name: add_to(grads[name], grad) for name, grad in starts.items()}
                bias = delta
            else:
                current = learner.single or learner.window > 1
                recursion, found = propagate_factored(learner.rule, carry.recursion, signals, eps, current)
                delta, bias = ({i: self._as_output(i, value) for i, value in by.items()} for by in found)
            totals = dict(carry.totals)
            for i in learner.step.chosen:
                own = direct.get(i, 0)
                more = self._weight_gradients(i, jacobians.inputs.get(i), delta[i] + own, bias[i] + own, weights[i])
                totals[i] = add_to(totals[i], more)
            ends, deltas = self._ends(carry.ends, signals, jacobians)
            kept = None if learner.trace is None else Kept(deltas, jacobians.inputs, keep, block.steps)
            return Carry(recursion, ends, memory, grads, totals), (metrics, kept)

        metrics: Any
        carry, (metrics, kept) = jax.lax.scan(one, carry, (self._blocks, factors), reverse=True)
        if kept is not None:
            merged = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
            deltas = jax.tree.map(lambda leaf: jax.vmap(merged)(jnp.moveaxis(leaf, 1, 0)), kept.deltas)
            kept = Kept(deltas, *jax.tree.map(merged, (kept.inputs, kept.keep, kept.steps)))
        return carry, sum_over_time(metrics) if self._is_scored else None, kept

    def _ends(self, ends: list[Any], signals: Signals, jacobians: Jacobians) -> tuple[list[Any], list[Any]]:
        """The recursion without signals, from each value at the end of the segment: ``(depth, T, ...)``."""
        zeros = {name: jnp.zeros_like(value) for name, value in signals.before.items()}
        silent = replace(signals, before=zeros, after=zeros)
        states, deltas = [], []
        for end in ends:
            state, lam = jax.vmap(lambda state: propagate(self._learner.rule, state, silent))(end)
            states.append(state)
            deltas.append(jax.vmap(lambda lam: jacobians.pull(lam)[0])(lam))
        return states, deltas

    def _as_output(self, i: int, value: Any) -> Any:
        """Cotangents in the shape of a hidden state, in the shape of the output of relation ``i``."""
        relation, step = self._learner.step.relations[i], self._learner.step
        if relation.name == ELEMENTWISE and not step.mapped:
            value = value.sum(1)  # all sequences share its output
        batch = (step.batch_size,) if step.mapped else ()
        return value.reshape(value.shape[0], *batch, *relation.y_var.aval.shape)

    def _weight_gradients(self, i: int, inputs: Any, delta: Any, bias: Any, weights: list) -> list[Any]:
        """Gradients of a relation's weight and bias from the cotangents of its outputs for each, ``(T, *y)``."""
        relation = self._learner.step.relations[i]
        units = len(relation.y_var.aval.shape)
        if inputs is None:
            return relation.alone(weights, merge(bias, units).sum(0))
        kept = len(relation.x_var.aval.shape) - relation.batched
        if is_plain(relation.equation) and kept == 1:
            product = matrix_gradient(inputs, delta)
            return [product, *([merge(bias, 1).sum(0)] if len(weights) > 1 else [])]
        delta, bias = merge(delta, units - relation.batched), merge(bias, units - relation.batched)
        x = merge(inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, -1), kept)
        pull = jax.vjp(lambda w: relation.product(x, w), weights)[1]
        return [*pull(delta)[0][:1], *pull(bias)[0][1:]]

    # ----------------------------------------------------------------------------------------- side by side

    def _signals(self, block: Rows, memory: dict[str, Any]) -> tuple[Any, ...]:
        """Run the windows with known products, and differentiate their losses and the readout memory at their end.

        Returns:
            Gradients of parameters without a trace, signals before and after each time step, cotangents of the readout
            memory at the start, cotangents of traced products within their windows, and metrics.
        """
        learner, window = self._learner, self._window
        traced = {name: block.hidden[name] for name in learner.known.traced}
        single = learner.single and learner.rule.modulator is None
        after = {name: jnp.zeros_like(leaf(value)) for name, value in traced.items()} if single else {}
        count = block.steps.shape[0]
        given = learner.products.zeros(count, block.results, learner.step.chosen, own=False), after

        def step(slices, mask, results, perturbations, after):
            learner._reset(mask)

            def forward(u):
                if single:
                    return learner.products.single(u, results, perturbations, after)
                return learner.products.window(u, results, perturbations)

            found = self._learn(forward, slices)
            return found if self._is_scored else (jnp.zeros(()), None)

        def run(*rows):
            if window == 1:
                found = step(*jax.tree.map(lambda leaf: leaf[0], rows))
                estimated = learner.known.traced if learner.rule.estimate else {}
                return *found, {name: leaf(state.value) for name, state in estimated.items()}
            losses, metrics = brainstate.transform.for_loop(step, *rows)
            return losses.sum(), None if metrics is None else sum_over_time(metrics), {}

        def tiled(tree):
            return jax.tree.map(lambda leaf: leaf.reshape(-1, window, *leaf.shape[1:]), tree)

        rows, given = tiled((block.sequences, block.masks, block.results)), tiled(given)
        hidden, others = jax.tree.map(lambda leaf: leaf[::window], (traced, block.others))
        begin = jax.tree.map(lambda leaf: leaf[0], block.memory)
        inexact = {name: value for name, value in begin.items() if differentiable(value)}
        call = learner.known.stateless(run, *jax.tree.map(lambda leaf: leaf[0], (*rows, *given)))

        def total(params, hidden, inexact, perturbations, after):
            def one(memory, xs):
                hidden, others, *args = xs
                return call(params, hidden, memory, others, *args)

            xs = (hidden, others, *rows, perturbations, after)
            if begin:
                end, (losses, metrics, new) = jax.lax.scan(one, begin | inexact, xs)
            else:
                end, (losses, metrics, new) = {}, jax.vmap(lambda xs: one({}, xs)[1])(xs)
            found = sum_over_time(metrics) if metrics is not None else None
            return (losses.sum(), {name: end[name] for name in inexact}, new), found

        point = learner.known.parameters(), hidden, inexact, *given
        if learner.rule.modulator is not None:
            metrics = total(*point)[1]
            *_, weights, extras = block.sequences
            states = {name: leaf(value) for name, value in traced.items()}
            return {}, {}, reward.signals(extras[learner.rule.modulator], weights, states), memory, {}, metrics
        (loss, _, new), pull, metrics = jax.vjp(total, *point, has_aux=True)
        silent = jax.tree.map(jnp.zeros_like, (loss, memory, new))
        grads, before, memory, direct, after = pull((jnp.ones_like(loss), memory, silent[2]))
        for name, grad in learner.later(new, lambda cotangents: pull((*silent[:2], cotangents))[0]).items():
            grads[name] = add_to(grads[name], grad)
        direct, after = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (direct, after))
        before = {name: self._at_starts(signal) for name, signal in learner.feedback.project(before).items()}
        return grads, before, learner.feedback.project(after), memory, direct, metrics

    def _at_starts(self, signal: jax.Array) -> jax.Array:
        """Signals of windows at their first time steps, and zeros at the others."""
        if self._window == 1:
            return signal
        zeros = jnp.zeros((signal.shape[0], self._window - 1, *signal.shape[1:]), signal.dtype)
        return jnp.concatenate([signal[:, None], zeros], 1).reshape(-1, *signal.shape[1:])
