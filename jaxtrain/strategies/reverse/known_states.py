"""The States whose values the forward pass keeps, and functions of given values of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate

from ...core.functional import pure
from ...core.objective import Objective
from ...core.state import differentiable, long_term_states
from ..base import trained
from ..network import Network
from .detached_step import DetachedStep
from .starts import Starts


class KnownStates:
    """The States of a model at the start of each time step.

    Args:
        objective: The module, with its model and its loss.
        network: The model over a batch.
        step: The detached time step.
        starts: The trained parameters that determine initial states.
        credits_readouts: Whether the rule's recursion also holds cotangents of readout memory.
        memory: Whether credit passes back through readout memory.

    Attributes:
        trained: The trained parameters, by name.
        traced: Hidden states with a trace, by name.
        credited: Hidden states whose cotangents the rule's recursion holds, by name.
        memory: Readout memory through which credit passes, by name.
    """

    def __init__(self, objective: Objective, network: Network, step: DetachedStep, starts: Starts, *,
                 credits_readouts: bool, memory: bool):  # fmt: skip
        self.starts = starts
        self.trained, self._hidden = trained(objective), network.hidden
        self.traced = {name: network.hidden[name] for name in step.traced}
        self.credited = {name: network.hidden[name] for name in (step.credited if credits_readouts else step.traced)}
        rest = {name: state for name, state in network.hidden.items() if name not in self.traced}
        self.memory = rest if memory else {}
        others = [] if memory else rest.values()
        self._others = [*others, *long_term_states(objective.model).values(), brainstate.random.DEFAULT]

    def values(self) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        """The values of the credited states, of the readout memory and of all others that a time step reads."""
        hidden, memory = ({name: state.value for name, state in own.items()} for own in (self.credited, self.memory))
        return hidden, memory, [state.value for state in self._others]

    def differentiable_memory(self) -> dict[str, Any]:
        """Values of the readout memory, by name, without counters and flags."""
        return {name: state.value for name, state in self.memory.items() if differentiable(state.value)}

    def memory_note(self, *, within_segment: bool) -> str:
        """A line about the readout memory for the report."""
        if not (names := self.differentiable_memory()):
            return "readout_memory: the model has none, so the option has no effect"
        return (
            f"readout_memory: credit passes{' within a segment' if within_segment else ''} through {', '.join(names)}"
        )

    def parameters(self) -> dict[str, Any]:
        """Values of the trained parameters, by name."""
        return {name: state.value for name, state in self.trained.items()}

    def stateless(self, run: Callable, *example: Any) -> Callable:
        """``run(*args)`` from given values of the States.

        Returns:
            ``call(params, hidden, memory, others, *args) -> (memory, result)``. States without a value keep theirs.
        """
        states, call = pure(run, *example)
        place = {id(state): i for i, state in enumerate(states)}

        def one(params: dict[str, Any], hidden: dict[str, Any], memory: dict[str, Any], others: list[Any] | None,
                *args: Any) -> Any:  # fmt: skip
            given = {id(self.trained[name]): value for name, value in params.items()}
            given |= {id(self._hidden[name]): value for name, value in (memory | hidden).items()}
            if others is not None:
                given |= {id(state): value for state, value in zip(self._others, others, strict=True)}
            new, result = call([given.get(id(state), state.value) for state in states], *args)
            own = {name: place.get(id(self._hidden[name])) for name in memory}
            return {name: memory[name] if k is None else new[k] for name, k in own.items()}, result

        return one
