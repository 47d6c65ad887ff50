"""Initial hidden states that parameters determine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from ...core.functional import pure
from ...core.state import State, differentiable

Pull = Callable[[dict[str, Any]], dict[str, Any]]
"""A function from cotangents of hidden states, by name, to gradients of parameters."""


class Starts:
    """The trained parameters that determine initial hidden states, by name."""

    def __init__(self, parameters: Mapping[str, State]):
        self.parameters = parameters

    def values(self) -> dict[str, Any]:
        """Their values, by name."""
        return {name: state.value for name, state in self.parameters.items()}

    @contextmanager
    def replaced(self, values: dict[str, Any]) -> Iterator[None]:
        """Temporarily replace their values."""
        before = self.values()
        for name, value in values.items():
            self.parameters[name].value = value
        try:
            yield
        finally:
            for name, value in before.items():
                self.parameters[name].value = value

    def begin(self, restart: Callable[[], None], hidden: Mapping[str, State]) -> Pull:
        """Restart a sequence.

        Args:
            restart: Sets all States to their values at the beginning of a sequence.
            hidden: The hidden states whose initial values receive credit.

        Returns:
            The function that backpropagates cotangents of initial states to the parameters.
        """
        if not self.parameters:
            restart()
            return lambda entry: {}
        states, call = pure(restart)
        before, place = [state.value for state in states], {id(state): i for i, state in enumerate(states)}
        started = {n: s for n, s in hidden.items() if id(s) in place and differentiable(s.value)}

        def restarted(starts: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
            now = list(before)
            for name, value in starts.items():
                now[place[id(self.parameters[name])]] = value
            new, _ = call(now)
            return {name: new[place[id(state)]] for name, state in started.items()}, new

        initial, pull, new = jax.vjp(restarted, self.values(), has_aux=True)
        for state, value in zip(states, new, strict=True):
            state.value = value

        def back(entry: dict[str, Any]) -> dict[str, Any]:
            given = {n: jax.tree.leaves(entry[n]) for n in initial if n in entry}
            zeros = jax.tree.map(jax.numpy.zeros_like, initial)
            return pull(zeros | {n: jax.tree.unflatten(jax.tree.structure(initial[n]), given[n]) for n in given})[0]

        return back
