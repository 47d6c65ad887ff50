"""The learner of truncated backpropagation through time: exact within a window, no gradient across its boundary."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core.metrics import Metrics, add
from ..core.module import Phases
from ..core.objective import Objective, total_weight
from .base import (
    Learner,
    Network,
    ParameterReport,
    Update,
    choose_batching,
    evolve,
    scored,
    split_reset,
    trained,
    warm_up,
    zeros_like_parameters,
)
from .flow import Flow, initial_values
from .hoisted import HoistedStep
from .inputs import input_of
from .parameter_report import START, describe_window
from .specs.bptt import TBPTT
from .stretches import scored_stretch, warm_stretch
from .update_schedule import SEQUENCE, UpdateSchedule, over_tiles


def bind(strategy: TBPTT, objective: Objective, example: Phases) -> Learner:
    warm, time, batch_size = example.sizes
    batching = choose_batching(strategy.batching, objective.model, input_of(objective, example), batch_size)
    schedule, window = strategy.update_schedule(), strategy.window
    network = Network(objective.model, batching)
    start = schedule == SEQUENCE and warm < window and any(initial_values(network, batch_size).values())
    learner = _Learner(objective, network, window, schedule, start)
    if window == warm + time:
        across = "; no gradient passes from one sequence to the previous one" if schedule.stateful else ""
        learner.notes.append(f"tbptt: a window is the whole sequence of {window} time steps, as in bptt{across}")
    return learner


class _Learner(Learner):
    """Truncated BPTT bound to a module.

    Args:
        objective: The module, with its model and its loss.
        network: The model over a batch.
        window: Time steps of a window.
        schedule: When gradients become updates.
        start: Whether the first window includes the initialisation of the hidden states.
    """

    def __init__(self, objective: Objective, network: Network, window: int, schedule: UpdateSchedule,
                 start: bool):  # fmt: skip
        super().__init__(objective, network)
        self._start = start
        self._params = trained(objective)
        self._window, self._update_schedule, self.carried = window, schedule, schedule.stateful

    def learn(self, phases: Phases, update: Update) -> Metrics:
        warm, _, batch = phases.sizes
        lead = warm % self._window
        if not (self.carried or self._start):
            self.restart(batch)
        if lead or self._start:
            return self._led(phases, lead, update)
        warm_up(self.objective, self.network, phases, self._reset)
        return self._update_schedule.drive(phases, self._gradients, update)

    def _led(self, phases: Phases, lead: int, update: Update) -> Metrics:
        """Learn from a sequence whose first window with a loss begins in the warm-up, ``lead`` time steps before its
        end."""
        warm, time, _ = phases.sizes
        warmup = (phases.warmup, split_reset(phases)[0])
        self._evolve(*jax.tree.map(lambda leaf: leaf[: warm - lead], warmup))
        tail = jax.tree.map(lambda leaf: leaf[warm - lead :], warmup)
        first = min(self._window - lead, time)
        sequences = scored(phases)
        grads, metrics = self._gradient(jax.tree.map(lambda leaf: leaf[:first], sequences), tail)
        if first < time:
            more, rest = self._gradients(jax.tree.map(lambda leaf: leaf[first:], sequences))
            grads, metrics = jax.tree.map(jnp.add, grads, more), add(metrics, rest)
        return update(grads, total_weight(phases), metrics)

    def _evolve(self, inputs: Any, masks: Any) -> None:
        if any(leaf.shape[0] for leaf in jax.tree.leaves(inputs)):
            evolve(self.objective, self.network, inputs, masks, self._reset)

    def _gradients(self, sequences: Any) -> tuple[dict[str, Any], Metrics]:
        """Gradients of windows that contain only scored time steps."""
        return over_tiles(sequences, self._window, self._gradient, zeros_like_parameters(self._params))

    def _gradient(self, sequences: Any, lead: Any = None) -> tuple[dict[str, Any], Metrics]:
        """The gradient of one window; ``lead``: time steps of the warm-up that it begins with."""

        stretches, begin = [scored_stretch(self.objective, sequences)], lambda: None
        if lead is not None:
            if self._start:
                batch = jax.tree.leaves(sequences)[0].shape[1]
                begin = lambda: self.restart(batch)  # noqa: E731
            if any(leaf.shape[0] for leaf in jax.tree.leaves(lead[0])):
                stretches.insert(0, warm_stretch(self.objective, *lead))
        return HoistedStep(self.network, self._params, self._reset).gradient(stretches, begin)

    def report(self, phases: Phases) -> list[ParameterReport]:
        advice = "" if self._start else f"{START}; a window of tbptt must be longer than the warm-up"
        flow, resets = Flow.of(self, phases), phases.reset is not None
        return describe_window(self._params, flow, self._window, "the window", advice, resets)
