"""What a rule remembers between segments, advanced by one product per segment instead of one update per time step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...core.allocation import require_traces
from ...core.state import SHORT, State
from ..equations import Irreversible
from ..products import DENSE, EMBEDDING
from ..specs.backward_rule import BackwardRule
from .detached_step import DetachedStep, Relation
from .recursion import Cotangents, Values, receive


@dataclass
class Kept:
    """What a segment keeps for its trace.

    Attributes:
        deltas: For each value at the end of the segment (see ``Trace.ends``), cotangents of the relations' outputs,
            ``(depth, T, *y)``.
        inputs: Inputs of the relations, ``(T, B, I)``, in parts that belong together along the last axis.
        keep: 0 where a sequence restarts, else 1, ``(T, B)``; None without resets.
        steps: Numbers of the time steps, ``(T,)``.
    """

    deltas: list[dict[int, Any]]
    inputs: dict[int, tuple[Any, ...]]
    keep: Any
    steps: Any

    @staticmethod
    def joined(kept: Sequence[Kept]) -> Kept:
        """What consecutive time steps have kept."""
        join = lambda axis: lambda *leaves: jnp.concatenate(leaves, axis)  # noqa: E731
        deltas = jax.tree.map(join(1), *(each.deltas for each in kept))
        return Kept(deltas, *jax.tree.map(join(0), *((each.inputs, each.keep, each.steps) for each in kept)))


jax.tree_util.register_dataclass(Kept, ["deltas", "inputs", "keep", "steps"], [])


class Trace(ABC):
    """A trace of each traced weight for each sequence of the batch, at the end of the previous segment.

    Args:
        step: The detached time step.
        relations: The relations that have a trace, by number.

    Attributes:
        arrays: The arrays of each relation.
        states: All arrays, under stable names.

    Raises:
        Irreversible: No trace is kept of a relation of this kind.
    """

    def __init__(self, step: DetachedStep, relations: dict[int, Relation]):
        self.step, self.relations = step, relations
        self.arrays: dict[int, list[State]] = {}
        self.states: dict[str, State] = {}
        for relation in relations.values():
            reason = self._unfit(relation)
            if reason:
                raise Irreversible(f"{', '.join(sorted(relation.paths))}: {reason}")

    @abstractmethod
    def ends(self) -> list[Any]:
        """For each value at the end of a segment that a trace holds, the state of the recursion that selects it."""

    @abstractmethod
    def contract(self, state: Any, is_filtered: bool, weights: list[list[Any]]) -> dict[int, list[Any]]:
        """The gradients of the relations' weights that are due to earlier segments.

        Args:
            state: The state of the rule's recursion at the start of the segment.
            is_filtered: Whether the filter on the trace advances at the start of the segment.
            weights: Weights of each relation.
        """

    @abstractmethod
    def advance(self, kept: Kept, ends: list[Any], is_filtered: bool) -> None:
        """Update the trace to the end of the segment.

        Args:
            kept: What the segment has kept.
            ends: The states of ``ends()`` at the start of the segment.
            is_filtered: Whether the filter on the trace advances at the start of the segment.
        """

    def steps(self) -> Any:
        """The number of time steps since the restart of the rule; 0 if the rule does not use it."""
        return 0

    def bytes_of(self, i: int) -> int:
        """Memory of the trace of a relation in bytes."""
        return sum(state.value.nbytes for state in self.arrays.get(i, ()))

    def _add(self, i: int, name: str, shape: tuple[int, ...]) -> State:
        state = SHORT(jnp.zeros(shape, self.relations[i].y_var.aval.dtype))
        self.arrays.setdefault(i, []).append(state)
        self.states[name] = state
        return state

    def _unfit(self, relation: Relation) -> str:
        if len(relation.groups) != 1:
            return "it acts on several groups of hidden states"
        if relation.name not in (*DENSE, *EMBEDDING) and relation.x_place is not None:
            return f"no trace is kept for {relation.name}"
        batch_size = self.step.mapped or relation.y_var.aval.shape[:1] == (self.step.batch_size,)
        units = self._units(relation)
        if not batch_size or len(units) != 1 or any(self.step.units_of(n) != units[0] for n in self._names(relation)):
            return "it or the hidden state that it acts on has other axes than sequences and units"
        return ""

    def _units(self, relation: Relation) -> tuple[int, ...]:
        """The axes of ``y`` after the batch axis."""
        shape = relation.y_var.aval.shape
        return shape[1:] if len(shape) > 1 else shape

    def _names(self, relation: Relation) -> list[str]:
        """The hidden states that a relation acts on."""
        return self.step.groups[next(iter(relation.groups))]

    def _rows(self, relation: Relation) -> int | None:
        """The rows of the weight matrix."""
        if relation.x_place is None:
            return None
        if relation.name in EMBEDDING:
            return relation.equation.invars[relation.places[0]].aval.shape[0]
        return relation.x_var.aval.shape[-1]

    def _pull(self, relation: Relation, total: Any, bias: Any, weights: list[Any]) -> list[Any]:
        """Gradients of the weights from those of the matrix ``total``, ``(I, O)``, and of the bias, ``(O,)``.

        An element-wise weight is like a bias without a matrix.
        """
        if relation.x_place is None:
            return relation.alone(weights, bias)
        if relation.name in EMBEDDING:
            x: Any = jnp.arange(len(total))
        else:
            # A product plus a bias is affine in x: use a unit vector for each input, and a zero vector for the rest of
            # the bias gradient.
            x = jnp.eye(len(total) + 1, len(total), dtype=relation.x_var.aval.dtype)
            total = jnp.concatenate([total, (bias - total.sum(0))[None]])
        return jax.vjp(lambda w: relation.product(x, w), weights)[1](total)[0]


class FullTrace(Trace):
    """The influence of each traced weight on the hidden states of its group, and its filtered value.

    Each relation has one array, two with a filter: ``(B, S, I + 1, O)`` for a product of I inputs and O units in a
    group of S hidden states (the last row is the bias), ``(B, S, V, O)`` for an embedding, ``(B, S, *y)`` for an
    element-wise weight.
    """

    def __init__(self, step: DetachedStep, rule: BackwardRule):
        relations = {i: r for i, r in enumerate(step.relations) if r.trained}
        # DetachedStep has not checked yet that the derivative of readout memory is block-diagonal.
        step.check(sorted({group for r in relations.values() if r.direct for group in r.groups}))
        super().__init__(step, relations)
        self._rule = rule
        self._groups = {group for r in relations.values() for group in r.groups}
        self._depth = max((len(step.groups[group]) for group in self._groups), default=1)
        shapes = [jax.ShapeDtypeStruct(self._shape(r), r.y_var.aval.dtype) for r in relations.values()]
        require_traces(shapes * (2 if rule.kappa else 1))
        for i, relation in relations.items():
            for name in ("influence", *(["filtered"] if rule.kappa else [])):
                self._add(i, f"{name}{i}", self._shape(relation))

    def _shape(self, relation: Relation) -> tuple[int, ...]:
        rows = self._rows(relation)
        if rows is not None and relation.name not in EMBEDDING:
            rows += 1
        size = self.step.batch_size, len(self._names(relation))
        return (*size, *(() if rows is None else (rows,)), *self._units(relation))

    def ends(self) -> list[Any]:
        basis, hidden = {}, self.step.network.hidden
        for name in self.step.credited:
            group = self.step.hidden_of[name]
            (value,) = jax.tree.leaves(hidden[name].value)
            chosen = (jnp.arange(self._depth) == self.step.groups[group].index(name)) & (group in self._groups)
            chosen = chosen.reshape(-1, *(1,) * value.ndim)
            basis[name] = jnp.broadcast_to(chosen, (self._depth, *value.shape)).astype(value.dtype)
        zeros = jax.tree.map(jnp.zeros_like, basis)
        return [(basis, zeros, zeros), *([(zeros, basis, zeros)] if self._rule.kappa else [])]

    def _received(self, state: Cotangents, is_filtered: bool) -> tuple[Values, Values]:
        silent = jax.tree.map(jnp.zeros_like, state[2])
        return receive(self._rule, state, silent, jnp.asarray(is_filtered, jnp.float32))

    def advance(self, kept: Kept, ends: list[Any], is_filtered: bool) -> None:
        # Without a barrier, XLA recomputes the factors (sines of an LRU's poles, for example) for every trace element.
        deltas, ends = jax.lax.optimization_barrier((kept.deltas, ends))
        for i, relation in self.relations.items():
            before = [state.value for state in self.arrays[i]]
            for place, (delta, end) in enumerate(zip(deltas, ends, strict=True)):
                through = self._received(end, is_filtered)[: len(before)]
                shape, units = before[0].shape, self._units(relation)
                batch, depth = shape[:2]
                factor = delta[i][:depth].reshape(depth, -1, batch, *units)
                value = self._contribution(relation, kept.inputs.get(i), factor, shape)
                for by_state, trace in zip(through, before, strict=True):
                    for j, name in enumerate(self._names(relation)):
                        d = jnp.swapaxes(by_state[name][:depth].reshape(depth, batch, *units), 0, 1)
                        value += d.reshape(batch, depth, *(1,) * (len(shape) - 3), *units) * trace[:, j][:, None]
                self.arrays[i][place].value = value

    def _contribution(self, relation: Relation, parts: Any, factor: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        depth, time, batch, _ = factor.shape
        if relation.x_place is None:
            return jnp.swapaxes(factor.sum(1), 0, 1)
        if relation.name in EMBEDDING:
            rows = parts[0].reshape(time, batch)
            sequences = jnp.broadcast_to(jnp.arange(batch), rows.shape)
            return jnp.zeros(shape, factor.dtype).at[sequences, :, rows].add(jnp.moveaxis(factor, 0, 2))
        x = jnp.concatenate([*(x.reshape(time, batch, -1) for x in parts), jnp.ones((time, batch, 1))], -1)
        return jnp.einsum("tbi,stbo->bsio", x.astype(factor.dtype), factor)

    def contract(self, state: Cotangents, is_filtered: bool, weights: list[list[Any]]) -> dict[int, list[Any]]:
        signals, grads = self._received(state, is_filtered), {}
        for i, relation in self.relations.items():
            batch, units, names = self.step.batch_size, self._units(relation), self._names(relation)
            total: Any = 0
            for signal, trace in zip(signals, self.arrays[i], strict=False):  # without a filter there is one trace
                each = jnp.stack([signal[name].reshape(batch, *units) for name in names], 1)
                if relation.x_place is None:
                    total += (trace.value * each).sum((0, 1))
                else:
                    total += jnp.einsum("bsio,bso->io", trace.value, each)
            if relation.x_place is None:
                grads[i] = self._pull(relation, None, total, weights[i])
            elif relation.name in EMBEDDING:
                grads[i] = self._pull(relation, total, None, weights[i])
            else:
                grads[i] = self._pull(relation, total[:-1], total[-1], weights[i])
        return grads
