"""Stretches of consecutive time steps of one phase, and what a module's step does with the model in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
from brainstate.transform import StatefulFunction

from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import SHORT, State
from .base import scored, split_reset
from .inputs import NeverCalled, input_in


class Stretch(NamedTuple):
    """Consecutive time steps of one phase.

    Attributes:
        learn: ``learn(forward, slices)`` runs one time step of the module.
        sequences: The slices of all time steps, ``(T, B, ...)``.
        masks: Reset masks ``(T, B)``, or None.
        is_scored: Whether the time steps have a loss.
    """

    learn: Callable[[Callable, Any], Any]
    sequences: Any
    masks: Any
    is_scored: bool

    @property
    def length(self) -> int:
        return jax.tree.leaves(self.sequences)[0].shape[0]

    def first(self) -> Any:
        """The slices of the first time step."""
        return jax.tree.map(lambda leaf: leaf[0], self.sequences)


def stretches_of(objective: Objective, phases: Phases) -> list[Stretch]:
    """The warm-up, if there is one, and the learning phase of a batch."""
    warm_masks, _ = split_reset(phases)
    warm = [] if phases.warmup is None else [warm_stretch(objective, phases.warmup, warm_masks)]
    return [*warm, scored_stretch(objective, scored(phases))]


def warm_stretch(objective: Objective, inputs: Any, masks: Any) -> Stretch:
    return Stretch(objective.warmup, inputs, masks, False)


def scored_stretch(objective: Objective, sequences: Any) -> Stretch:
    *slices, masks = sequences
    return Stretch(lambda forward, slices: objective.learn(forward, *slices), tuple(slices), masks, True)


@dataclass(frozen=True)
class Use:
    """How the steps of a module use the model.

    Attributes:
        once: Whether each time step calls ``forward`` once, always with inputs of the same tree, shapes and dtypes.
        inputs_from: States other than parameters that the inputs depend on, random numbers included.
        writes: Whether a module's step itself assigns short-term states.
        u: Shapes and dtypes of the input of a time step, if ``once``.
    """

    once: bool
    inputs_from: tuple[State, ...]
    writes: bool
    u: Any

    @property
    def inputs_known(self) -> bool:
        """Whether the inputs of all time steps are known before the first one."""
        return self.once and not self.inputs_from


def use_of(network: Callable, stretches: list[Stretch]) -> Use:
    """Trace one time step of each stretch. States keep their values.

    Args:
        network: The model over a batch.
        stretches: The stretches.
    """
    sources, writes, once, u, kind, out = dict[int, State](), False, True, None, None, None
    for stretch in stretches:
        slices = stretch.first()
        captured = StatefulFunction(lambda slices, s=stretch: input_in(s.learn, slices), return_only_write=False)
        try:
            captured.make_jaxpr(slices)
        except NeverCalled:
            return Use(False, (), False, None)
        sources |= {id(s): s for s in captured.get_states(slices) if not isinstance(s, brainstate.ParamState)}
        u = captured.get_out_shapes(slices)[0]
        before, kind = kind, (jax.tree.structure(u), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(u)])
        if kind != before:
            once = once and before is None
            out = StatefulFunction(network, return_only_write=False).make_jaxpr(u).get_out_shapes(u)[0]
        calls: list[Any] = []
        whole = StatefulFunction(partial(_learn, stretch.learn, out, calls), return_only_write=False)
        whole.make_jaxpr(slices)
        once = once and len(calls) == 1
        writes = writes or any(isinstance(state, SHORT) for state in whole.get_write_states(slices))
    return Use(once, tuple(sources.values()), writes, u)


def _learn(learn: Callable, out: Any, calls: list[Any], slices: Any) -> Any:
    """One time step with a model that returns zeros; its inputs are appended to ``calls``."""

    def forward(u: Any) -> Any:
        calls.append(u)
        return jax.tree.map(jnp.zeros_like, out)

    return learn(forward, slices)
