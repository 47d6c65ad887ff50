"""Networks for cognitive tasks: a GRU, leaky rate units and spiking units, with or without Dale's law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cognitive.tasks import CUES

if TYPE_CHECKING:
    from cogtask import Config

SPIKING = ("lif", "alif", "gif")


def signs_of(config: Config):
    """The sign of each unit under Dale's law, or None without it."""
    import numpy as np

    if not (config.network == "vanilla" if config.dale is None else config.dale):
        return None
    return np.where(np.arange(config.hidden) % 5 == 4, -1, 1)


def network(config: Config, n_in: int, n_out: int, steps: int, signs):
    """The network, one time step ``(B, n_in) -> (B, n_out)``. ``steps``: time steps of a trial."""
    import brainstate
    import braintools
    import braintrace
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxtrain as jt

    if config.network == "gru":
        return jt.nn.Network(n_in, n_out, cell="gru", hidden=config.hidden, chrono=max(steps, 3))

    n, spiking = config.hidden, config.network in SPIKING
    tau = config.tau or (20.0 if spiking else 100.0)
    keep, slow_keep = math.exp(-config.dt / tau), math.exp(-config.dt / config.tau_slow)
    strength = config.slow if config.slow is not None else {"alif": 0.03, "gif": 0.02}.get(config.network, 0.0)

    def initial(shape, **_):
        """Inputs drive a unit to about its threshold. Under Dale's law, excitation and inhibition cancel."""
        x, h = brainstate.random.normal(size=(n_in, n)), brainstate.random.normal(size=(n, n)) / math.sqrt(n)
        x = 1.5 * (1 - keep) * x if spiking and config.task != CUES else x / math.sqrt(n_in)  # analog, or spikes
        if signs is not None:
            h = jnp.abs(h) * (signs * np.where(signs < 0, 4.0, 1.0) / 2.5)[:, None]
        return jnp.concatenate([x, h])

    def outgoing(shape, **_):
        w = brainstate.random.normal(size=shape) / math.sqrt(n)
        return w if signs is None else jnp.abs(w) * signs[:, None]

    class Recurrent(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = braintrace.nn.Linear(n_in + n, n, w_init=initial)
            self.readout = braintrace.nn.Linear(n, n_out, w_init=outgoing)

    class Rate(Recurrent):
        """Leaky units with rectified rates: ``r <- keep r + (1 - keep) relu(W [x, r] + b)``."""

        rate: Any

        def init_state(self, batch_size=None, **_):
            self.rate = brainstate.HiddenState(zeros(batch_size))

        def update(self, x):
            drive = jax.nn.relu(self.recurrent(jnp.concatenate([x, self.rate.value], -1)))
            self.rate.value = keep * self.rate.value + (1 - keep) * drive
            return self.readout(self.rate.value)

    class Spiking(Recurrent):
        """Integrate-and-fire units with threshold 1 and soft reset, read through a filter of their spikes.

        Each spike increments a slow variable, which decays with ``tau_slow``. In every second ALIF unit it raises the
        threshold; in a GIF unit it is a depolarising current.
        """

        def init_state(self, batch_size=None, **_):
            self.voltage = brainstate.HiddenState(zeros(batch_size))
            self.trace = brainstate.HiddenState(zeros(batch_size))
            if strength:
                self.slow = brainstate.HiddenState(zeros(batch_size))

        def threshold(self):
            if config.network != "alif" or not strength:
                return 1.0
            return 1.0 + strength * (np.arange(n) % 2) * self.slow.value

        def get_spike(self) -> Any:
            return surrogate(self.voltage.value - self.threshold())

        def update(self, x):
            before = self.get_spike()
            voltage = keep * self.voltage.value + self.recurrent(jnp.concatenate([x, before], -1)) - before
            if config.network == "gif" and strength:
                voltage = voltage + strength * self.slow.value
            if strength:
                self.slow.value = slow_keep * self.slow.value + before
            self.voltage.value = voltage
            self.trace.value = keep * self.trace.value + (1 - keep) * self.get_spike()
            return self.readout(self.trace.value)

    def zeros(batch_size):
        return jnp.zeros((n,) if batch_size is None else (batch_size, n), jnp.float32)

    surrogate = braintools.surrogate.ReluGrad(alpha=0.3)
    return Spiking() if spiking else Rate()
