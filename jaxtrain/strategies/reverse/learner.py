"""Online rules with a linear trace, computed in four passes over a sequence at about the cost of BPTT."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ...core.metrics import Metrics, add
from ...core.module import Phases
from ...core.objective import Objective, total_weight
from ...core.state import add_to, wide_zeros
from ..base import Learner, Network, ParameterReport, Update, split_reset, trained, zeros_like_parameters
from ..flow import Flow, initial_values
from ..parameter_report import START, WHOLE, Traces, describe
from ..specs.backward_rule import BackwardRule
from ..specs.base import ONE_STEP, Reach
from ..stretches import Stretch, scored_stretch, stretches_of, warm_stretch
from ..update_schedule import SEQUENCE, UpdateSchedule, over_tiles
from .blocks import Carry, Rows, leaf, parts_of
from .detached_step import DetachedStep
from .factored_trace import FactoredTrace, trace_of
from .feedback import Feedback
from .known_products import KnownProducts
from .known_states import KnownStates
from .relation_weights import RelationWeights
from .requirements import require_reversible
from .starts import Pull, Starts
from .time_steps import TimeSteps
from .traces import Kept, Trace


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
        self.rule, self.window, self.single, self.reach = rule, window, single, reach
        self.update_schedule, self.carried, self.segment = update_schedule, update_schedule.stateful, segment
        params = trained(objective)
        starting = frozenset().union(*initial_values(network, step.batch_size).values())
        starts = Starts({n: s for n, s in params.items() if n in starting and self.trains_starts})
        require_reversible(rule, step, network, bool(starts.parameters))
        self.products = KnownProducts(step)
        if rule.own_recurrence:
            self.products.check_own_recurrence()
        none = segment is None or rule.rank_one
        self.trace: Trace | None = None if none else trace_of(rule, step, single or window > 1)
        self.own = {} if self.trace is None else self.trace.states
        credits_readouts = self.trace is not None and rule.decay is None
        self.known = KnownStates(objective, network, step, starts, credits_readouts=credits_readouts, memory=memory)
        self.feedback = Feedback(step, network, rule.feedback_seed)
        if memory:
            self.notes.append(self.known.memory_note(within_segment=segment is not None))

    @property
    def step(self) -> DetachedStep:
        """The detached time step."""
        return self.products.step

    @property
    def perturbed(self) -> Iterable[int]:
        """The relations by whose outputs the detached steps are differentiated."""
        return self.step.chosen if self.trace is None else self.trace.relations

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
        return over_tiles(sequences, tile, segment, zeros_like_parameters(self.known.trained))

    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        for state in self.own.values():
            state.value = jnp.zeros_like(state.value)

    def _begin(self, batch_size: int) -> Pull:
        """Restart, and return the function that backpropagates cotangents of initial states to their parameters."""
        return self.known.starts.begin(lambda: self.restart(batch_size), {**self.known.credited, **self.known.memory})

    # ----------------------------------------------------------------------------------------------- a segment

    def _gradients(self, stretches: list[Stretch], begin: Pull = lambda entry: {}) -> tuple[dict[str, Any], Metrics]:
        """Gradients of ``sum(w * loss)`` and metrics of one segment, whose States and trace advance to its end."""
        parts = self._forward(stretches)
        by_relation = self.relation_weights()
        outputs, factors = self._factors(parts)
        carry, metrics, kept = self._last(by_relation.values), None, []
        for part, factor in zip(parts[::-1], factors[::-1], strict=True):
            carry, found, more = part.backward(factor, carry, by_relation.values)
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
            for i, more in self.trace.contract(state, is_filtered, by_relation.values).items():
                totals[i] = add_to(totals[i], more)
            self.trace.advance(Kept.joined(kept), carry.ends if outputs is None else [outputs], is_filtered)
        return by_relation.gradients(grads, totals), {} if metrics is None else metrics

    def relation_weights(self) -> RelationWeights:
        """The weights of each relation."""
        return RelationWeights(self.step, self.objective.model, self.known.trained)

    def _acts(self, i: int, name: str) -> bool:
        """Whether relation ``i`` acts on the group of a hidden state."""
        return self.step.hidden_of[name] in self.step.relations[i].groups

    def _last(self, weights: list[list[Any]]) -> Carry:
        """The carry after the last time step."""
        zeros = {name: jnp.zeros_like(leaf(state.value)) for name, state in self.known.credited.items()}
        recursion: Any = zeros, zeros, zeros
        if self.rule.decay is not None:
            acted = {i: next(name for name in zeros if self._acts(i, name)) for i in self.step.chosen}
            recursion = {i: zeros[name] for i, name in acted.items()}, zeros
        memory = jax.tree.map(jnp.zeros_like, self.known.differentiable_memory())
        every = self.step.chosen if self.trace is None else {*self.step.chosen, *self.trace.relations}
        totals = {i: wide_zeros(weights[i]) for i in sorted(every)}
        ends = [] if self.trace is None else self.trace.ends()
        return Carry(recursion, ends, memory, zeros_like_parameters(self.known.trained), totals)

    def _factors(self, parts: list[TimeSteps]) -> tuple[Any, list[Any]]:
        """The output side of a factored trace at the end of the segment and at every time step, forward in time."""
        if self.rule.decay is None:
            return None, [None] * len(parts)
        if isinstance(self.trace, FactoredTrace):
            value: Any = {n: {i: state.value for i, state in by.items()} for n, by in self.trace.outputs.items()}
        else:
            zeros = {name: jnp.zeros_like(leaf(state.value)) for name, state in self.known.credited.items()}
            value = {n: {i: zero for i in self.step.chosen if self._acts(i, n)} for n, zero in zeros.items()}
        every = []
        for part in parts:
            value, found = part.factors(value)
            every.append(found)
        return value, every

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
            has_signals = is_scored or bool(self.known.memory and scored.any())
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
            (hidden, memory, others), box = self.known.values(), []
            self._reset(mask)
            learn(lambda u: self.products.forward(u, outside, box), slices)
            return hidden, memory, others, box[0]

        return brainstate.transform.for_loop(step, sequences, masks, outside)

    # -------------------------------------------------------------------------------------------------- report

    def report(self, phases: Phases) -> list[ParameterReport]:
        return describe(
            self.known.trained, Flow.of(self, phases), self.traces(phases.reset is not None), window=self.window,
            single=self.single, reach=self.reach,
        )  # fmt: skip

    def traces(self, resets: bool) -> Traces:
        whole = WHOLE
        if self.carried or self.update_schedule.update_every != "sequence":
            whole += " with stateful=False and update_every='sequence'"
        return Traces.of(
            self.step.report, self.step.parameter_groups(), self.step.groups, self.trace_sizes(),
            memory=frozenset(self.known.memory),
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
