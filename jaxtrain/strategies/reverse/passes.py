"""Online rules with a linear trace, computed in four passes over a sequence at about the cost of BPTT."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp

from ...core.functional import pure
from ...core.metrics import Metrics
from ...core.module import Phases
from ...core.objective import Objective, total_weight
from ...core.state import State, long_term_states, parameters
from ..base import Learner, Network, ParameterReport, Update, scored, split_reset, trained, zeros_like_parameters
from ..equations import Irreversible
from ..flow import Flow, initial_values
from ..parameter_report import Traces, describe
from ..specs.backward_rule import BackwardRule
from ..specs.rule import ONE_STEP, Reach
from .detached_step import DENSE, EMBEDDING, DetachedStep
from .products import KnownProducts
from .time_steps import TimeSteps, leaf


class PassesLearner(Learner):
    """A rule with a linear trace, computed backward in time.

    1. Forward, once. Hidden states at the start of each time step and the results of all products are kept.
    2. Time steps (or windows) side by side, since their states are known: learning signals, gradients of parameters
       without a trace, and Jacobians of the detached step. No product is computed again.
    3. The rule: an element-wise scan backward in time turns the signals into one cotangent per traced product.
    4. One product per weight, over all time steps and sequences.

    Passes 2 to 4 run block by block, the last block first (``TimeSteps``).

    Args:
        objective: The module, with its model and its loss.
        network: The model over a batch.
        step: The detached time step.
        rule: The rule.
        window: Scored time steps that are differentiated together.
        single: Whether each loss is backpropagated into the hidden state only.
        reach: Texts for the parameter report.

    Raises:
        Irreversible: The model needs the trace.
    """

    def __init__(self, objective: Objective, network: Network, step: DetachedStep, rule: BackwardRule, *, window: int,
                 single: bool, reach: Reach = ONE_STEP):  # fmt: skip
        super().__init__(objective, network)
        self.step, self.rule, self.window, self.single, self.reach = step, rule, window, single, reach
        self._params = trained(objective)
        self.chosen = [i for i, relation in enumerate(step.relations) if relation.trained]
        self._refuse()
        self.products = KnownProducts(step)
        if rule.own_recurrence:
            self.products.check_own_recurrence()
        self.traced = {name: network.hidden[name] for name in step.traced}
        self.group = {name: group for group, names in step.groups.items() for name in names}
        rest = [state for name, state in network.hidden.items() if name not in self.traced]
        self._others: list[State] = [*rest, *long_term_states(objective.model).values(), brainstate.random.DEFAULT]
        self._feedback = {} if rule.feedback_seed is None else self._feedback_matrices(rule.feedback_seed)

    def _refuse(self) -> None:
        """Raise Irreversible for a model whose gradient needs the trace."""
        for i in self.chosen:
            relation = self.step.relations[i]
            if relation.name not in (*DENSE, *EMBEDDING):
                raise Irreversible(f"{', '.join(sorted(relation.paths))} acts by {relation.name}")
        if any(leaf(self.network.hidden[name].value).dtype.itemsize < 4 for name in self.step.traced):
            raise Irreversible("a hidden state has less than 32 bits")
        if self._params.keys() & frozenset().union(*initial_values(self.network, self.step.batch_size).values()):
            raise Irreversible("an initial state is learned")

    def _feedback_matrices(self, seed: int) -> dict[int, Any]:
        """braintrace's random feedback matrix of each group, drawn from the same key in the same order."""
        groups = dict.fromkeys(group for relation in self.step.relations for group in sorted(relation.groups))
        width = {group: leaf(self.traced[self.step.groups[group][0]].value).shape[-1] for group in groups}
        with brainstate.random.seed_context(jax.random.key(seed)):
            return {
                group: braintrace.FixedRandomFeedback(n, n, brainstate.random.split_key()).B
                for group, n in width.items()
            }

    def project(self, signals: dict[str, Any]) -> dict[str, Any]:
        """The learning signals as the rule feeds them back, ``(T, B, units)``."""

        def one(name: str, signal: Any) -> Any:
            if not self._feedback:
                return signal
            norm = jnp.sqrt((signal * signal).sum(-1, keepdims=True))
            return signal / (norm + 1e-8) @ self._feedback[self.group[name]]

        return {name: one(name, leaf(signal)) for name, signal in signals.items()}

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        with warnings.catch_warnings():
            # Mapped over time steps, braintrace's operations warn that they can no longer be compiled into traces.
            warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
            grads, metrics = self._gradients(phases)
        return update(grads, total_weight(phases), metrics)

    def _gradients(self, phases: Phases) -> tuple[dict[str, Any], Metrics]:
        """Gradients of ``sum(w * loss)`` by parameter, and metrics."""
        self.restart(phases.sizes[2])
        parts = self._forward(phases)
        values = {name: jax.tree.leaves(state.value) for name, state in parameters(self.objective.model).items()}
        weights, to_parameters = jax.vjp(self.step.weights, values)
        zeros = {name: jnp.zeros_like(leaf(state.value)) for name, state in self.traced.items()}
        outputs = {i: jnp.zeros(self.step.relations[i].y_var.aval.shape) for i in self.chosen}
        grads = jax.tree.map(jnp.zeros_like, self.parameter_values())
        totals = {i: jax.tree.map(jnp.zeros_like, weights[i]) for i in self.chosen}
        if self.rule.decay is None:
            state, factors = (zeros, zeros, zeros), [None] * len(parts)
        else:
            state, factors = (outputs, zeros), self._factors(parts, zeros)
        metrics: Any = None
        for part, factor in zip(parts[::-1], factors[::-1], strict=True):
            (state, grads, totals), found = part.backward(factor, (state, grads, totals), weights)
            if found is not None:
                metrics = found if metrics is None else jax.tree.map(jnp.add, metrics, found)
        every = [totals.get(i, jax.tree.map(jnp.zeros_like, weight)) for i, weight in enumerate(weights)]
        for name, leaves in to_parameters(every)[0].items():
            if name in grads:
                traced = jax.tree.unflatten(jax.tree.structure(grads[name]), leaves)
                grads[name] = jax.tree.map(jnp.add, grads[name], traced)
        return jax.tree.map(lambda t, g: g.astype(t.dtype), zeros_like_parameters(self._params), grads), metrics

    def _factors(self, parts: list[TimeSteps], zeros: dict[str, Any]) -> list[Any]:
        """The output side of the factored trace at every time step, forward in time."""
        value: Any = {
            name: {i: zero for i in self.chosen if self.group[name] in self.step.relations[i].groups}
            for name, zero in zeros.items()
        }
        every = []
        for part in parts:
            value, found = part.factors(value)
            every.append(found)
        return every

    def parameter_values(self) -> dict[str, Any]:
        """Values of the trained parameters, by name."""
        return {name: state.value for name, state in self._params.items()}

    # ------------------------------------------------------------------------------------------------- forward

    def _forward(self, phases: Phases) -> list[TimeSteps]:
        """Run all time steps; return them in order of time."""
        warm_masks, masks = split_reset(phases)
        warm = phases.sizes[0]
        # braintrace's filter starts with the trace at the start of the first scored time step.
        filtered_from = warm + 1 if self.single else warm
        parts = []

        def run(learn: Callable, sequences: Any, masks: Any, start: int, is_scored: bool) -> None:
            at = self._run(learn, sequences, masks)
            count = jax.tree.leaves(sequences)[0].shape[0]
            numbers = jnp.arange(start + 1, start + count + 1)
            rows = sequences, masks, *at, numbers, (numbers >= filtered_from).astype(jnp.float32)
            size = self.window if is_scored else 1
            whole = count - count % size
            for now, length in ((slice(whole), size), (slice(whole, None), count - whole)):
                part = jax.tree.map(lambda leaf, now=now: leaf[now], rows)
                if jax.tree.leaves(part)[0].shape[0]:
                    parts.append(TimeSteps(self, learn, part, window=length, is_scored=is_scored))

        if phases.warmup is not None:
            run(lambda forward, x: self.objective.warmup(forward, x), phases.warmup, warm_masks, 0, False)
        run(lambda forward, slices: self.objective.learn(forward, *slices), scored(phases)[:4], masks, warm, True)
        return parts

    def _run(self, learn: Callable, sequences: Any, masks: Any) -> tuple[Any, Any, Any]:
        """Hidden states and other States at the start of each time step, and the results of all products."""
        states = [*self.traced.values(), *self._others]
        outside: Any = {}
        if self.products.split:

            def inputs(slices: Any) -> Any:
                box: list[Any] = []
                learn(lambda u: self.products.inputs(u, box), slices)
                return box[0]

            call = self.stateless(inputs, jax.tree.map(lambda leaf: leaf[0], sequences))
            outside = self.products.outside_products(jax.vmap(lambda slices: call({}, {}, None, slices))(sequences))

        def step(slices, mask, outside):
            entry, box = [state.value for state in states], []
            self._reset(mask)
            learn(lambda u: self.products.forward(u, outside, box), slices)
            if len(box) != 1:
                raise ValueError(
                    f"warmup_step called forward {len(box)} times; engine='reverse' needs one call per time step: use "
                    "engine='trace'"
                )
            return entry, box[0]

        entries, results = brainstate.transform.for_loop(step, sequences, masks, outside)
        hidden = dict(zip(self.traced, entries[: len(self.traced)], strict=True))
        return hidden, entries[len(self.traced) :], results

    def stateless(self, run: Callable, *example: Any) -> Callable:
        """``call(params, hidden, others, *args)``: ``run(*args)`` from these values of the States."""
        states, call = pure(run, *example)

        def one(params: dict[str, Any], hidden: dict[str, Any], others: list[Any] | None, *args: Any) -> Any:
            given = {id(self._params[name]): value for name, value in params.items()}
            given |= {id(self.traced[name]): value for name, value in hidden.items()}
            if others is not None:
                given |= {id(state): value for state, value in zip(self._others, others, strict=True)}
            return call([given.get(id(state), state.value) for state in states], *args)[1]

        return one

    # -------------------------------------------------------------------------------------------------- report

    def report(self, phases: Phases) -> list[ParameterReport]:
        groups = self.step.parameter_groups()
        traces = Traces.of(self.step.report, groups, self.step.groups, dict.fromkeys(groups, 0))
        return describe(
            self._params, Flow.of(self, phases), traces, window=self.window, single=self.single, reach=self.reach
        )

    def resolved(self) -> dict[str, Any]:
        return {**super().resolved(), "engine": "reverse"}
