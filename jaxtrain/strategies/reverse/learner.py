"""The learner that computes D-RTRL's gradient by reverse mode, instead of with a trace that moves forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ...core.functional import pure
from ...core.metrics import Metrics, sum_over_time
from ...core.module import Phases
from ...core.objective import Objective, total_weight
from ...core.state import add_to, differentiable, long_term_states, parameters
from ..base import Learner, Network, ParameterReport, Update, score, scored, split_reset, trained, zeros_like_parameters
from ..flow import Flow, initial_values
from ..parameter_report import WHOLE, Traces, describe
from ..specs.rule import ONE_STEP, Reach
from ..update_schedule import SEQUENCE, UpdateSchedule, over_tiles
from .chain import Chain
from .detached_step import DENSE, EMBEDDING, DetachedStep
from .influence import Influence

Pull = Callable[[dict[str, Any]], dict[str, Any]]
"""A function from cotangents of initial states, by name, to gradients of parameters."""


class ReverseLearner(Learner):
    """D-RTRL without a trace update at every time step.

    A segment of a sequence runs forward in detached steps; reverse mode through them gives every traced weight the
    gradient that its trace would have given. The windows that start at scored time steps are differentiated in parallel
    and send their cotangents to the hidden states at their starts. Between segments, ``Influence`` holds the trace.
    """

    def __init__(self, objective: Objective, network: Network, detached: DetachedStep, *, window: int, single: bool,
                 update_schedule: UpdateSchedule = SEQUENCE, segment: int | None = None, reach: Reach = ONE_STEP,
                 memory: bool = False):  # fmt: skip
        """``segment``: time steps per segment; None makes the sequence one segment. ``memory``: run the windows
        one after another, and pass credit from each to the previous one through states outside of traced groups."""
        super().__init__(objective, network)
        self.detached, self.window, self.single, self.reach = detached, window, single, reach
        self.update_schedule, self.carried, self.segment = update_schedule, update_schedule.stateful, segment
        self._params = trained(objective)
        starting = frozenset().union(*initial_values(network, detached.batch_size).values())
        self._starts = {name: state for name, state in self._params.items() if name in starting}
        self.influence = None if segment is None else Influence(detached)
        self.own = {} if self.influence is None else self.influence.states
        chosen = [i for i, r in enumerate(detached.relations) if r.trained]
        # Weights of perturbed relations receive their gradient from all time steps at once. Reverse mode sums the
        # gradient of live weights over time steps. Weights of readout memory receive theirs from the windows.
        products = (*DENSE, *EMBEDDING)
        self._direct = [i for i in chosen if detached.relations[i].direct]
        past = [i for i in chosen if i not in self._direct]
        self._perturbed = (
            chosen if self.influence is not None else [i for i in past if detached.relations[i].name in products]
        )
        self._live = [i for i in past if i not in self._perturbed]
        self._hidden = {n: network.hidden[n] for names in detached.groups.values() for n in names}
        self._traced = {n: s for n, s in self._hidden.items() if n in detached.traced}
        rest = {n: s for n, s in network.hidden.items() if n not in self._traced}
        self._memory = rest if memory else {}
        others = [] if memory else rest.values()
        self._others = [*others, *long_term_states(objective.model).values(), brainstate.random.DEFAULT]
        if memory:
            self.notes.append(self._memory_note())

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        with warnings.catch_warnings():
            # braintrace's operations warn that they can no longer be compiled when they are mapped over windows.
            warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
            return self._learn(phases, update)

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        warm = (phases.warmup, split_reset(phases)[0])
        if self.segment is None:
            begin = self._begin(phases.sizes[2])
            grads, metrics = self._segment_gradient(warm, scored(phases), advance=False, begin=begin)
            return update(grads, total_weight(phases), metrics)
        if not self.carried:
            self.restart(phases.sizes[2])
        if phases.warmup is not None:
            over_tiles(warm, self.segment, lambda tile: (self._evolve(tile), {}), {})
        return self.update_schedule.drive(phases, self._gradients, update)

    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        for state in self.own.values():
            state.value = jnp.zeros_like(state.value)

    def _begin(self, batch_size: int) -> Pull:
        """Restart, and return the function that backpropagates cotangents of initial states to their parameters."""
        if not self._starts:
            self.restart(batch_size)
            return lambda entry: {}
        states, call = pure(lambda: self.restart(batch_size))
        before, place = [state.value for state in states], {id(state): i for i, state in enumerate(states)}
        started = {n: s for n, s in (self._hidden | self._memory).items() if id(s) in place and differentiable(s.value)}

        def restart(starts: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
            now = list(before)
            for name, value in starts.items():
                now[place[id(self._starts[name])]] = value
            new, _ = call(now)
            return {name: new[place[id(state)]] for name, state in started.items()}, new

        values = {name: state.value for name, state in self._starts.items()}
        initial, pull, new = jax.vjp(restart, values, has_aux=True)
        for state, value in zip(states, new, strict=True):
            state.value = value
        zeros = jax.tree.map(jnp.zeros_like, initial)
        return lambda entry: pull({name: entry.get(name, zero) for name, zero in zeros.items()})[0]

    @contextmanager
    def starting(self, starts: dict[str, Any]) -> Iterator[None]:
        """Temporarily replace the values of the parameters of initial states."""
        before = {name: self._starts[name].value for name in starts}
        for name, value in starts.items():
            self._starts[name].value = value
        try:
            yield
        finally:
            for name, value in before.items():
                self._starts[name].value = value

    def _gradients(self, sequences: Any) -> tuple[dict[str, Any], Metrics]:
        assert self.segment is not None
        tile = max(self.segment - self.segment % self.window, self.window)
        segment = lambda tile: self._segment_gradient((None, None), tile, advance=True)  # noqa: E731
        return over_tiles(sequences, tile, segment, zeros_like_parameters(self._params))

    # ----------------------------------------------------------------------------------------------- a segment

    def _evolve(self, warm: tuple[Any, Any]) -> dict[str, Any]:
        """Advance the hidden states and the trace over some time steps without a loss."""
        chain = Chain(self, warm, None, 0, self._weights()[0])
        self._advance(chain)
        return {}

    def _segment_gradient(self, warm: tuple[Any, Any], sequences: Any, *, advance: bool,
                          begin: Pull = lambda entry: {}) -> tuple[dict[str, Any], Metrics]:  # fmt: skip
        """Gradients of ``sum(w * loss)`` and metrics of scored time steps after a warm-up (inputs and masks, or None).
        ``advance``: advance the States and the trace to the end. ``begin``: backpropagates to the initial states."""
        weights, to_parameters = self._weights()
        time = jax.tree.leaves(sequences)[0].shape[0]
        last = (time - 1) // self.window * self.window
        # The steps of the last window are only needed to advance, and by the single-step rule.
        through = time if advance or self.single or long_term_states(self.objective.model) else last
        chain = Chain(self, warm, sequences, through, weights)
        grads, (entries, news, memory), metrics = self._windows(chain, warm, sequences)
        deltas, live, entry, again = chain.back(entries, news)
        entry |= memory
        for more in (again, begin(entry)):
            grads |= {name: add_to(grads[name], grad) for name, grad in more.items()}
        found = [jax.tree.map(jnp.zeros_like, weight) for weight in weights]
        for i in self._perturbed:
            if chain.steps and i not in self._direct:
                found[i] = self._from_all_steps(i, chain.inputs.get(i), deltas[i], weights[i])
        for i in self._live:
            found[i] = live[i]
        if self.influence is not None:
            for i, more in self.influence.contract(entry, weights).items():
                found[i] = jax.tree.map(jnp.add, found[i], more)
        self._advance(chain, trace=advance)
        for name, leaves in to_parameters(found)[0].items():
            if name in grads:
                traced = jax.tree.unflatten(jax.tree.structure(grads[name]), leaves)
                grads[name] = jax.tree.map(jnp.add, grads[name], traced)
        return jax.tree.map(lambda t, g: g.astype(t.dtype), zeros_like_parameters(self._params), grads), metrics

    def _weights(self):
        """The weights of each relation, and the function that backpropagates their cotangents to the parameters."""
        values = {name: jax.tree.leaves(state.value) for name, state in parameters(self.objective.model).items()}
        return jax.vjp(self.detached.weights, values)

    def _advance(self, chain: Chain, trace: bool = True) -> None:
        if self.influence is not None and trace:
            self.influence.advance(chain.inputs, *chain.factors(self.influence))
        chain.finish()

    def _from_all_steps(self, i: int, x: Any, delta: Any, weights: list[Any]) -> list[Any]:
        relation = self.detached.relations[i]
        if relation.x_place is None:
            total = delta.reshape(-1, *relation.y_var.aval.shape).sum(0)
            return jax.vjp(relation.alone, weights)[1](total)[0]
        merge = lambda leaf, kept: leaf.reshape(-1, *leaf.shape[leaf.ndim - kept :])  # noqa: E731
        units, batched = len(relation.y_var.aval.shape), relation.batched
        x = merge(x, len(relation.x_var.aval.shape) - batched)
        return jax.vjp(lambda w: relation.product(x, w), weights)[1](merge(delta, units - batched))[0]

    def _windows(self, chain: Chain, warm: Any, sequences: Any) -> tuple[dict[str, Any], Any, Metrics]:
        """Differentiate the windows. They are independent, except for readout memory.

        Returns:
            Gradients of the parameters; cotangents of the hidden states at the starts of the windows, of the new hidden
            states (for the single-step rule), and of the memory; metrics.
        """
        time = jax.tree.leaves(sequences)[0].shape[0]
        count, rest = divmod(time, self.window)
        lead, whole = chain.lead, time - rest
        params = {name: state.value for name, state in self._params.items()}
        begin = {name: state.value for name, state in self._memory.items() if differentiable(state.value)}
        leaves = {name: jax.tree.leaves(state.value)[0] for name, state in self._traced.items() if self.single}
        perturbations = {name: jnp.zeros((lead + time, *leaf.shape), leaf.dtype) for name, leaf in leaves.items()}

        def score_window(tile, perturbation):
            return score(self.objective, self._forward(perturbation), tile, self._reset)

        def warm_step(tile, perturbation):
            self._reset(tile[1])
            self.objective.warmup(self._forward(perturbation), tile[0])

        def total(params, hidden, perturbations, begin):
            memory = {name: state.value for name, state in self._memory.items()} | begin

            def part(run: Any, which: slice, tiles: Any) -> Any:
                nonlocal memory
                at = jax.tree.map(lambda leaf: leaf[which], (hidden, chain.others))
                given = jax.tree.map(lambda leaf: leaf[which], perturbations)
                call = self._call(run, params, tiles, given)
                if not self._memory:
                    return jax.vmap(lambda *xs: call({}, *xs)[1])(*at, tiles, given)
                memory, found = jax.lax.scan(lambda memory, xs: call(memory, *xs), memory, (*at, tiles, given))
                return found

            if lead:
                part(warm_step, slice(lead), warm)
            parts = []
            if count:
                tiled = lambda leaf: leaf[:whole].reshape(-1, self.window, *leaf.shape[1:])  # noqa: E731
                parts.append(part(score_window, slice(lead, lead + count), jax.tree.map(tiled, sequences)))
            if rest:
                last = jax.tree.map(lambda leaf: leaf[whole:][None], sequences)
                parts.append(part(score_window, slice(lead + count, None), last))
            found = [(losses.sum(), sum_over_time(metrics)) for losses, metrics in parts]
            return jax.tree.map(lambda *leaves: sum(leaves), *found)

        grads, metrics = jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(params, chain.hidden, perturbations, begin)
        return grads[0], grads[1:], metrics

    def _forward(self, perturbation: Any) -> Any:
        return (lambda u: self.detached.alone(u, perturbation)) if self.single else self.network

    def _call(self, run: Any, params: Any, tiles: Any, perturbations: Any) -> Any:
        """``call(memory, hidden, others, tile, perturbation) -> (memory, result)`` runs ``run`` from given States."""
        first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
        states, pure_run = pure(run, first(tiles), first(perturbations))
        place = {id(state): i for i, state in enumerate(states)}

        def call(memory, hidden, others, tile, perturbation):
            given = {id(self._params[name]): value for name, value in params.items()}
            given |= {id(self._traced[name]): value for name, value in hidden.items()}
            given |= {id(state): value for state, value in zip(self._others, others, strict=True)}
            given |= {id(self._memory[name]): value for name, value in memory.items()}
            new, result = pure_run([given.get(id(state), state.value) for state in states], tile, perturbation)
            after = {n: new[place[id(s)]] if id(s) in place else memory[n] for n, s in self._memory.items()}
            return after, result

        return call

    def _memory_note(self) -> str:
        names = [n for n, s in self._memory.items() if differentiable(s.value)]
        if not names:
            return "readout_memory: the model has none, so the option has no effect"
        across = " within a segment" if self.segment else ""
        return f"readout_memory: credit passes{across} through {', '.join(names)}"

    # -------------------------------------------------------------------------------------------------- report

    def report(self, phases: Phases) -> list[ParameterReport]:
        return describe(
            self._params, Flow.of(self, phases), self.traces(phases.reset is not None), window=self.window,
            single=self.single, reach=self.reach,
        )  # fmt: skip

    def traces(self, resets: bool) -> Traces:
        sizes: dict[str, int] = {}
        for i, relation in enumerate(self.detached.relations):
            kept = self.own.get(f"influence{i}")
            for name in relation.paths:
                sizes[name] = sizes.get(name, 0) + (0 if kept is None else kept.value.nbytes)
        whole = WHOLE
        if self.carried or self.update_schedule.update_every != "sequence":
            whole += " with stateful=False and update_every='sequence'"
        return Traces.of(
            self.detached.report, self.detached.parameter_groups(), self.detached.groups, sizes,
            memory=frozenset(self._memory),
            memory_end=f"ends at the start of a segment. {whole} gives it all" if self.segment else "",
            start=self.segment is None, starting=f"Use {whole}", again=resets,
        )  # fmt: skip

    def resolved(self) -> dict[str, Any]:
        return {**super().resolved(), "engine": "reverse", "segment": self.segment or "sequence"}
