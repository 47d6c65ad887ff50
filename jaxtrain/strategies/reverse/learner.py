"""Online rules with a linear trace, computed in four passes over a sequence at about the cost of BPTT."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

from ...core.functional import pure
from ...core.metrics import Metrics, add
from ...core.module import Phases
from ...core.objective import Objective, total_weight
from ...core.state import add_to, differentiable, long_term_states, parameters, wide_zeros
from ..base import Learner, Network, ParameterReport, Update, split_reset, trained, zeros_like_parameters
from ..equations import ELEMENTWISE, Irreversible
from ..flow import Flow, initial_values
from ..parameter_report import START, WHOLE, Traces, describe
from ..specs.backward_rule import BackwardRule
from ..specs.online_rule import ONE_STEP, Reach
from ..stretches import Stretch, scored_stretch, stretches_of, warm_stretch
from ..update_schedule import SEQUENCE, UpdateSchedule, over_tiles
from .detached_step import DetachedStep
from .factored_trace import FactoredTrace, trace_of
from .known_products import KnownProducts
from .time_steps import Carry, Rows, TimeSteps, leaf, parts_of
from .traces import Kept, Trace

Pull = Callable[[dict[str, Any]], dict[str, Any]]
"""A function from cotangents of hidden states, by name, to gradients of parameters."""


class ReverseLearner(Learner):
    """A rule with a linear trace, computed backward in time.

    1. Forward, once. Hidden states at the start of each time step and the results of all products are kept.
    2. Time steps (or windows) side by side, since their states are known: learning signals, gradients of parameters
       without a trace, and Jacobians of the detached step. No product is computed again.
    3. The rule: an element-wise scan backward in time turns the signals into one cotangent per traced product.
    4. One product per weight, over all time steps and sequences.

    Passes 2 to 4 run block by block, the last block first (``TimeSteps``). Between segments, ``Trace`` holds what the
    rule remembers.

    Args:
        objective: The module, with its model and its loss.
        network: The model over a batch.
        step: The detached time step.
        rule: The rule.
        window: Scored time steps that are differentiated together.
        single: Whether each loss is backpropagated into the hidden state only.
        update_schedule: When gradients become updates.
        segment: Time steps per segment; None makes the sequence one segment, and no trace is kept.
        memory: Whether credit passes back through readout memory. The windows then run one after another.
        reach: Texts for the parameter report.

    Raises:
        Irreversible: The model needs braintrace's trace.
    """

    trains_starts = True
    """Whether parameters receive credit for the initial states that they determine."""
    steps_class: type[TimeSteps] = TimeSteps

    def __init__(self, objective: Objective, network: Network, step: DetachedStep, rule: BackwardRule, *, window: int,
                 single: bool, update_schedule: UpdateSchedule = SEQUENCE, segment: int | None = None,
                 memory: bool = False, reach: Reach = ONE_STEP):  # fmt: skip
        super().__init__(objective, network)
        self.step, self.rule, self.window, self.single, self.reach = step, rule, window, single, reach
        self.update_schedule, self.carried, self.segment = update_schedule, update_schedule.stateful, segment
        self._params = trained(objective)
        starting = frozenset().union(*initial_values(network, step.batch_size).values())
        self.starts = [name for name in self._params if name in starting and self.trains_starts]
        self.chosen = [i for i, relation in enumerate(step.relations) if relation.detached]
        self.needs_factors = rule.decay is not None or rule.own_recurrence
        self._refuse()
        self.products = KnownProducts(step)
        if rule.own_recurrence:
            self.products.check_own_recurrence()
        none = segment is None or rule.rank_one
        self.trace: Trace | None = None if none else trace_of(rule, step, single or window > 1)
        self.perturbed = self.chosen if self.trace is None else self.trace.relations
        self.own = {} if self.trace is None else self.trace.states
        self.traced = {name: network.hidden[name] for name in step.traced}
        credited = step.credited if self.trace is not None and rule.decay is None else step.traced
        self.credited = {name: network.hidden[name] for name in credited}
        rest = {name: state for name, state in network.hidden.items() if name not in self.traced}
        self.memory = rest if memory else {}
        others = [] if memory else rest.values()
        self._others = [*others, *long_term_states(objective.model).values(), brainstate.random.DEFAULT]
        self._feedback = {} if rule.feedback_seed is None else self._feedback_matrices(rule.feedback_seed)
        if memory:
            self.notes.append(self._memory_note())

    def _refuse(self) -> None:
        """Raise Irreversible for a model whose gradient needs braintrace's trace."""
        if self.rule == BackwardRule():
            return
        if not self.chosen:
            raise Irreversible("no weight has a trace")
        values = [leaf(self.network.hidden[name].value) for name in self.step.traced]
        if any(each.dtype.itemsize < 4 for each in (*values, *(r.y_var.aval for r in self.step.relations))):
            raise Irreversible("its recurrence has less than 32 bits")
        if not self.needs_factors:
            return
        if self.starts:
            raise Irreversible("an initial state is learned")
        for i in self.chosen:
            relation = self.step.relations[i]
            paths, y = ", ".join(sorted(relation.paths)), relation.y_var.aval
            if relation.name == ELEMENTWISE:
                raise Irreversible(f"{paths} acts by {relation.name}")
            sizes = {self.step.units_of(n) for group in relation.groups for n in self.step.groups[group]}
            batch = 1 if self.step.mapped and not self.step.as_batch else y.shape[0]
            if sizes != {y.size // batch}:
                raise Irreversible(
                    f"{paths} or the hidden state that it acts on has other axes than sequences and units"
                )
        if self.rule.own_recurrence and self.step.mapped:
            raise Irreversible("the model is mapped over sequences")

    def _feedback_matrices(self, seed: int) -> dict[int, Any]:
        """braintrace's random feedback matrix of each group, drawn from the same key in the same order."""
        groups = dict.fromkeys(group for relation in self.step.relations for group in sorted(relation.groups))
        hidden = self.network.hidden
        width = {group: leaf(hidden[self.step.groups[group][0]].value).shape[-1] for group in groups}
        with brainstate.random.seed_context(jax.random.key(seed)):
            return {
                group: braintrace.FixedRandomFeedback(n, n, brainstate.random.split_key()).B
                for group, n in width.items()
            }

    def project(self, signals: dict[str, Any]) -> dict[str, Any]:
        """The learning signals as the rule feeds them back, ``(T, B, units)``."""

        def one(name: str, signal: Any) -> Any:
            matrix = self._feedback.get(self.step.hidden_of[name])
            if matrix is None:  # no feedback, or of a state that no weight reaches
                return signal
            norm = jnp.sqrt((signal * signal).sum(-1, keepdims=True))
            return signal / (norm + 1e-8) @ matrix

        return {name: one(name, leaf(signal)) for name, signal in signals.items()}

    def later(self, hidden: dict[str, Any], pull: Pull) -> dict[str, Any]:
        """Gradients of parameters without a trace from estimates of later losses, if the rule makes any.

        Args:
            hidden: The new hidden states of time steps side by side, ``(T, B, units)``.
            pull: A function from their cotangents to gradients of parameters within a time step.
        """
        return {}

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        with warnings.catch_warnings():
            # Mapped over time steps, braintrace's operations warn that they can no longer be compiled into traces.
            warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
            return self._learn(phases, update)

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        warm_masks, _ = split_reset(phases)
        if self.segment is None:
            begin = self._begin(phases.sizes[2])
            grads, metrics = self._gradients(stretches_of(self.objective, phases), begin)
            return update(grads, total_weight(phases), metrics)
        if not self.carried:
            self.restart(phases.sizes[2])
        if phases.warmup is not None:
            over_tiles((phases.warmup, warm_masks), self.segment, self._evolve, {})
        return self.update_schedule.drive(phases, self._by_segments, update)

    def _evolve(self, tile: tuple[Any, Any]) -> tuple[dict[str, Any], Metrics]:
        """Advance the States and the trace over time steps of the warm-up."""
        self._gradients([warm_stretch(self.objective, *tile)])
        return {}, {}

    def _by_segments(self, sequences: Any) -> tuple[dict[str, Any], Metrics]:
        assert self.segment is not None
        tile = max(self.segment - self.segment % self.window, self.window)
        segment = lambda tile: self._gradients([scored_stretch(self.objective, tile)])  # noqa: E731
        return over_tiles(sequences, tile, segment, zeros_like_parameters(self._params))

    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        for state in self.own.values():
            state.value = jnp.zeros_like(state.value)

    def _begin(self, batch_size: int) -> Pull:
        """Restart, and return the function that backpropagates cotangents of initial states to their parameters."""
        if not self.starts:
            self.restart(batch_size)
            return lambda entry: {}
        states, call = pure(lambda: self.restart(batch_size))
        before, place = [state.value for state in states], {id(state): i for i, state in enumerate(states)}
        hidden = {**self.credited, **self.memory}
        started = {n: s for n, s in hidden.items() if id(s) in place and differentiable(s.value)}

        def restart(starts: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
            now = list(before)
            for name, value in starts.items():
                now[place[id(self._params[name])]] = value
            new, _ = call(now)
            return {name: new[place[id(state)]] for name, state in started.items()}, new

        initial, pull, new = jax.vjp(restart, self.start_values(), has_aux=True)
        for state, value in zip(states, new, strict=True):
            state.value = value

        def back(entry: dict[str, Any]) -> dict[str, Any]:
            given = {n: jax.tree.leaves(entry[n]) for n in initial if n in entry}
            zeros = jax.tree.map(jnp.zeros_like, initial)
            return pull(zeros | {n: jax.tree.unflatten(jax.tree.structure(initial[n]), given[n]) for n in given})[0]

        return back

    # ----------------------------------------------------------------------------------------------- a segment

    def _gradients(self, stretches: list[Stretch], begin: Pull = lambda entry: {}) -> tuple[dict[str, Any], Metrics]:
        """Gradients of ``sum(w * loss)`` and metrics of one segment, whose States and trace advance to its end."""
        parts = self._forward(stretches)
        weights, to_parameters = self.relation_weights()
        outputs, factors = self._factors(parts)
        carry, metrics, kept = self._last(weights), None, []
        for part, factor in zip(parts[::-1], factors[::-1], strict=True):
            carry, found, more = part.backward(factor, carry, weights)
            kept.insert(0, more)
            if found is not None:
                metrics = found if metrics is None else add(metrics, found)
        grads, totals = dict(carry.grads), dict(carry.totals)
        state = carry.recursion
        if self.rule.decay is None:
            lam, mu, late = state
            late = late | {n: leaf(value) for n, value in carry.memory.items() if n in late}
            state = lam, mu, late
            entry = {n: lam[n] + late[n] for n in lam} | carry.memory
            for name, more in begin(entry).items():
                grads[name] = add_to(grads[name], more)
        if self.trace is not None:
            is_filtered = stretches[0].is_scored and not self.single
            for i, more in self.trace.contract(state, is_filtered, weights).items():
                totals[i] = add_to(totals[i], more)
            joined = kept[0] if len(kept) == 1 else _joined(kept)
            self.trace.advance(joined, carry.ends if outputs is None else [outputs], is_filtered)
        return self.combined(grads, totals, weights, to_parameters), {} if metrics is None else metrics

    def relation_weights(self) -> tuple[list[list[Any]], Callable]:
        """The weights of each relation, and a function from their gradients to those of parameters."""
        values = {name: jax.tree.leaves(state.value) for name, state in parameters(self.objective.model).items()}
        return jax.vjp(self.step.weights, values)

    def combined(
        self, grads: dict[str, Any], totals: dict[int, Any], weights: list[Any], to_parameters: Callable
    ) -> dict[str, Any]:
        """Gradients by parameter, from those by parameter and those by relation."""
        every = [
            [total.astype(leaf.dtype) for leaf, total in zip(weight, totals[i], strict=True)]
            if i in totals
            else jax.tree.map(jnp.zeros_like, weight)
            for i, weight in enumerate(weights)
        ]
        grads = dict(grads)
        for name, leaves in to_parameters(every)[0].items():
            if name in grads:
                traced = jax.tree.unflatten(jax.tree.structure(grads[name]), leaves)
                grads[name] = jax.tree.map(jnp.add, grads[name], traced)
        return jax.tree.map(lambda t, g: g.astype(t.dtype), zeros_like_parameters(self._params), grads)

    def _last(self, weights: list[list[Any]]) -> Carry:
        """The carry after the last time step."""
        zeros = {name: jnp.zeros_like(leaf(state.value)) for name, state in self.credited.items()}
        recursion: Any = zeros, zeros, zeros
        if self.rule.decay is not None:
            acted = {i: next(n for n in zeros if self.step.hidden_of[n] in self._groups(i)) for i in self.chosen}
            recursion = {i: zeros[name] for i, name in acted.items()}, zeros
        memory = {n: jax.tree.map(jnp.zeros_like, s.value) for n, s in self.memory.items() if differentiable(s.value)}
        every = self.chosen if self.trace is None else {*self.chosen, *self.trace.relations}
        totals = {i: wide_zeros(weights[i]) for i in sorted(every)}
        ends = [] if self.trace is None else self.trace.ends()
        return Carry(recursion, ends, memory, zeros_like_parameters(self._params), totals)

    def _groups(self, i: int) -> set[int]:
        return self.step.relations[i].groups

    def _factors(self, parts: list[TimeSteps]) -> tuple[Any, list[Any]]:
        """The output side of a factored trace at the end of the segment and at every time step, forward in time."""
        if self.rule.decay is None:
            return None, [None] * len(parts)
        if isinstance(self.trace, FactoredTrace):
            value: Any = {n: {i: state.value for i, state in by.items()} for n, by in self.trace.outputs.items()}
        else:
            zeros = {name: jnp.zeros_like(leaf(state.value)) for name, state in self.credited.items()}
            value = {
                n: {i: z for i in self.chosen if self.step.hidden_of[n] in self._groups(i)} for n, z in zeros.items()
            }
        every = []
        for part in parts:
            value, found = part.factors(value)
            every.append(found)
        return value, every

    def start_values(self) -> dict[str, Any]:
        """Values of the trained parameters that determine initial states, by name."""
        return {name: self._params[name].value for name in self.starts}

    @contextmanager
    def starting(self, starts: dict[str, Any]) -> Iterator[None]:
        """Temporarily replace the values of the parameters of initial states."""
        before = self.start_values()
        for name, value in starts.items():
            self._params[name].value = value
        try:
            yield
        finally:
            for name, value in before.items():
                self._params[name].value = value

    def parameter_values(self) -> dict[str, Any]:
        """Values of the trained parameters, by name."""
        return {name: state.value for name, state in self._params.items()}

    # ------------------------------------------------------------------------------------------------- forward

    def _forward(self, stretches: list[Stretch]) -> list[TimeSteps]:
        """Run all time steps; return them in order of time."""
        scored = np.concatenate([np.full(stretch.length, stretch.is_scored) for stretch in stretches])
        # braintrace's filter advances in the backward pass: after a scored time step in single-step rules, else before.
        filtered = scored if self.single else np.append(scored[1:], False)
        count = self.trace.steps() if self.trace is not None else 0
        parts, start = [], 0
        for stretch in stretches:
            hidden, memory, others, results = self._run(stretch)
            learn, sequences, masks, is_scored = stretch
            time = stretch.length
            now = slice(start, start + time)
            steps = count + jnp.arange(start + 1, start + time + 1)
            rows = Rows(
                sequences, masks, hidden, memory, others, results, steps, jnp.asarray(filtered[now], jnp.float32)
            )
            has_signals = is_scored or bool(self.memory and scored.any())
            for which, window in parts_of(time, self.window if is_scored else 1):
                part = jax.tree.map(lambda leaf, which=which: leaf[which], rows)
                parts.append(
                    self.steps_class(self, learn, part, window=window, is_scored=is_scored, has_signals=has_signals)
                )
            start += time
        return parts

    def _run(self, stretch: Stretch) -> tuple[Any, Any, Any, Any]:
        """Hidden states, readout memory and other States at the start of each time step, and the results of all
        products."""
        learn, sequences, masks, _ = stretch
        outside = self.products.outside_products(self.products.outside_inputs(stretch))

        def step(slices, mask, outside):
            hidden, memory = ({n: s.value for n, s in own.items()} for own in (self.credited, self.memory))
            others, box = [state.value for state in self._others], []
            self._reset(mask)
            learn(lambda u: self.products.forward(u, outside, box), slices)
            return hidden, memory, others, box[0]

        return brainstate.transform.for_loop(step, sequences, masks, outside)

    def stateless(self, run: Callable, *example: Any) -> Callable:
        """``run(*args)`` from given values of the States.

        Returns:
            ``call(params, hidden, memory, others, *args) -> (memory, result)``. States without a value keep theirs.
        """
        states, call = pure(run, *example)
        place = {id(state): i for i, state in enumerate(states)}

        def one(params: dict[str, Any], hidden: dict[str, Any], memory: dict[str, Any], others: list[Any] | None,
                *args: Any) -> Any:  # fmt: skip
            given = {id(self._params[name]): value for name, value in params.items()}
            given |= {id(self.network.hidden[name]): value for name, value in (memory | hidden).items()}
            if others is not None:
                given |= {id(state): value for state, value in zip(self._others, others, strict=True)}
            new, result = call([given.get(id(state), state.value) for state in states], *args)
            own = {name: place.get(id(self.network.hidden[name])) for name in memory}
            return {name: memory[name] if k is None else new[k] for name, k in own.items()}, result

        return one

    # -------------------------------------------------------------------------------------------------- report

    def _memory_note(self) -> str:
        names = [n for n, s in self.memory.items() if differentiable(s.value)]
        if not names:
            return "readout_memory: the model has none, so the option has no effect"
        across = " within a segment" if self.segment else ""
        return f"readout_memory: credit passes{across} through {', '.join(names)}"

    def report(self, phases: Phases) -> list[ParameterReport]:
        return describe(
            self._params, Flow.of(self, phases), self.traces(phases.reset is not None), window=self.window,
            single=self.single, reach=self.reach,
        )  # fmt: skip

    def traces(self, resets: bool) -> Traces:
        whole = WHOLE
        if self.carried or self.update_schedule.update_every != "sequence":
            whole += " with stateful=False and update_every='sequence'"
        return Traces.of(
            self.step.report, self.step.parameter_groups(), self.step.groups, self.trace_sizes(),
            memory=frozenset(self.memory),
            memory_end=f"ends at the start of a segment. {whole} gives it all" if self.segment else "",
            credits_initial_state=self.segment is None and self.trains_starts, credits_resets=resets,
            advice=f"Use {whole}" if self.trains_starts else START,
        )  # fmt: skip

    def trace_sizes(self) -> dict[str, int]:
        """Bytes of the trace of each traced parameter."""
        sizes: dict[str, int] = {}
        for i, relation in enumerate(self.step.relations):
            for name in relation.paths:
                sizes[name] = sizes.get(name, 0) + (0 if self.trace is None else self.trace.bytes_of(i))
        return sizes

    def resolved(self) -> dict[str, Any]:
        return {**super().resolved(), "engine": "reverse", "segment": self.segment or "sequence"}


def _joined(kept: list[Kept]) -> Kept:
    """What consecutive time steps have kept."""
    join = lambda axis: lambda *leaves: jnp.concatenate(leaves, axis)  # noqa: E731
    deltas = jax.tree.map(join(1), *(each.deltas for each in kept))
    return Kept(deltas, *jax.tree.map(join(0), *((each.inputs, each.keep) for each in kept)))
