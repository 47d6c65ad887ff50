"""Random sequences with one of ten classes at every time step, and the networks that classify them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import brainpy.state
import brainstate
import braintrace
import jax.numpy as jnp
import numpy as np
import saiunit as u
from copy_task import Copy, Setting
from copy_task import Net as Cell

import jaxtrain as jt
from jaxtrain.core.state import seeded

CLASSES = 10
NEURONS = {"lif": brainpy.state.LIF, "alif": brainpy.state.ALIF}


@dataclass(frozen=True)
class Sequences(Setting):
    """A network, and random sequences in which every time step is scored."""

    inputs: int = 64
    leaky: bool = True
    """whether the readout of spiking neurons is leaky"""

    def environ(self) -> dict[str, Any]:
        return {"dt": 1.0 * u.ms} if self.cell in NEURONS else {}

    def batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Batches of inputs ``(T, B, inputs)``, of which 30 % are 1 and the others 0, and classes ``(T, B)``."""
        rng, shape = np.random.default_rng(0), (self.time, self.batch)
        ones = [(rng.random((*shape, self.inputs)) < 0.3).astype("float32") for _ in range(count)]
        return [(x, rng.integers(0, CLASSES, shape, dtype="int32")) for x in ones]

    def encode(self, x: Any) -> Any:
        return jnp.asarray(x)

    def model(self) -> Any:
        with seeded(0), self.context():
            if self.cell in NEURONS:
                return Spiking(self.cell, self.hidden, self.inputs, self.leaky)
            return Cell(self.cell, self.hidden, self.inputs)


class Spiking(brainstate.nn.Module):
    """Recurrent spiking neurons with a leaky or a linear readout, (B, inputs) -> (B, 10)."""

    def __init__(self, cell: str, hidden: int, inputs: int, leaky: bool):
        super().__init__()
        tau: Any = 10.0 * u.ms
        self.current = braintrace.nn.Linear(inputs + hidden, hidden)
        self.neurons: Any = NEURONS[cell](hidden, tau=tau, V_reset=0.0 * u.mV, spk_reset="soft")
        leak = braintrace.nn.LeakyRateReadout
        self.readout: Any = leak(hidden, CLASSES, tau=tau) if leaky else braintrace.nn.Linear(hidden, CLASSES)

    def update(self, x):
        spikes = self.neurons.get_spike()
        self.neurons(10.0 * self.current(jnp.concatenate([x, spikes], -1)) * u.mA)
        return self.readout(self.neurons.get_spike())


class Rewarded(Copy):
    """The module of a setting with a reward at every scored time step, as ``three_factor`` needs it."""

    def phases(self, batch: Any, /) -> jt.Phases:
        phases = super().phases(batch)
        return replace(phases, extras={"reward": jnp.where(phases.targets % 2 == 0, 1.0, -1.0)})

    def learning_step(self, forward, x, y, reward):
        return super().learning_step(forward, x, y)
