"""Consecutive detached steps of a segment, and reverse mode through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import brainstate
import jax
import jax.numpy as jnp

from ...core.functional import pure
from ...core.state import State
from .influence import Influence

if TYPE_CHECKING:
    from .learner import ReverseLearner


class Chain:
    """Detached steps over a warm-up and scored time steps, run once and kept for reverse mode.

    Attributes:
        hidden: Hidden states at the start of each window, ``(lead + windows, ...)``.
        others: Other states at the start of each window.
        lead: Number of warm-up steps that are windows of their own: all of them if there is readout memory, else 0.
        inputs: Inputs of the perturbed relations, ``(steps, ...)``.
    """

    def __init__(self, learner: ReverseLearner, warm: tuple[Any, Any], sequences: Any, through: int, weights: list):
        self.learner, detached = learner, learner.detached
        ahead = jax.tree.map(lambda leaf: leaf[:through], sequences)
        warm_steps = 0 if warm[0] is None else jax.tree.leaves(warm[0])[0].shape[0]
        self.steps = warm_steps + through
        self.lead = warm_steps if learner._memory and sequences is not None else 0
        time = 0 if sequences is None else jax.tree.leaves(sequences)[0].shape[0]
        self._ends = any(start >= through for start in range(0, time, learner.window))  # where the last window begins
        batch_size = (detached.batch_size,) if detached.mapped else ()
        perturbations = {
            i: jnp.zeros(
                (self.steps, *batch_size, *detached.relations[i].y_var.aval.shape),
                detached.relations[i].y_var.aval.dtype,
            )
            for i in learner._perturbed
        }
        live = {i: weights[i] for i in learner._live}
        starts = {name: state.value for name, state in learner._starts.items()}
        kept = [*learner._traced.values(), *learner._others]

        def run(warm, ahead, perturbations, live, starts):
            def forward(u, perturbation, seen):
                out, found = detached.step(u, live, perturbation)
                seen.append(found)
                return out

            def begin(mask) -> list[Any]:
                entry = [state.value for state in kept]
                if mask is not None:
                    with learner.starting(starts):
                        learner._reset(mask)
                return entry

            def news() -> list[Any]:
                return [state.value for state in learner._traced.values()] if learner.single else []

            def warm_step(x, mask, perturbation):
                entry = begin(mask)
                seen: list[Any] = []
                learner.objective.warmup(lambda u: forward(u, perturbation, seen), x)
                if len(seen) != 1:
                    raise ValueError(
                        f"warmup_step called forward {len(seen)} times; DRTRL(engine='reverse') needs one call a time "
                        "step: use engine='trace'"
                    )
                return (seen[0], entry, news()) if self.lead else (seen[0], [], [])

            def scored_step(x, y, w, extras, mask, perturbation):
                entry = begin(mask)
                seen: list[Any] = []
                learner.objective.learn(lambda u: forward(u, perturbation, seen), x, y, w, extras)
                return seen[0], entry, news()

            head = jax.tree.map(lambda leaf: leaf[:warm_steps], perturbations)
            tail = jax.tree.map(lambda leaf: leaf[warm_steps:], perturbations)
            found = []
            if warm_steps:
                found.append(brainstate.transform.for_loop(warm_step, *warm, head))
            if through:
                seen, entry, new = brainstate.transform.for_loop(scored_step, *ahead, tail)
                found.append((seen, jax.tree.map(lambda leaf: leaf[:: learner.window], entry), new))
            inputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(seen for seen, _, _ in found))
            entries = [[parts[i] for _, parts, _ in found if parts] for i in range(len(kept))]
            after = [[parts[i] for _, _, parts in found if parts] for i in range(len(learner._traced))]
            return inputs, entries, [join(parts) for parts in after if parts]

        self._states: list[State] = []
        call: Any = None
        if self.steps:
            self._states, call = pure(run, warm, ahead, perturbations, live, starts)
        values = [state.value for state in self._states]
        place = {id(state): i for i, state in enumerate(self._states)}
        missing = [name for name, state in learner._hidden.items() if id(state) not in place]
        assert not self.steps or not missing, missing

        def pull_through(perturbations, live, given, starts):
            now = list(values)
            for name, state in learner._hidden.items():
                now[place[id(state)]] = given[name]
            new, (inputs, entries, news) = call(now, warm, ahead, perturbations, live, starts)
            end = lambda state: new[place[id(state)]] if id(state) in place else state.value  # noqa: E731
            if self._ends:
                for parts, state in zip(entries, kept, strict=True):
                    parts.append(jax.tree.map(lambda leaf: leaf[None], end(state)))
            joined = [join(parts) if parts else None for parts in entries]
            traced, others = joined[: len(learner._traced)], joined[len(learner._traced) :]
            at = dict(zip(learner._traced, traced, strict=True))
            after = dict(zip(learner._traced, news, strict=True)) if news else {}
            ends = {name: end(state) for name, state in learner._hidden.items()}
            return (at, after, ends), (inputs, others, new)

        begin = {name: state.value for name, state in learner._hidden.items()}
        self._pull: Any = None
        if self.steps:
            outs, self._pull, aux = jax.vjp(pull_through, perturbations, live, begin, starts, has_aux=True)
            (self.hidden, self._after, self._end), (self.inputs, self.others, self._new) = outs, aux
        else:
            self._live = live
            one = lambda value: jax.tree.map(lambda leaf: leaf[None], value)  # noqa: E731
            self.hidden, self.inputs, self._new = {n: one(begin[n]) for n in learner._traced}, {}, []
            self.others = [one(state.value) for state in learner._others]

    def back(self, entries: dict[str, Any], news: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        """Backpropagate cotangents of the window starts and of the new hidden states.

        Returns:
            Cotangents of the perturbations, of the live weights, of the first hidden states, and of the parameters of
            initial states that resets use.
        """
        if self._pull is None:
            return {}, jax.tree.map(jnp.zeros_like, self._live), jax.tree.map(lambda leaf: leaf[0], entries), {}
        after = {
            name: jax.tree.unflatten(jax.tree.structure(value), jax.tree.leaves(news.get(name)))
            for name, value in self._after.items()
        }
        return self._pull((entries, after, jax.tree.map(jnp.zeros_like, self._end)))

    def factors(self, influence: Influence) -> tuple[Any, Any]:
        """The derivatives of the last hidden states with respect to the relations' outputs and the first hidden
        states."""
        zeros = jax.tree.map(jnp.zeros_like, (self.hidden, self._after))
        deltas, _, entry, _ = jax.vmap(lambda ends: self._pull((*zeros, ends)))(influence.basis(self._end))
        return deltas, entry

    def finish(self) -> None:
        """Set the States to their values after the last step."""
        for state, value in zip(self._states, self._new, strict=True):
            if not isinstance(state, brainstate.ParamState):
                state.value = value


def join(parts: list[Any]) -> Any:
    """Concatenate values along the leading axis."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
