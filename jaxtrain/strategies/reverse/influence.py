"""The trace of D-RTRL, updated by one product per segment instead of one update per time step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...core.allocation import require_traces
from ...core.state import SHORT, State
from ..equations import Irreversible
from .detached_step import DENSE, EMBEDDING, DetachedStep, Relation


class Influence:
    """The influence of each traced weight on the hidden states of its group, for each sequence of the batch.

    Each relation has one array: ``(B, S, I + 1, O)`` for a product of I inputs and O units in a group of S hidden
    states (the last row is the bias), ``(B, S, V, O)`` for an embedding, ``(B, S, *y)`` for an element-wise weight.
    """

    def __init__(self, detached: DetachedStep):
        self.detached = detached
        self.relations = {i: r for i, r in enumerate(detached.relations) if r.trained}
        # DetachedStep has not checked yet that the derivative of readout memory is block-diagonal.
        detached.check(sorted({group for r in self.relations.values() if r.direct for group in r.groups}))
        self.groups = {group for r in self.relations.values() for group in r.groups}
        self.depth = max((len(detached.groups[group]) for group in self.groups), default=1)
        shapes = {}
        for i, relation in self.relations.items():
            reason = self._unfit(relation)
            if reason:
                raise Irreversible(f"{', '.join(sorted(relation.paths))}: {reason}")
            shapes[f"influence{i}"] = jax.ShapeDtypeStruct(self._shape(relation), relation.y_var.aval.dtype)
        require_traces(shapes.values())
        self.states: dict[str, State] = {n: SHORT(jnp.zeros(s.shape, s.dtype)) for n, s in shapes.items()}

    def _unfit(self, relation: Relation) -> str:
        if len(relation.groups) != 1:
            return "it acts on several groups of hidden states"
        if relation.name not in (*DENSE, *EMBEDDING) and relation.x_place is not None:
            return f"no trace is kept for {relation.name}"
        batch_size = self.detached.mapped or relation.y_var.aval.shape[:1] == (self.detached.batch_size,)
        units, names = self._units(relation), self.detached.groups[next(iter(relation.groups))]
        if not batch_size or len(units) != 1 or any(self.detached.units_of(name) != units[0] for name in names):
            return "it or the hidden state that it acts on has other axes than sequences and units"
        return ""

    def _units(self, relation: Relation) -> tuple[int, ...]:
        """The axes of ``y`` after the batch axis."""
        shape = relation.y_var.aval.shape
        return shape[1:] if len(shape) > 1 else shape

    def _rows(self, relation: Relation) -> int | None:
        """The rows of the weight matrix; a product has one more for its bias."""
        if relation.x_place is None:
            return None
        if relation.name in EMBEDDING:
            return relation.equation.invars[relation.places[0]].aval.shape[0]
        return relation.x_var.aval.shape[-1] + 1

    def _shape(self, relation: Relation) -> tuple[int, ...]:
        rows = self._rows(relation)
        depth = len(self.detached.groups[next(iter(relation.groups))])
        return (self.detached.batch_size, depth, *(() if rows is None else (rows,)), *self._units(relation))

    # ------------------------------------------------------------------------------------------------- forward

    def basis(self, hidden: dict[str, Any]) -> dict[str, Any]:
        """Unit cotangents that select one hidden state of every traced group at a time, ``(depth, B, ...)``."""
        cotangents = {}
        for group, names in self.detached.groups.items():
            for place, name in enumerate(names):
                chosen = (jnp.arange(self.depth) == place) & (group in self.groups)
                cotangents[name] = jax.tree.map(
                    lambda leaf, chosen=chosen: jnp.broadcast_to(
                        chosen.reshape(-1, *(1,) * leaf.ndim), (self.depth, *leaf.shape)
                    ).astype(leaf.dtype),
                    hidden[name],
                )
        return cotangents

    def advance(self, inputs: dict[int, Any], factors: dict[int, Any], entry: dict[str, Any]) -> None:
        """Update the trace to the end of a segment.

        Args:
            inputs: For each relation, its inputs, ``(T, B, I)``.
            factors: For each relation, the derivatives of the last hidden states with respect to ``y`` at each time
                step, ``(depth, T, B, O)``.
            entry: Their derivatives with respect to the first hidden states, ``(depth, B, O)``.
        """
        # Without a barrier, XLA recomputes the factors (sines of an LRU's poles, for example) for every trace element.
        factors, entry = jax.lax.optimization_barrier((factors, entry))
        for i, relation in self.relations.items():
            state = self.states[f"influence{i}"]
            names = self.detached.groups[next(iter(relation.groups))]
            depth, (batch, *_), units = len(names), state.value.shape, self._units(relation)
            through = [jax.tree.leaves(entry[name])[0][:depth].reshape(depth, batch, *units) for name in names]
            before = sum(
                jnp.swapaxes(d, 0, 1).reshape(batch, depth, *(1,) * (state.value.ndim - 3), *units)
                * state.value[:, place][:, None]
                for place, d in enumerate(through)
            )
            factor = factors[i][:depth].reshape(depth, -1, batch, *units)
            state.value = before + self._contribution(relation, inputs.get(i), factor, state.value.shape)

    def _contribution(self, relation: Relation, x: Any, factor: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        depth, time, batch, _ = factor.shape
        if relation.x_place is None:
            return jnp.swapaxes(factor.sum(1), 0, 1)
        if relation.name in EMBEDDING:
            rows = x.reshape(time, batch)
            batch_size = jnp.broadcast_to(jnp.arange(batch), rows.shape)
            return jnp.zeros(shape, factor.dtype).at[batch_size, :, rows].add(jnp.moveaxis(factor, 0, 2))
        x = x.reshape(time, batch, -1)
        x = jnp.concatenate([x, jnp.ones((time, batch, 1), x.dtype)], -1)
        return jnp.einsum("tbi,stbo->bsio", x, factor)

    # ------------------------------------------------------------------------------------------------ contract

    def contract(self, cotangents: dict[str, Any], weights: list[list[Any]]) -> dict[int, list[Any]]:
        """The gradient of each relation's weights, from cotangents of the hidden states, ``{name: (B, ...)}``."""
        grads = {}
        for i, relation in self.relations.items():
            trace = self.states[f"influence{i}"].value
            names = self.detached.groups[next(iter(relation.groups))]
            batch, units = trace.shape[0], self._units(relation)
            signal = jnp.stack([jax.tree.leaves(cotangents[name])[0].reshape(batch, *units) for name in names], 1)
            if relation.x_place is None:
                total = (trace * signal).sum((0, 1)).reshape(relation.y_var.aval.shape)
                grads[i] = jax.vjp(lambda w, r=relation: r.alone(w), weights[i])[1](total)[0]
                continue
            total = jnp.einsum("bsio,bso->io", trace, signal)
            rows = total.shape[0]
            if relation.name in EMBEDDING:
                x: Any = jnp.arange(rows)
            else:
                # A product plus a bias is affine in x: use a unit vector for each input, and a zero vector for the rest
                # of the bias gradient.
                x = jnp.eye(rows, rows - 1, dtype=relation.x_var.aval.dtype)
                total = total.at[-1].add(-total[:-1].sum(0))
            grads[i] = jax.vjp(lambda w, x=x, r=relation: r.product(x, w), weights[i])[1](total)[0]
        return grads
