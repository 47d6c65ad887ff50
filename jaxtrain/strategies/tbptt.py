"""Truncated backpropagation through time: exact within a window, nothing across its edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core.metrics import Metrics, add
from ..core.module import Objective, Phases, total_weight
from ..core.state import gradient
from .base import (
    Batching,
    Learner,
    Network,
    Row,
    Strategy,
    Update,
    choose_batching,
    evolve,
    input_of,
    score,
    scored,
    split_reset,
    trained,
    warm_up,
    zeros_like_parameters,
)
from .cadence import SEQUENCE, Cadence, Carry, UpdateEvery, check_cadence, check_length, over_tiles
from .flow import Flow, initial_values
from .rows import START, describe_window


@dataclass(frozen=True)
class TBPTT(Strategy):
    """Truncated BPTT (Williams and Peng 1990): windows of ``window`` time steps tile the whole sequence, warm-up
    included; hidden states cross a window's edge, gradients do not.

    A window as long as the sequence is BPTT. ``update_every``: "sequence", or a multiple of ``window`` scored time
    steps, where the warm-up is a multiple of ``window`` too. ``carry``: "carry" begins a sequence with the hidden
    states that the one before left.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.TBPTT(window=20, carry="carry"), max_steps=1000)
    """

    name: ClassVar[str] = "tbptt"
    window: int = 10
    update_every: UpdateEvery = "sequence"
    carry: Carry = "reset"
    batching: Batching = "auto"

    def __post_init__(self):
        super().__post_init__()
        check_cadence("TBPTT", self.update_every)
        if self.window < 1:
            raise ValueError(f"TBPTT(window={self.window!r}): expected a whole number of time steps, at least 1")
        if self.update_every != "sequence" and self.update_every % self.window:
            raise ValueError(
                f"TBPTT(window={self.window}, update_every={self.update_every}): an update comes at the end of a "
                "window, so update_every must be a multiple of it"
            )

    def bind(self, objective: Objective, example: Phases) -> Learner:
        warm, time, batch_size = example.sizes
        if self.window > warm + time:
            raise ValueError(
                f"TBPTT(window={self.window}): the sequence has only {warm + time} time steps; give a window of "
                f"{warm + time} or less, or use strategy='bptt'"
            )
        check_length("TBPTT", self.update_every, time)
        if self.update_every != "sequence" and warm % self.window:
            raise ValueError(
                f"TBPTT(window={self.window}, update_every={self.update_every}): updates within a sequence need a "
                f"warm-up of whole windows, and it has {warm} time steps; give a window that divides {warm}, or "
                "update_every='sequence'"
            )
        batching = choose_batching(self.batching, objective.model, input_of(objective, example), batch_size)
        cadence = Cadence(self.update_every, self.carry == "carry")
        network = Network(objective.model, batching)
        start = cadence == SEQUENCE and warm < self.window and any(initial_values(network, batch_size).values())
        learner = _Learner(objective, network, self.window, cadence, start)
        if self.window == warm + time:
            across = "; nothing goes back from one sequence to the one before" if cadence.carried else ""
            whole = f"the whole sequence of {self.window} time steps"
            learner.notes.append(f"tbptt: a window is {whole}, as in bptt{across}")
        return learner


class _Learner(Learner):
    def __init__(self, objective: Objective, network: Network, window: int, cadence: Cadence, start: bool):
        """``start``: differentiate what begins a sequence with its first window."""
        super().__init__(objective, network)
        self._start = start
        self._params = trained(objective)
        self._window, self._cadence, self.carried = window, cadence, cadence.carried

    def learn(self, phases: Phases, update: Update) -> Metrics:
        warm, _, batch = phases.sizes
        lead = warm % self._window
        if not (self.carried or self._start):
            self.restart(batch)
        if lead or self._start:
            return self._led(phases, lead, update)
        warm_up(self.objective, self.network, phases, self._reset)
        return self._cadence.drive(phases, self._gradients, update)

    def _led(self, phases: Phases, lead: int, update: Update) -> Metrics:
        """A sequence whose first window with a loss begins before the scored time steps."""
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
        """Of windows that lie among the scored time steps."""
        return over_tiles(sequences, self._window, self._gradient, zeros_like_parameters(self._params))

    def _gradient(self, sequences: Any, lead: Any = None) -> tuple[dict[str, Any], Metrics]:
        """Of one window, which may begin with time steps of the warm-up."""

        def loss():
            if lead is not None:
                if self._start:
                    self.restart(jax.tree.leaves(sequences)[0].shape[1])
                self._evolve(*lead)
            return score(self.objective, self.network, sequences, self._reset)

        return gradient(loss, self._params)()

    def report(self, phases: Phases) -> list[Row]:
        start = "" if self._start else f"{START}; a window of tbptt must be longer than the warm-up"
        flow, again = Flow.of(self, phases), phases.reset is not None
        return describe_window(self._params, flow, self._window, "a window", start, again)
