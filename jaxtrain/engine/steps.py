"""The traced bodies of programs: one train step, one evaluation, and how a nonfinite step is handled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..core.functional import Functional
from ..core.metrics import Mean, Metrics, Parts
from ..core.state import flatten, fold_in, global_norm, set_key
from . import contract
from .binding import Binding
from .collectives import Collectives
from .seeds import LIVE, SeedAxis

NonFinite = Literal["raise", "skip", "warn"]
TRAIN, EVALUATE, PREDICT, PROBE, GENERATE = range(5)
"""Random streams, each derived from the same root key."""
NONFINITE_INDEX, ZERO_GRADIENT = "nonfinite", "dead"
"""Outputs of a train program in addition to metrics: index of the first nonfinite quantity, and flags of the leaves of
parameters whose gradient was exactly zero."""
ALL_FINITE, FROZEN_SEED = -1, -2
"""Values of the nonfinite index that are no index: everything is finite; the seed was frozen at an earlier step."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainOutput:
    """What a train step computes in addition to the new values. The static fields say what the arrays hold."""

    metrics: Metrics
    nonfinite: jax.Array
    """Index of the first nonfinite quantity, or ``ALL_FINITE``."""
    zero_gradient: jax.Array
    """1.0 for each leaf of a trained parameter whose gradient is exactly zero."""
    checked: tuple[str, ...] = field(metadata={"static": True})
    """Names of the quantities that ``nonfinite`` counts."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A ``TrainOutput`` in two arrays, because fetching costs time per array."""

    numbers: Any
    """Numerators and weights of all metrics, then the flags of zero gradients, along the last axis."""
    nonfinite: Any
    names: tuple[str, ...] = field(metadata={"static": True})

    @staticmethod
    def of(output: TrainOutput) -> Packed:
        numbers = jnp.stack([leaf for mean in output.metrics.values() for leaf in mean])
        return Packed(jnp.concatenate([numbers, output.zero_gradient]), output.nonfinite, tuple(output.metrics))

    @staticmethod
    def joined(each: list[Packed]) -> Packed:
        """The steps of several dispatches, from numpy."""
        return jax.tree.map(lambda *parts: np.concatenate(parts), *each)

    def unpack(self, seed_axis: SeedAxis | None) -> dict[str, Any]:
        """Metrics by name, the nonfinite index ``(steps, seeds)``, and the flags of zero gradients, from numpy."""
        means = {
            name: Mean(self.numbers[..., 2 * i], self.numbers[..., 2 * i + 1]) for i, name in enumerate(self.names)
        }
        zero: np.ndarray = self.numbers[..., 2 * len(means) :] != 0
        if seed_axis is None:
            return {**means, NONFINITE_INDEX: self.nonfinite[:, None], ZERO_GRADIENT: zero}
        return {**seed_axis.merged(means), NONFINITE_INDEX: self.nonfinite, ZERO_GRADIENT: zero.all(axis=1)}


@dataclass(frozen=True)
class Steps:
    """The traced bodies of one binding, for devices that communicate by ``collectives``."""

    binding: Binding
    collectives: Collectives

    def functional(self, step: Callable, index: Any, batch: Any, *, fresh: bool = False) -> Functional:
        """Trace ``step(root, index, batch)`` as a pure function.

        With ``fresh`` the step starts from fresh hidden states, for any batch size.
        """
        learner, named = self.binding.learner, self.binding.states
        short_term_states = learner.short_term_states()
        if fresh:
            hidden = list(learner.network.hidden.values())
            short_term_states = [*short_term_states, *hidden]
            named = {name: state for name, state in named.items() if not any(state is own for own in hidden)}
        root, axes = jax.random.key(0), self.collectives.axes
        return Functional(step, named, short_term_states, root, index, batch, axes=axes)

    def train(self, root: Any, index: Any, batch: Any) -> TrainOutput:
        """One train step."""
        binding, learner = self.binding, self.binding.learner
        set_key(self.collectives.fold(fold_in(root, TRAIN, index)))
        phases = binding.phases_of(batch, binding.objective.learn, carried=learner.carried)
        with self.collectives.own_random(binding.long_term.values()):
            params = {name: binding.states[name] for name in binding.parameters}
            metrics = contract.learn(learner, phases, self._update, params, binding.optimizer.names)
        counts, live = metrics.pop(NONFINITE_INDEX).num, metrics.pop(ZERO_GRADIENT).num
        # grad_norm comes last, so that a nonfinite gradient is reported by its own name.
        means = {name: mean for name, mean in metrics.items() if name != "grad_norm"}
        finite = jnp.stack([jnp.isfinite(mean.num) for mean in means.values()])
        last = jnp.isfinite(metrics["grad_norm"].num)[None]
        checked = (
            *(f"train/{name}" for name in means),
            *(f"the gradient of {name}" for name in binding.optimizer.leaves),
            "grad_norm",
            "the parameters after the update",
        )
        norm = global_norm([binding.states[name].value for name in binding.parameters])
        flags = jnp.concatenate([~finite, counts > 0, ~last, ~jnp.isfinite(norm)[None]])
        nonfinite = jnp.where(flags.any(), jnp.argmax(flags), ALL_FINITE).astype(jnp.int32)
        metrics["param_norm"] = Mean(norm, jnp.float32(1))
        return TrainOutput(metrics, nonfinite, (live == 0).astype(jnp.float32), checked)

    def _update(self, grads: dict[str, Any], weight: Any, metrics: Metrics) -> Metrics:
        """Sum everything that devices must exchange in one all-reduce, then update the parameters."""
        optimizer, long_term = self.binding.optimizer, self.binding.long_term
        grads = {name: grads[name] for name in optimizer.names}
        running = {n: s.value for n, s in long_term.items() if not isinstance(s, brainstate.random.RandomState)}
        static = isinstance(weight, float)
        sums, running = self.collectives.all_reduce((grads, metrics, () if static else weight), running)
        grads, metrics, weight = *sums[:2], self.collectives.total_weight(weight) if static else sums[2]
        for name, value in running.items():
            long_term[name].value = value
        has_nonfinite = jnp.stack([(~jnp.isfinite(leaf)).any().astype(jnp.float32) for leaf in flatten(grads).values()])
        whole = optimizer.accumulated(grads)
        live = jnp.stack([(leaf != 0).any().astype(jnp.float32) for leaf in flatten(whole).values()])
        checks = {NONFINITE_INDEX: Mean(has_nonfinite, jnp.float32(1)), ZERO_GRADIENT: Mean(live, jnp.float32(1))}
        loss = metrics["loss"].num if optimizer.wants_loss else 0.0
        return {**metrics, **optimizer.update(grads, weight, loss), **checks}

    def evaluate(self, root: Any, index: Any, batch: Any) -> dict[str, Any]:
        """Metrics of one batch, ``Mean`` or ``Parts``. Each device contributes a part of its own."""
        binding = self.binding
        set_key(self.collectives.fold(fold_in(root, EVALUATE, index)))
        with self.collectives.own_random(binding.long_term.values()):
            metrics = binding.learner.evaluate(binding.phases_of(batch, binding.objective.evaluate))
        own = {name: self.collectives.gathered(found) for name, found in metrics.items() if isinstance(found, Parts)}
        return self.collectives.all_reduce({**metrics, **own}, ())[0]


def guarded(train_step: Functional, policy: NonFinite, several: bool) -> Callable:
    """Apply the policy for nonfinite steps: ``step(values, root, index, batch) -> (values, Packed)``.

    Args:
        train_step: ``Steps.train`` as a pure function of one seed.
        policy: "skip" discards the update of a nonfinite step. Of several seeds, "raise" freezes the seed.
        several: Whether several seeds are trained, of which some may be frozen.
    """

    def step(values, root, index, batch):
        new, output = train_step(values, root, index, batch)
        metrics, bad, zero_gradient = output.metrics, output.nonfinite, output.zero_gradient
        if several:
            bad = jnp.where(values[LIVE], bad, FROZEN_SEED)
        if policy == "skip" or several:
            accepted = bad != FROZEN_SEED if policy == "warn" else bad == ALL_FINITE
            new = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, values)
            metrics = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, 0), metrics)
            zero_gradient = jnp.where(accepted, zero_gradient, 1)
        if policy == "skip":
            metrics["skipped_fraction"] = Mean(jnp.float32(bad >= 0), jnp.float32(bad != FROZEN_SEED))
        if several and policy == "raise":
            new[LIVE] = bad == ALL_FINITE
        return new, Packed.of(TrainOutput(metrics, bad, zero_gradient, output.checked))

    return step
