"""D-RTRL's gradient made in reverse: what a trace would have carried forward, found by going back."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..metrics import Metrics, sum_over_time
from ..module import Objective, Phases, total_weight
from ..state import State, lasting, parameters, parameters_behind, pure
from .base import Learner, Network, Row, Update, score, scored, split_reset, trained, zeros_like_parameters
from .cadence import SEQUENCE, Cadence, over_tiles
from .cut import DENSE, EMBEDDING, Cut
from .influence import Influence
from .rows import ONE_STEP, Reach, describe


class ReverseLearner(Learner):
    """D-RTRL without a trace a time step.

    A piece of a sequence goes forward in *cut* steps (``cut.py``), whose reverse gives every traced weight what its
    trace would have. The windows that begin at scored time steps are differentiated whole, side by side, and send
    their cotangents to the hidden states at their entries. From piece to piece ``Influence`` carries the trace; one
    piece that is the whole sequence needs none.
    """

    def __init__(self, objective: Objective, network: Network, cut: Cut, x: Any, *, window: int, single: bool,
                 cadence: Cadence = SEQUENCE, segment: int | None = None, reach: Reach = ONE_STEP,
                 memory: bool = False):  # fmt: skip
        """``segment``: time steps a piece; None takes the whole sequence as one. ``memory``: windows come one after
        another, and credit goes back from each to the one before through every state that is not of a traced group."""
        super().__init__(objective, network)
        self.cut, self.window, self.single, self.reach = cut, window, single, reach
        self.cadence, self.carried, self.segment = cadence, cadence.carried, segment
        self._params = trained(objective)
        self._acting = parameters_behind(network, objective.model, x, hidden=True)
        self.influence = None if segment is None else Influence(cut)
        self.own = {} if self.influence is None else self.influence.states
        chosen = [i for i, r in enumerate(cut.relations) if r.trained]
        # Weights of the nudged relations get their gradient from all time steps at once, the live ones' is added up by
        # reverse mode time step by time step, and those of readout memory have theirs from the windows.
        products = (*DENSE, *EMBEDDING)
        self._direct = [i for i in chosen if cut.relations[i].direct]
        past = [i for i in chosen if i not in self._direct]
        self._nudged = chosen if self.influence is not None else [i for i in past if cut.relations[i].name in products]
        self._live = [i for i in past if i not in self._nudged]
        self._hidden = {n: network.hidden[n] for names in cut.groups.values() for n in names}
        self._traced = {n: s for n, s in self._hidden.items() if n in cut.traced}
        rest = {n: s for n, s in network.hidden.items() if n not in self._traced}
        self._memory = rest if memory else {}
        others = [] if memory else rest.values()
        self._others = [*others, *lasting(objective.model).values(), brainstate.random.DEFAULT]
        if memory:
            self.notes.append(self._say_memory())

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        with warnings.catch_warnings():
            # Mapped over windows, braintrace's operations warn that nothing can be compiled from them any more.
            warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
            return self._learn(phases, update)

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        if not self.carried:
            self.restart(phases.sizes[2])
        warm = (phases.warmup, split_reset(phases)[0])
        if self.segment is None:
            grads, metrics = self._piece(warm, scored(phases), go_on=False)
            return update(grads, total_weight(phases), metrics)
        if phases.warmup is not None:
            over_tiles(warm, self.segment, lambda tile: (self._go_on(tile), {}), {})
        return self.cadence.drive(phases, self._gradients, update)

    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        for state in self.own.values():
            state.value = jnp.zeros_like(state.value)

    def _gradients(self, sequences: Any) -> tuple[dict[str, Any], Metrics]:
        assert self.segment is not None
        tile = max(self.segment - self.segment % self.window, self.window)
        piece = lambda tile: self._piece((None, None), tile, go_on=True)  # noqa: E731
        return over_tiles(sequences, tile, piece, zeros_like_parameters(self._params))

    # ------------------------------------------------------------------------------------------------- a piece

    def _go_on(self, warm: tuple[Any, Any]) -> dict[str, Any]:
        """Hidden states and the trace to the end of some time steps without a loss."""
        chain = _Chain(self, warm, None, 0, self._weights()[0])
        self._advance(chain)
        return {}

    def _piece(self, warm: tuple[Any, Any], sequences: Any, *, go_on: bool) -> tuple[dict[str, Any], Metrics]:
        """Gradients of ``sum(w * loss)`` and metrics of scored time steps after a warm-up (which may be None).

        ``go_on``: bring States and the trace to the end.
        """
        weights, to_parameters = self._weights()
        time = jax.tree.leaves(sequences)[0].shape[0]
        last = (time - 1) // self.window * self.window
        # Nothing needs the steps of the last window but what goes on, and the single-step rule's own step.
        through = time if go_on or self.single or lasting(self.objective.model) else last
        chain = _Chain(self, warm, sequences, through, weights)
        grads, (entries, news, begin), metrics = self._windows(chain, warm, sequences)
        deltas, live, entry = chain.back(entries, news)
        entry |= begin
        found = [jax.tree.map(jnp.zeros_like, weight) for weight in weights]
        for i in self._nudged:
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

    def _advance(self, chain: _Chain, trace: bool = True) -> None:
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

    def _windows(
        self, chain: _Chain, warm: Any, sequences: Any
    ) -> tuple[dict[str, Any], tuple[Any, Any, Any], Metrics]:
        """Gradients of the parameters, cotangents of the hidden states at the windows' entries (and, for the
        single-step rule, of the new hidden states), and metrics.

        Each window is by itself, but for what readout memory hands from one to the next.
        """
        time = jax.tree.leaves(sequences)[0].shape[0]
        count, rest = divmod(time, self.window)
        lead, cut = chain.lead, time - rest
        params = {name: state.value for name, state in self._params.items()}
        begin = {name: state.value for name, state in self._memory.items() if name in self._hidden}
        leaves = {name: jax.tree.leaves(state.value)[0] for name, state in self._traced.items() if self.single}
        nudges = {name: jnp.zeros((lead + time, *leaf.shape), leaf.dtype) for name, leaf in leaves.items()}

        def score_window(tile, nudge):
            return score(self.objective, self._forward(nudge), tile, self._reset)

        def warm_step(tile, nudge):
            self._reset(tile[1])
            self.objective.warmup(self._forward(nudge), tile[0])

        def total(params, hidden, nudges, begin):
            memory = {name: state.value for name, state in self._memory.items()} | begin

            def part(run: Any, which: slice, tiles: Any) -> Any:
                nonlocal memory
                at = jax.tree.map(lambda leaf: leaf[which], (hidden, chain.others))
                given = jax.tree.map(lambda leaf: leaf[which], nudges)
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

        grads, metrics = jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(params, chain.hidden, nudges, begin)
        return grads[0], grads[1:], metrics

    def _forward(self, nudge: Any) -> Any:
        return (lambda u: self.cut.alone(u, nudge)) if self.single else self.network

    def _call(self, run: Any, params: Any, tiles: Any, nudges: Any) -> Any:
        """``call(memory, hidden, others, tile, nudge) -> (memory, result)``: ``run`` from the States at its entry."""
        first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
        states, pure_run = pure(run, first(tiles), first(nudges))
        place = {id(state): i for i, state in enumerate(states)}

        def call(memory, hidden, others, tile, nudge):
            given = {id(self._params[name]): value for name, value in params.items()}
            given |= {id(self._traced[name]): value for name, value in hidden.items()}
            given |= {id(state): value for state, value in zip(self._others, others, strict=True)}
            given |= {id(self._memory[name]): value for name, value in memory.items()}
            new, result = pure_run([given.get(id(state), state.value) for state in states], tile, nudge)
            after = {n: new[place[id(s)]] if id(s) in place else memory[n] for n, s in self._memory.items()}
            return after, result

        return call

    def _say_memory(self) -> str:
        names = [n for n, s in self._memory.items() if jnp.issubdtype(jax.tree.leaves(s.value)[0].dtype, jnp.inexact)]
        if not names:
            return "readout_memory: the model has none, so nothing else is trained than without it"
        across = " within a segment" if self.segment else ""
        return f"readout_memory: credit goes{across} through {', '.join(names)}"

    # -------------------------------------------------------------------------------------------------- report

    def report(self) -> list[Row]:
        sizes: dict[str, int] = {}
        for i, relation in enumerate(self.cut.relations):
            for name in relation.paths:
                state = self.own.get(f"influence{i}")
                sizes[name] = sizes.get(name, 0) + (0 if state is None else state.value.nbytes)
        return describe(self._params, self.cut.report, sizes, self._acting, single=self.single, reach=self.reach)

    def resolved(self) -> dict[str, Any]:
        return {**super().resolved(), "engine": "reverse", "segment": self.segment or "sequence"}


class _Chain:
    """Cut steps over a warm-up and scored time steps, run once, with their reverse kept.

    ``hidden``, ``others``: what the windows' entries hold, ``(lead + windows, ...)``; ``lead``: steps of the warm-up
    that are a window each, all of them where there is readout memory. ``inputs``: of the nudged relations,
    ``(steps, ...)``.
    """

    def __init__(self, learner: ReverseLearner, warm: tuple[Any, Any], sequences: Any, through: int, weights: list):
        self.learner, cut = learner, learner.cut
        ahead = jax.tree.map(lambda leaf: leaf[:through], sequences)
        warm_steps = 0 if warm[0] is None else jax.tree.leaves(warm[0])[0].shape[0]
        self.steps = warm_steps + through
        self.lead = warm_steps if learner._memory and sequences is not None else 0
        time = 0 if sequences is None else jax.tree.leaves(sequences)[0].shape[0]
        starts = range(0, time, learner.window)
        within = len([start for start in starts if start < through])
        self._ends = len(starts) > within  # the last window begins where the chain ends
        lanes = (cut.lanes,) if cut.mapped else ()
        nudges = {
            i: jnp.zeros((self.steps, *lanes, *cut.relations[i].y_var.aval.shape), cut.relations[i].y_var.aval.dtype)
            for i in learner._nudged
        }
        live = {i: weights[i] for i in learner._live}
        kept = [*learner._traced.values(), *learner._others]

        def run(warm, ahead, nudges, live):
            def forward(u, nudge, seen):
                out, found = cut.step(u, live, nudge)
                seen.append(found)
                return out

            def begin(mask) -> list[Any]:
                entry = [state.value for state in kept]
                learner._reset(mask)
                return entry

            def news() -> list[Any]:
                return [state.value for state in learner._traced.values()] if learner.single else []

            def warm_step(x, mask, nudge):
                entry = begin(mask)
                seen: list[Any] = []
                learner.objective.warmup(lambda u: forward(u, nudge, seen), x)
                if len(seen) != 1:
                    raise ValueError(
                        f"warmup_step called forward {len(seen)} times; DRTRL(engine='reverse') needs one call a time "
                        "step: use engine='trace'"
                    )
                return (seen[0], entry, news()) if self.lead else (seen[0], [], [])

            def scored_step(x, y, w, extras, mask, nudge):
                entry = begin(mask)
                seen: list[Any] = []
                learner.objective.learn(lambda u: forward(u, nudge, seen), x, y, w, extras)
                return seen[0], entry, news()

            head = jax.tree.map(lambda leaf: leaf[:warm_steps], nudges)
            tail = jax.tree.map(lambda leaf: leaf[warm_steps:], nudges)
            found = []
            if warm_steps:
                found.append(brainstate.transform.for_loop(warm_step, *warm, head))
            if through:
                seen, entry, new = brainstate.transform.for_loop(scored_step, *ahead, tail)
                found.append((seen, jax.tree.map(lambda leaf: leaf[:: learner.window], entry), new))
            inputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(seen for seen, _, _ in found))
            entries = [[parts[i] for _, parts, _ in found if parts] for i in range(len(kept))]
            after = [[parts[i] for _, _, parts in found if parts] for i in range(len(learner._traced))]
            return inputs, entries, [_join(parts) for parts in after if parts]

        self._states: list[State] = []
        call: Any = None
        if self.steps:
            self._states, call = pure(run, warm, ahead, nudges, live)
        values = [state.value for state in self._states]
        place = {id(state): i for i, state in enumerate(self._states)}
        missing = [name for name, state in learner._hidden.items() if id(state) not in place]
        assert not self.steps or not missing, missing

        def pull_through(nudges, live, given):
            now = list(values)
            for name, state in learner._hidden.items():
                now[place[id(state)]] = given[name]
            new, (inputs, entries, news) = call(now, warm, ahead, nudges, live)
            end = lambda state: new[place[id(state)]] if id(state) in place else state.value  # noqa: E731
            if self._ends:
                for parts, state in zip(entries, kept, strict=True):
                    parts.append(jax.tree.map(lambda leaf: leaf[None], end(state)))
            joined = [_join(parts) if parts else None for parts in entries]
            traced, others = joined[: len(learner._traced)], joined[len(learner._traced) :]
            at = dict(zip(learner._traced, traced, strict=True))
            after = dict(zip(learner._traced, news, strict=True)) if news else {}
            ends = {name: end(state) for name, state in learner._hidden.items()}
            return (at, after, ends), (inputs, others, new)

        begin = {name: state.value for name, state in learner._hidden.items()}
        self._pull: Any = None
        if self.steps:
            outs, self._pull, aux = jax.vjp(pull_through, nudges, live, begin, has_aux=True)
            (self.hidden, self._after, self._end), (self.inputs, self.others, self._new) = outs, aux
        else:
            self._live = live
            one = lambda value: jax.tree.map(lambda leaf: leaf[None], value)  # noqa: E731
            self.hidden, self.inputs, self._new = {n: one(begin[n]) for n in learner._traced}, {}, []
            self.others = [one(state.value) for state in learner._others]

    def back(self, entries: dict[str, Any], news: dict[str, Any]) -> tuple[Any, Any, Any]:
        """From cotangents of the entries and of the new hidden states: those of nudges, live weights, and the hidden
        states at the beginning."""
        if self._pull is None:
            return {}, jax.tree.map(jnp.zeros_like, self._live), jax.tree.map(lambda leaf: leaf[0], entries)
        after = {
            name: jax.tree.unflatten(jax.tree.structure(value), jax.tree.leaves(news.get(name)))
            for name, value in self._after.items()
        }
        return self._pull((entries, after, jax.tree.map(jnp.zeros_like, self._end)))

    def factors(self, influence: Influence) -> tuple[Any, Any]:
        """How the relations' outputs, and the hidden states at the beginning, act on those at the end."""
        zeros = jax.tree.map(jnp.zeros_like, (self.hidden, self._after))
        deltas, _, carried = jax.vmap(lambda ends: self._pull((*zeros, ends)))(influence.basis(self._end))
        return deltas, carried

    def finish(self) -> None:
        """Leave the States as they are after the last step."""
        for state, value in zip(self._states, self._new, strict=True):
            if not isinstance(state, brainstate.ParamState):
                state.value = value


def _join(parts: list[Any]) -> Any:
    """Values one after another along the leading axis."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
