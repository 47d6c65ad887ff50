"""A running sum or mean of a network's outputs, for one loss per sequence."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp


class Running(brainstate.nn.Module):
    """A network whose output is the sum (or the mean) of its outputs since the start of the sequence.

    With a loss at the last time step only (``ArrayDataset(scored=1)``, ``bucket(scored=1)``, or weights), the loss of a
    sequence is that of its summed or mean output. The sum is a hidden state, so online rules credit earlier time steps
    through it under ``readout_memory=True``.

    Example::

        model = Running(Network(784, 10), 10)

    Args:
        network: One time step, ``(B, ...) -> (B, size)``.
        size: Size of the output.
        mean: Divide the sum by the number of time steps so far.
    """

    def __init__(self, network: brainstate.nn.Module, size: int, *, mean: bool = False):
        super().__init__()
        self.network, self._size, self._mean = network, size, mean

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        """Create the sum, zeros for ``batch_size`` sequences."""
        lead = () if batch_size is None else (batch_size,)
        self.total = brainstate.HiddenState(jnp.zeros((*lead, self._size), jnp.float32))
        if self._mean:
            self.steps = brainstate.ShortTermState(jnp.zeros((*lead, 1), jnp.float32))

    def update(self, x: Any) -> Any:
        """Advance the network by one time step.

        Args:
            x: Inputs, ``(B, ...)``.

        Returns:
            The sum or the mean of the outputs so far, ``(B, size)``.

        Raises:
            ValueError: The output of the network has another shape.
        """
        output = self.network(x)
        if jnp.shape(output) != jnp.shape(self.total.value):
            raise ValueError(f"Running: the output has shape {jnp.shape(output)}, but size={self._size} was given")
        self.total.value = self.total.value + output
        if not self._mean:
            return self.total.value
        self.steps.value = self.steps.value + 1
        return self.total.value / self.steps.value
