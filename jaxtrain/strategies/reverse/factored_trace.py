"""What a rule with a factored trace remembers between segments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...core.state import SHORT, State
from ..products import EMBEDDING
from ..specs.backward_rule import BackwardRule
from .detached_step import DetachedStep
from .recursion import correction, received_factored
from .traces import FullTrace, Kept, Trace


class FactoredTrace(Trace):
    """The two sides of a factored trace of each relation, ``(B, I)`` and for each hidden state ``(B, O)``.

    An element-wise weight has no input side.

    Attributes:
        inputs: The input sides by relation.
        outputs: The output sides by hidden state and relation.
    """

    def __init__(self, step: DetachedStep, rule: BackwardRule, current: bool):
        super().__init__(step, {i: r for i, r in enumerate(step.relations) if r.detached})
        assert rule.decay is not None
        self._decay, self._current = rule.decay, current
        self._count = self.states["steps"] = SHORT(jnp.zeros((), jnp.int32))
        self.inputs: dict[int, State] = {}
        self.outputs: dict[str, dict[int, State]] = {name: {} for name in step.traced}
        for i, relation in self.relations.items():
            if (rows := self._rows(relation)) is not None:
                self.inputs[i] = self._add(i, f"input{i}", (step.batch_size, rows))
            for name in self._names(relation):
                (value,) = jax.tree.leaves(step.network.hidden[name].value)
                self.outputs[name][i] = self._add(i, f"output{i}.{name}", value.shape)

    def steps(self) -> Any:
        return self._count.value

    def ends(self) -> list[Any]:
        return []

    def contract(self, state: Any, is_filtered: bool, weights: list[list[Any]]) -> dict[int, list[Any]]:
        later, late = state
        eps = {name: {i: own.value for i, own in by.items()} for name, by in self.outputs.items()}
        fix = correction(self._decay, self._count.value, self._current)
        total, q = received_factored(self._decay, later, late, eps, fix)
        flat = lambda value: value.reshape(self.step.batch_size, -1)  # noqa: E731
        matrices = {i: state.value.T @ flat(total[i]) for i, state in self.inputs.items()}
        return {
            i: self._pull(relation, matrices.get(i), flat(q[i]).sum(0), weights[i])
            for i, relation in self.relations.items()
        }

    def advance(self, kept: Kept, ends: list[Any], is_filtered: bool) -> None:
        """See ``Trace``; ``ends`` holds the output sides."""
        time = len(kept.steps)
        keep = jnp.ones((time, 1)) if kept.keep is None else kept.keep

        def back(weight, keep):
            return self._decay * keep * weight, weight

        first, weights = jax.lax.scan(back, jnp.ones(keep.shape[1]), keep, reverse=True)
        for i, state in self.inputs.items():
            batch, before = self.step.batch_size, first[:, None] * state.value
            parts = [part.reshape(time, batch, -1) for part in kept.inputs[i]]
            if self.relations[i].name in EMBEDDING:
                rows = parts[0][..., 0]
                sequences = jnp.broadcast_to(jnp.arange(batch), rows.shape)
                added = jnp.broadcast_to(weights, rows.shape).astype(before.dtype)
                state.value = before.at[sequences, rows].add(added)
            else:
                state.value = before + jnp.concatenate([(weights[..., None] * part).sum(0) for part in parts], -1)
        for name, by_relation in self.outputs.items():
            for i, state in by_relation.items():
                state.value = ends[0][name][i]
        self._count.value = self._count.value + time


def trace_of(rule: BackwardRule, step: DetachedStep, current: bool) -> Trace:
    """The trace of a rule.

    Args:
        rule: The rule.
        step: The detached time step.
        current: See ``recursion.correction``.
    """
    return FullTrace(step, rule) if rule.decay is None else FactoredTrace(step, rule, current)
