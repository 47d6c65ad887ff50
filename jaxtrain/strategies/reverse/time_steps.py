"""Time steps with known states and products: signals, Jacobians and gradients, block by block backward in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import brainstate
import jax
import jax.numpy as jnp

from ...core.metrics import Metrics, sum_over_time
from ...core.state import add_to, differentiable
from .. import reward
from ..products import is_plain, matrix_gradient, merge
from .recursion import Signals, filtered_factors, propagate, propagate_factored
from .traces import Kept

if TYPE_CHECKING:
    from .learner import ReverseLearner

BLOCK = 32
"""Most time steps in a block. Larger blocks need more memory and are slower on a CPU."""


def leaf(value: Any) -> Any:
    """The one array of a hidden state, without its unit."""
    (only,) = jax.tree.leaves(value)
    return only


def windows_per_block(windows: int, window: int) -> int:
    """The largest divisor of a number of windows that fits into a block, or as many as fit if it is small."""
    most = min(max(1, BLOCK // window), windows)
    divisor = next(size for size in range(most, 0, -1) if windows % size == 0)
    return divisor if 4 * divisor >= most else most


def parts_of(time: int, window: int) -> list[tuple[slice, int]]:
    """Divide time steps into parts, each for one ``TimeSteps``: whole blocks, further whole windows, a shorter window.

    Returns:
        The time steps of each part, and its window.
    """
    whole = time - time % window
    even = whole and whole - whole % (windows_per_block(whole // window, window) * window)
    parts = (slice(even), window), (slice(even, whole), window), (slice(whole, time), time - whole)
    return [(which, length) for which, length in parts if range(time)[which]]


@dataclass
class Rows:
    """What the later passes need of each time step; all arrays are ``(T, ...)``.

    Attributes:
        sequences: Slices of the batch.
        masks: Reset masks; None without resets.
        hidden: Hidden states with a trace at the start of the time step, by name.
        memory: Readout memory at the start, by name.
        others: Values of the other States at the start.
        results: Results of the products.
        steps: Numbers of the time steps since the restart of the rule, from 1.
        is_filtered: Whether the filter on the trace advances after the time step.
    """

    sequences: Any
    masks: Any
    hidden: dict[str, Any]
    memory: dict[str, Any]
    others: list[Any]
    results: list[Any]
    steps: Any
    is_filtered: Any


jax.tree_util.register_dataclass(Rows, [*Rows.__dataclass_fields__], [])


@dataclass
class Carry:
    """What passes from later to earlier time steps.

    Attributes:
        recursion: The state of the rule's recursion.
        ends: For each value at the end of the segment that a trace is kept of, the same state for that value.
        memory: Cotangents of the readout memory, by name.
        grads: Gradients by parameter.
        totals: Gradients by relation.
    """

    recursion: Any
    ends: list[Any]
    memory: dict[str, Any]
    grads: dict[str, Any]
    totals: dict[int, list[Any]]


jax.tree_util.register_dataclass(Carry, [*Carry.__dataclass_fields__], [])


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
        self._step = self._detached(jax.tree.map(lambda leaf: leaf[0], self._blocks))

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
            before = {name: jnp.zeros_like(leaf(block.hidden[name])) for name in learner.credited}
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
                recursion, (delta, bias) = propagate_factored(learner.rule, carry.recursion, signals, eps, current)
            totals = dict(carry.totals)
            for i in learner.chosen:
                own = direct.get(i, 0)
                more = self._weight_gradients(
                    i, jacobians.inputs.get(i), self._as_output(i, delta[i]) + own, self._as_output(i, bias[i]) + own,
                    weights[i],
                )  # fmt: skip
                totals[i] = add_to(totals[i], more)
            ends, deltas = self._ends(carry.ends, signals, jacobians)
            kept = None if learner.trace is None else Kept(deltas, jacobians.inputs, keep)
            return Carry(recursion, ends, memory, grads, totals), (metrics, kept)

        metrics: Any
        carry, (metrics, kept) = jax.lax.scan(one, carry, (self._blocks, factors), reverse=True)
        if kept is not None:
            merged = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # noqa: E731
            deltas = jax.tree.map(lambda leaf: jax.vmap(merged)(jnp.moveaxis(leaf, 1, 0)), kept.deltas)
            kept = Kept(deltas, *jax.tree.map(merged, (kept.inputs, kept.keep)))
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
        """A value in the shape of a hidden state, in the shape of the output of relation ``i``."""
        relation, step = self._learner.step.relations[i], self._learner.step
        batch = (step.batch_size,) if step.mapped else ()
        return value.reshape(value.shape[0], *batch, *relation.y_var.aval.shape)

    def _weight_gradients(self, i: int, inputs: Any, delta: Any, bias: Any, weights: list) -> list[Any]:
        """Gradients of a relation's weight and bias from the cotangents of its outputs for each, ``(T, *y)``."""
        relation = self._learner.step.relations[i]
        units = len(relation.y_var.aval.shape)
        if inputs is None:
            return jax.vjp(relation.alone, weights)[1](merge(delta, units).sum(0))[0]
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
        traced = {name: block.hidden[name] for name in learner.traced}
        single = learner.single and learner.rule.modulator is None
        after = {name: jnp.zeros_like(leaf(value)) for name, value in traced.items()} if single else {}
        count = block.steps.shape[0]
        given = learner.products.zeros(count, block.results, learner.chosen, own=False), after

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
                estimated = learner.traced if learner.rule.estimate else {}
                return *found, {name: leaf(state.value) for name, state in estimated.items()}
            losses, metrics = brainstate.transform.for_loop(step, *rows)
            return losses.sum(), None if metrics is None else sum_over_time(metrics), {}

        def tiled(tree):
            return jax.tree.map(lambda leaf: leaf.reshape(-1, window, *leaf.shape[1:]), tree)

        rows, given = tiled((block.sequences, block.masks, block.results)), tiled(given)
        hidden, others = jax.tree.map(lambda leaf: leaf[::window], (traced, block.others))
        begin = jax.tree.map(lambda leaf: leaf[0], block.memory)
        inexact = {name: value for name, value in begin.items() if differentiable(value)}
        call = learner.stateless(run, *jax.tree.map(lambda leaf: leaf[0], (*rows, *given)))

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

        point = learner.parameter_values(), hidden, inexact, *given
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
        before = {name: self._at_starts(signal) for name, signal in learner.project(before).items()}
        return grads, before, learner.project(after), memory, direct, metrics

    def _at_starts(self, signal: jax.Array) -> jax.Array:
        """Signals of windows at their first time steps, and zeros at the others."""
        if self._window == 1:
            return signal
        zeros = jnp.zeros((signal.shape[0], self._window - 1, *signal.shape[1:]), signal.dtype)
        return jnp.concatenate([signal[:, None], zeros], 1).reshape(-1, *signal.shape[1:])

    # ----------------------------------------------------------------------------------------- Jacobians

    def _perturbations(self, block: Rows) -> dict[int, Any]:
        learner = self._learner
        count, every = block.steps.shape[0], learner.perturbed
        return learner.products.zeros(count, block.results, every, own=learner.rule.own_recurrence)

    def _detached(self, block: Rows) -> Callable:
        """One detached time step as a pure function: new hidden states, ``inside`` and inputs of its products."""
        learner = self._learner

        def step(slices, mask, results, perturbations, starts):
            box: list[Any] = []
            with learner.starting(starts):  # a parameter that determines an initial state may also act in the time step
                learner._reset(mask)
            forward = learner.products.detached
            self._learn(lambda u: forward(u, results, perturbations, box, learner.rule.own_recurrence), slices)
            inputs, inside = box[0]
            return ({name: leaf(state.value) for name, state in learner.credited.items()}, inside), inputs

        example = block.sequences, block.masks, block.results, self._perturbations(block)
        call = learner.stateless(step, *jax.tree.map(lambda leaf: leaf[0], example), learner.start_values())
        return lambda *args: call(*args)[1]

    def _jacobians(self, block: Rows) -> Jacobians:
        learner = self._learner
        rule, params = learner.rule, learner.parameter_values()

        def new(hidden, perturbations, starts):
            each = lambda *args: self._step(params, *args, starts)  # noqa: E731
            rows = block.memory, block.others, block.sequences, block.masks, block.results
            return jax.vmap(each)(hidden, *rows, perturbations)

        given = block.hidden, self._perturbations(block), learner.start_values()
        (news, inside), vjp, inputs = jax.vjp(new, *given, has_aux=True)
        none = jax.tree.map(jnp.zeros_like, (news, inside))

        def pull(lam: dict[str, Any]) -> tuple[dict[int, Any], dict[str, Any]]:
            return vjp((lam, none[1]))[1:]

        state, factor = {}, {}
        for name, value in news.items():
            by_state, by_product, _ = vjp(({**none[0], name: jnp.ones_like(value)}, none[1]))
            group = learner.step.hidden_of[name]
            state[name] = {other: leaf(by_state[other]) for other in learner.step.groups[group] if other in by_state}
            if learner.needs_factors:
                acting = [i for i in learner.chosen if group in learner.step.relations[i].groups]
                factor[name] = {i: by_product[i].reshape(value.shape) for i in acting}
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
