"""The copying task of the benchmarks: settings, batches, networks and the module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import brainpy.state
import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

import jaxtrain as jt
from jaxtrain.core.state import seeded

DEPTH, DIGITS = 10, 10
LR = 1e-3
cross_entropy = braintools.metric.softmax_cross_entropy_with_integer_labels
CELLS: dict[str, Callable[[int, int], Any]] = {
    "gru": braintrace.nn.GRUCell,
    "lstm": braintrace.nn.LSTMCell,
    "minigru": braintrace.nn.MiniGRU,
    "lru": braintrace.nn.LRUCell,
}


@dataclass(frozen=True)
class Setting:
    """A network, and the length and size of its batches. The last ``scored`` time steps have a loss."""

    cell: str = "gru"
    hidden: int = 128
    time: int = 70
    batch: int = 64
    scored: int = 10

    @property
    def warm(self) -> int:
        return self.time - self.scored

    def environ(self) -> dict[str, Any]:
        return {"dt": 1.0 * u.ms} if self.cell == "lif" else {}

    def context(self) -> AbstractContextManager[Any]:
        return brainstate.environ.context(**self.environ(), fit=True)

    def batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Batches of the copying task, ``(T, B)`` inputs and ``(scored, B)`` targets.

        If more time steps are scored than the task has digits, the targets are the last inputs.
        """
        digits = min(DIGITS, self.scored, self.time // 2)
        data = jt.datasets.CopyDataset(self.time - 2 * digits, digits, self.batch)
        batches = [data.batch(step) for step in range(count)]
        return batches if self.scored == digits else [(ids, ids[self.warm :]) for ids, _ in batches]

    def encode(self, ids: Any) -> Any:
        return jax.nn.one_hot(ids, DEPTH)

    def model(self) -> Any:
        return make_model(self)


class Net(brainstate.nn.Module):
    """One time step, (B, inputs) -> (B, 10): a recurrent layer and a linear readout."""

    def __init__(self, cell: str, hidden: int, inputs: int = DEPTH):
        super().__init__()
        self.rnn = CELLS[cell](inputs, hidden)
        width = inputs if cell == "lru" else hidden  # the output of an LRU has the width of its input
        self.readout = braintrace.nn.Linear(width, DEPTH)

    def update(self, x):
        return self.readout(self.rnn(x))


class Spiking(brainstate.nn.Module):
    """Recurrent leaky integrate-and-fire neurons with a linear readout of their spikes."""

    def __init__(self, hidden: int):
        super().__init__()
        self.current = braintrace.nn.Linear(DEPTH + hidden, hidden)
        tau: Any = 20.0 * u.ms
        self.neurons = brainpy.state.LIF(hidden, tau=tau, spk_fun=braintools.surrogate.ReluGrad())
        self.readout = braintrace.nn.Linear(hidden, DEPTH)

    def update(self, x):
        spikes = self.neurons.get_spike()
        self.neurons(20.0 * self.current(jnp.concatenate([x, spikes], -1)) * u.mA)
        return self.readout(self.neurons.get_spike())


def make_model(setting: Setting) -> Any:
    with seeded(0), setting.context():
        return Spiking(setting.hidden) if setting.cell == "lif" else Net(setting.cell, setting.hidden)


class Copy(jt.Module):
    def __init__(self, setting: Setting):
        self.setting, self.environ = setting, setting.environ()

    def build(self):
        return self.setting.model()

    def learning_step(self, forward, x, y):
        logits = forward(x)
        return cross_entropy(logits, y), {"accuracy": logits.argmax(-1) == y}

    def configure_optimizer(self):
        return braintools.optim.Adam(LR)
