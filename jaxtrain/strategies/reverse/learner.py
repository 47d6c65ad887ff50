"""D-RTRL's gradient made in reverse: what a trace would have carried forward, found by going back."""

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
from ...core.module import Objective, Phases, total_weight
from ...core.state import add_to, differentiable, long_term_states, parameters
from ..base import Learner, Network, ParameterReport, Update, score, scored, split_reset, trained, zeros_like_parameters
from ..flow import Flow, initial_values
from ..parameter_report import WHOLE, Traces, describe
from ..specs.rule import ONE_STEP, Reach
from ..update_schedule import SEQUENCE, UpdateSchedule, over_tiles
from .chain import Chain
from .detached_step import DENSE, EMBEDDING, Cut
from .influence import Influence

Pull = Callable[[dict[str, Any]], dict[str, Any]]
"""From cotangents of initial states, by name, to gradients of parameters."""


class ReverseLearner(Learner):
    """D-RTRL without a trace a time step.

    A piece of a sequence goes forward in *cut* steps (``cut.py``), whose reverse gives every traced weight what its
    trace would have. The windows that begin at scored time steps are differentiated whole, side by side, and send
    their cotangents to the hidden states at their entries. From piece to piece ``Influence`` carries the trace; one
    piece that is the whole sequence needs none.
    """

    def __init__(self, objective: Objective, network: Network, cut: Cut, *, window: int, single: bool,
                 cadence: UpdateSchedule = SEQUENCE, segment: int | None = None, reach: Reach = ONE_STEP,
                 memory: bool = False):  # fmt: skip
        """``segment``: time steps a piece; None takes the whole sequence as one. ``memory``: windows come one after
        another, and credit goes back from each to the one before through every state that is not of a traced group."""
        super().__init__(objective, network)
        self.cut, self.window, self.single, self.reach = cut, window, single, reach
        self.cadence, self.carried, self.segment = cadence, cadence.carried, segment
        self._params = trained(objective)
        made = frozenset().union(*initial_values(network, cut.batch_size).values())
        self._starts = {name: state for name, state in self._params.items() if name in made}
        self.influence = None if segment is None else Influence(cut)
        self.own = {} if self.influence is None else self.influence.states
        chosen = [i for i, r in enumerate(cut.relations) if r.trained]
        # Weights of the nudged relations get their gradient from all time steps at once, the live ones' is added up by
        # reverse mode time step by time step, and those of readout memory have theirs from the windows.
        products = (*DENSE, *EMBEDDING)
        self._direct = [i for i in chosen if cut.relations[i].direct]
        past = [i for i in chosen if i not in self._direct]
        self._perturbed = (
            chosen if self.influence is not None else [i for i in past if cut.relations[i].name in products]
        )
        self._live = [i for i in past if i not in self._perturbed]
        self._hidden = {n: network.hidden[n] for names in cut.groups.values() for n in names}
        self._traced = {n: s for n, s in self._hidden.items() if n in cut.traced}
        rest = {n: s for n, s in network.hidden.items() if n not in self._traced}
        self._memory = rest if memory else {}
        others = [] if memory else rest.values()
        self._others = [*others, *long_term_states(objective.model).values(), brainstate.random.DEFAULT]
        if memory:
            self.notes.append(self._say_memory())

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        with warnings.catch_warnings():
            # Mapped over windows, braintrace's operations warn that nothing can be compiled from them any more.
            warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
            return self._learn(phases, update)

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        warm = (phases.warmup, split_reset(phases)[0])
        if self.segment is None:
            begin = self._begin(phases.sizes[2])
            grads, metrics = self._piece(warm, scored(phases), go_on=False, begin=begin)
            return update(grads, total_weight(phases), metrics)
        if not self.carried:
            self.restart(phases.sizes[2])
        if phases.warmup is not None:
            over_tiles(warm, self.segment, lambda tile: (self._go_on(tile), {}), {})
        return self.cadence.drive(phases, self._gradients, update)

    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        for state in self.own.values():
            state.value = jnp.zeros_like(state.value)

    def _begin(self, batch_size: int) -> Pull:
        """Restart; gives the way from cotangents of initial states to gradients of the parameters that make them."""
        if not self._starts:
            self.restart(batch_size)
            return lambda entry: {}
        states, call = pure(lambda: self.restart(batch_size))
        before, place = [state.value for state in states], {id(state): i for i, state in enumerate(states)}
        made = {n: s for n, s in (self._hidden | self._memory).items() if id(s) in place and differentiable(s.value)}

        def restart(starts: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
            now = list(before)
            for name, value in starts.items():
                now[place[id(self._starts[name])]] = value
            new, _ = call(now)
            return {name: new[place[id(state)]] for name, state in made.items()}, new

        values = {name: state.value for name, state in self._starts.items()}
        initial, pull, new = jax.vjp(restart, values, has_aux=True)
        for state, value in zip(states, new, strict=True):
            state.value = value
        zeros = jax.tree.map(jnp.zeros_like, initial)
        return lambda entry: pull({name: entry.get(name, zero) for name, zero in zeros.items()})[0]

    @contextmanager
    def starting(self, starts: dict[str, Any]) -> Iterator[None]:
        """Other values of the parameters that make initial states."""
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
        piece = lambda tile: self._piece((None, None), tile, go_on=True)  # noqa: E731
        return over_tiles(sequences, tile, piece, zeros_like_parameters(self._params))

    # ------------------------------------------------------------------------------------------------- a piece

    def _go_on(self, warm: tuple[Any, Any]) -> dict[str, Any]:
        """Hidden states and the trace to the end of some time steps without a loss."""
        chain = Chain(self, warm, None, 0, self._weights()[0])
        self._advance(chain)
        return {}

    def _piece(self, warm: tuple[Any, Any], sequences: Any, *, go_on: bool,
               begin: Pull = lambda entry: {}) -> tuple[dict[str, Any], Metrics]:  # fmt: skip
        """Gradients of ``sum(w * loss)`` and metrics of scored time steps after a warm-up (which may be None).

        ``go_on``: bring States and the trace to the end. ``begin``: gradients from cotangents of the initial states.
        """
        weights, to_parameters = self._weights()
        time = jax.tree.leaves(sequences)[0].shape[0]
        last = (time - 1) // self.window * self.window
        # Nothing needs the steps of the last window but what goes on, and the single-step rule's own step.
        through = time if go_on or self.single or long_term_states(self.objective.model) else last
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
        self._advance(chain, trace=go_on)
        for name, leaves in to_parameters(found)[0].items():
            if name in grads:
                traced = jax.tree.unflatten(jax.tree.structure(grads[name]), leaves)
                grads[name] = jax.tree.map(jnp.add, grads[name], traced)
        return jax.tree.map(lambda t, g: g.astype(t.dtype), zeros_like_parameters(self._params), grads), metrics

    def _weights(self):
        """What each relation takes as its weights, and the way back to the parameters."""
        values = {name: jax.tree.leaves(state.value) for name, state in parameters(self.objective.model).items()}
        return jax.vjp(self.cut.weights, values)

    def _advance(self, chain: Chain, trace: bool = True) -> None:
        if self.influence is not None and trace:
            self.influence.advance(chain.inputs, *chain.factors(self.influence))
        chain.finish()

    def _from_all_steps(self, i: int, x: Any, delta: Any, weights: list[Any]) -> list[Any]:
        relation = self.cut.relations[i]
        if relation.x_place is None:
            total = delta.reshape(-1, *relation.y_var.aval.shape).sum(0)
            return jax.vjp(relation.alone, weights)[1](total)[0]
        merge = lambda leaf, kept: leaf.reshape(-1, *leaf.shape[leaf.ndim - kept :])  # noqa: E731
        units, batched = len(relation.y_var.aval.shape), relation.batched
        x = merge(x, len(relation.x_var.aval.shape) - batched)
        return jax.vjp(lambda w: relation.product(x, w), weights)[1](merge(delta, units - batched))[0]

    def _windows(self, chain: Chain, warm: Any, sequences: Any) -> tuple[dict[str, Any], Any, Metrics]:
        """Gradients of the parameters, cotangents of the hidden states at the windows' entries (and, for the
        single-step rule, of the new hidden states), and metrics.

        Each window is by itself, but for what readout memory hands from one to the next.
        """
        time = jax.tree.leaves(sequences)[0].shape[0]
        count, rest = divmod(time, self.window)
        lead, cut = chain.lead, time - rest
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
                tiled = lambda leaf: leaf[:cut].reshape(-1, self.window, *leaf.shape[1:])  # noqa: E731
                parts.append(part(score_window, slice(lead, lead + count), jax.tree.map(tiled, sequences)))
            if rest:
                last = jax.tree.map(lambda leaf: leaf[cut:][None], sequences)
                parts.append(part(score_window, slice(lead + count, None), last))
            found = [(losses.sum(), sum_over_time(metrics)) for losses, metrics in parts]
            return jax.tree.map(lambda *leaves: sum(leaves), *found)

        grads, metrics = jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(params, chain.hidden, perturbations, begin)
        return grads[0], grads[1:], metrics

    def _forward(self, perturbation: Any) -> Any:
        return (lambda u: self.cut.alone(u, perturbation)) if self.single else self.network

    def _call(self, run: Any, params: Any, tiles: Any, perturbations: Any) -> Any:
        """``call(memory, hidden, others, tile, nudge) -> (memory, result)``: ``run`` from the States at its entry."""
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

    def _say_memory(self) -> str:
        names = [n for n, s in self._memory.items() if differentiable(s.value)]
        if not names:
            return "readout_memory: the model has none, so nothing else is trained than without it"
        across = " within a segment" if self.segment else ""
        return f"readout_memory: credit goes{across} through {', '.join(names)}"

    # -------------------------------------------------------------------------------------------------- report

    def report(self, phases: Phases) -> list[ParameterReport]:
        return describe(
            self._params, Flow.of(self, phases), self.traces(phases.reset is not None), window=self.window,
            single=self.single, reach=self.reach,
        )  # fmt: skip

    def traces(self, resets: bool) -> Traces:
        groups: dict[str, set[int]] = {}
        sizes: dict[str, int] = {}
        for i, relation in enumerate(self.cut.relations):
            kept = self.own.get(f"influence{i}")
            for name in relation.paths:
                groups.setdefault(name, set()).update(relation.groups)
                sizes[name] = sizes.get(name, 0) + (0 if kept is None else kept.value.nbytes)
        whole = WHOLE
        if self.carried or self.cadence.update_every != "sequence":
            whole += " with stateful=False and update_every='sequence'"
        return Traces.of(
            self.cut.report, groups, self.cut.groups, sizes, memory=frozenset(self._memory),
            cut=f"ends where a segment begins. {whole} gives it all" if self.segment else "",
            start=self.segment is None, starting=f"Use {whole}", again=resets,
        )  # fmt: skip

    def resolved(self) -> dict[str, Any]:
        return {**super().resolved(), "engine": "reverse", "segment": self.segment or "sequence"}
