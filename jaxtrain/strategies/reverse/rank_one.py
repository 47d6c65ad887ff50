"""The rank-one estimate of RTRL (UORO), forward in time over known hidden states and products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ...core.metrics import Metrics, add, sum_over_time
from ...core.module import Phases
from ...core.state import SHORT, State, add_to, parameters, wide_zeros
from ..base import Update, zeros_like_parameters
from ..equations import Irreversible
from ..stretches import Stretch
from ..trace_learners import projection_key
from .blocks import Rows, leaf
from .detached_step import REVERSIBLE
from .jacobians import Jacobians
from .learner import ReverseLearner
from .recursion import keep_sequences
from .relation_weights import RelationWeights
from .starts import Pull
from .time_steps import TimeSteps

GUARD = 1e-12
"""braintrace's addition to every norm, which makes the first ratios finite."""


@dataclass
class Estimate:
    """The influence of each parameter on the hidden states of a group, as a product of two sides.

    Attributes:
        hidden: The hidden side by hidden state, ``(B, units)``.
        parameters: The parameter side by group and parameter, as leaves of the parameter. All sequences share it.
        key: The key of the next time step's random signs.
    """

    hidden: dict[str, Any]
    parameters: dict[int, dict[str, list[Any]]]
    key: Any


jax.tree_util.register_dataclass(Estimate, [*Estimate.__dataclass_fields__], [])


def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum((jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)), jnp.float32(0)))


class RankOneSteps(TimeSteps):
    """Consecutive time steps of one kind, see ``TimeSteps``.

    The signals and the random projections of a block are computed side by side. Only the two sides of the estimate pass
    from one time step to the next. If ``c_t`` is the contraction of a signal with the hidden side, the gradient is
    ``sum_t c_t theta_{t-1}``, where ``theta_t = a_t theta_{t-1} + b_t x_t^T delta_t``. It is computed by one product
    per weight and block, in which ``delta_t`` has the factor ``b_t (c_{t+1} + a_{t+1} (c_{t+2} + ...))``.
    """

    def forward(self, carry: Any, by_relation: RelationWeights) -> tuple[Any, Metrics | None]:
        """Advance the estimate, and add up gradients.

        Args:
            carry: ``(estimate, gradients by parameter, gradients by relation)``.
            by_relation: Weights of each relation.

        Returns:
            The carry for later time steps, and the metrics, or None without a loss.
        """
        learner: Any = self._learner
        weights = by_relation.values
        move = self._undetached(jax.tree.map(lambda leaf: leaf[0], self._blocks))

        def one(carry: Any, block: Rows) -> tuple[Any, Any]:
            estimate, grads, totals = carry
            before = {name: jnp.zeros_like(leaf(value)) for name, value in block.hidden.items()}
            metrics, direct = None, {}
            if self._has_signals:
                more, before, _, _, direct, metrics = self._signals(block, {})
                grads = {name: add_to(grads[name], grad) for name, grad in more.items()}
            jacobians = self._jacobians(block)
            key, signs = jax.lax.scan(learner.draw, estimate.key, None, length=block.steps.shape[0])
            delta, _ = jacobians.pull(signs)

            def step(sides: Any, xs: Any) -> tuple[Any, Any]:
                row, before, signs, delta, inputs = xs
                hidden, theta = sides
                if row.masks is not None:
                    hidden = {n: keep_sequences(1.0 - row.masks, value) for n, value in hidden.items()}
                factors = {}
                for group, names in learner.groups.items():
                    signal = sum(jnp.vdot(before[name], hidden[name]) for name in names)
                    moved = move(row, {name: hidden[name] for name in names})
                    every = [jax.tree.map(jnp.zeros_like, weight) for weight in weights]
                    for i in learner.acting[group]:
                        every[i] = self._product(i, inputs.get(i), delta[i], weights)
                    given = by_relation.to_parameters(every)[0]
                    given = {name: given[name] for name in theta[group]}
                    sign = {name: signs[name] for name in names}
                    before_norm, given_norm = norm(theta[group]), norm(given)
                    by_state = jnp.sqrt((before_norm + GUARD) / (norm(moved) + GUARD))
                    by_sign = jnp.sqrt((given_norm + GUARD) / (norm(sign) + GUARD))
                    hidden = hidden | {n: by_state * moved[n] + by_sign * sign[n] for n in names}
                    old, new = 1 / by_state, 1 / by_sign
                    side = jax.tree.map(lambda t, g, old=old, new=new: old * t + new * g, theta[group], given)
                    theta = theta | {group: side}
                    # What is zero has no factor: the product of many factors could overflow.
                    factors[group] = signal, jnp.where(before_norm > 0, old, 0), jnp.where(given_norm > 0, new, 0)
                return (hidden, theta), factors

            xs = block, before, signs, delta, jacobians.inputs
            (hidden, theta), factors = jax.lax.scan(step, (estimate.hidden, estimate.parameters), xs)
            if self._has_signals:
                grads, totals = self._add(grads, totals, estimate, factors, delta, direct, jacobians, weights)
            return (Estimate(hidden, theta, key), grads, totals), metrics

        metrics: Any
        carry, metrics = jax.lax.scan(one, carry, self._blocks)
        return carry, sum_over_time(metrics) if self._is_scored else None

    def _add(self, grads: Any, totals: Any, estimate: Estimate, factors: Any, delta: Any, direct: Any,
             jacobians: Jacobians, weights: list[Any]) -> tuple[Any, Any]:  # fmt: skip
        """Add the gradients of a block, which started with ``estimate``."""
        learner: Any = self._learner
        grads, totals = dict(grads), dict(totals)
        for group, (signal, old, new) in factors.items():
            # ``later``: the factor of the parameter side after each time step.
            first, later = jax.lax.scan(lambda g, xs: (xs[0] + xs[1] * g, g), 0.0, (signal, old), reverse=True)
            for name, side in estimate.parameters[group].items():
                if name in grads:
                    more = jax.tree.unflatten(jax.tree.structure(grads[name]), [first * leaf for leaf in side])
                    grads[name] = add_to(grads[name], more)
            for i in learner.acting[group]:
                if i in totals:
                    factor = (new * later).reshape(-1, *(1,) * (delta[i].ndim - 1))
                    cotangents = factor * delta[i] + direct.get(i, 0)
                    more = self._weight_gradients(i, jacobians.inputs.get(i), cotangents, cotangents, weights[i])
                    totals[i] = add_to(totals[i], more)
        return grads, totals

    def _product(self, i: int, parts: Any, delta: Any, weights: list[Any]) -> list[Any]:
        """``x^T delta`` of relation ``i`` in one time step."""
        if parts is not None:
            parts = ((parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1))[None],)
        return self._weight_gradients(i, parts, delta[None], delta[None], weights[i])

    def _undetached(self, block: Rows) -> Any:
        """The derivative of a time step of a group: from that of the hidden states before to that of the new ones."""
        learner = self._learner

        def step(slices, mask, results):
            learner._reset(mask)
            self._learn(lambda u: learner.products.window(u, results, {}), slices)
            return {name: leaf(state.value) for name, state in learner.known.traced.items()}

        call = learner.known.stateless(
            step, *jax.tree.map(lambda leaf: leaf[0], (block.sequences, block.masks, block.results))
        )

        def move(row: Rows, along: dict[str, Any]) -> dict[str, Any]:
            given = row.memory, row.others, row.sequences, row.masks, row.results

            def new(own: dict[str, Any]) -> dict[str, Any]:
                found = call(learner.known.parameters(), row.hidden | own, *given)[1]
                return {name: found[name] for name in along}

            own = {name: row.hidden[name] for name in along}
            tangents = {name: jax.tree.map(lambda _, name=name: along[name], own[name]) for name in along}
            return jax.jvp(new, (own,), (tangents,))[1]

        return move


class RankOneLearner(ReverseLearner):
    """UORO, see ``ReverseLearner``. There is no pass backward in time; the estimate advances with the sequence.

    Attributes:
        groups: The hidden states of each group with a traced weight.
        acting: The relations that act on each of these groups.
    """

    steps_class = RankOneSteps
    trains_starts = False

    def __init__(self, objective: Any, network: Any, step: Any, rule: Any, **options: Any):
        super().__init__(objective, network, step, rule, **options)
        found = step.report.graph.hidden_groups
        self._count = len(found)
        self.acting = {g: [i for i, r in enumerate(step.relations) if g in r.groups] for g in step.groups}
        self.acting = {group: numbers for group, numbers in self.acting.items() if numbers}
        self.groups = {group: step.groups[group] for group in self.acting}
        self._check(found)
        values = parameters(objective.model)
        zeros = lambda name: [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(values[name].value)]  # noqa: E731
        self._hidden = {
            name: SHORT(jnp.zeros_like(leaf(network.hidden[name].value)))
            for names in self.groups.values() for name in names
        }  # fmt: skip
        self._sides = {group: {name: SHORT(zeros(name)) for name in self._names(group)} for group in self.groups}
        self._key, self._steps = SHORT(jax.random.key(0)), SHORT(jnp.int32(0))
        self.own = {
            **{f"etrace_s.{name}": state for name, state in self._hidden.items()},
            **{f"etrace_theta.{g}.{name}": state for g, own in self._sides.items() for name, state in own.items()},
            "projection_rng": self._key, "steps": self._steps,
        }  # fmt: skip

    @property
    def perturbed(self) -> range:  # parameters that are not trained count in the norms, too
        return range(len(self.step.relations))

    def _check(self, found: Any) -> None:
        """Raise Irreversible for a model whose random signs or projections would differ from braintrace's."""
        sizes = {group.index: len(group.hidden_paths) for group in found}
        if self.step.mapped:
            raise Irreversible("the model is mapped over sequences")
        for relation in self.step.relations:
            paths = ", ".join(sorted(relation.paths))
            if relation.name not in REVERSIBLE:
                raise Irreversible(f"{paths} acts by {relation.name}, which has no reverse form here")
            if len(relation.groups) != 1:
                raise Irreversible(f"{paths} acts on several groups of hidden states")
        if any(len(names) != sizes[group] for group, names in self.groups.items()):
            raise Irreversible("a hidden state has no derivative")

    def _names(self, group: int) -> list[str]:
        """The parameters that act on a group, trained or not: all of them count in the norms."""
        paths = [path for i in self.acting[group] for path in sorted(self.step.relations[i].paths)]
        return list(dict.fromkeys(paths))

    def draw(self, key: Any, _: Any) -> tuple[Any, dict[str, Any]]:
        """braintrace's random signs of one time step, and the key of the next one."""
        rng, signs = brainstate.random.RandomState(key), {}
        keys = jnp.asarray(rng.split_key(self._count))
        for group, names in self.groups.items():
            own = leaf(self.known.traced[names[0]].value)
            coins = brainstate.random.RandomState(keys[group]).bernoulli(0.5, (*own.shape, len(names)))
            signs |= {n: jnp.where(coins[..., k], 1.0, -1.0).astype(own.dtype) for k, n in enumerate(names)}
        return rng.value, signs

    # ------------------------------------------------------------------------------------------------ learning

    def restart(self, batch_size: int) -> None:
        self.network.reset(batch_size)
        for state in self._arrays():
            state.value = jax.tree.map(jnp.zeros_like, state.value)
        self._key.value, self._steps.value = projection_key(), jnp.int32(0)

    def _arrays(self) -> list[State]:
        return [*self._hidden.values(), *(state for own in self._sides.values() for state in own.values())]

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        if self.carried:  # a stream is never restarted
            self._key.value = jax.lax.select(self._steps.value == 0, projection_key(), self._key.value)
        return super()._learn(phases, update)

    def _gradients(self, stretches: list[Stretch], begin: Pull = lambda entry: {}) -> tuple[dict[str, Any], Metrics]:
        parts: Any = self._forward(stretches)
        by_relation = self.relation_weights()
        sides = {group: {name: state.value for name, state in own.items()} for group, own in self._sides.items()}
        estimate = Estimate({name: state.value for name, state in self._hidden.items()}, sides, self._key.value)
        grads = zeros_like_parameters(self.known.trained)
        carry: Any = estimate, grads, {i: wide_zeros(by_relation.values[i]) for i in self.step.chosen}
        metrics: Any = None
        for part in parts:
            carry, found = part.forward(carry, by_relation)
            if found is not None:
                metrics = found if metrics is None else add(metrics, found)
        estimate, grads, totals = carry
        for name, state in self._hidden.items():
            state.value = estimate.hidden[name]
        for group, own in self._sides.items():
            for name, state in own.items():
                state.value = estimate.parameters[group][name]
        self._key.value, self._steps.value = estimate.key, self._steps.value + sum(part.count for part in parts)
        return by_relation.gradients(grads, totals), {} if metrics is None else metrics

    # -------------------------------------------------------------------------------------------------- report

    def trace_bytes(self) -> int:
        return sum(leaf.nbytes for state in self._arrays() for leaf in jax.tree.leaves(state.value))

    def trace_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for group, own in self._sides.items():
            for name, state in own.items():
                sizes[name] = sizes.get(name, 0) + sum(leaf.nbytes for leaf in jax.tree.leaves(state.value))
            first = next(iter(own))  # the hidden side is counted once
            sizes[first] += sum(self._hidden[name].value.nbytes for name in self.groups[group])
        return sizes
