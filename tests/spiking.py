"""A recipe: LIF units, with recurrent weights or without, that a leaky readout listens to."""

import sys
from dataclasses import dataclass

from jaxtrain import cli
from jaxtrain.cli.options import TrainingOptions


@dataclass(frozen=True)
class Config(TrainingOptions):
    """LIF units and a leaky readout."""

    recurrent: bool = False
    """whether spikes come back by weights"""
    hidden: int = 16
    """units"""
    time: int = 30
    """time steps of a sequence"""


def make(config: Config):
    import brainpy.state as bp
    import brainstate
    import braintools
    import braintrace
    import jax.numpy as jnp
    import numpy as np
    import saiunit as u

    import jaxtrain as jt

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = bp.LIF(
                config.hidden, tau=20.0 * u.ms, V_rest=0.0 * u.mV, V_th=1.0 * u.mV, V_reset=0.0 * u.mV, R=1.0 * u.ohm,
                V_initializer=braintools.init.ZeroInit(unit=u.mV),
            )  # fmt: skip
            self.synapse = braintrace.nn.Linear(
                4 + config.hidden * config.recurrent, config.hidden, b_init=braintools.init.Constant(2.0 * u.mA),
                w_init=braintools.init.KaimingNormal(scale=20.0, unit=u.mA),
            )  # fmt: skip
            self.readout = braintrace.nn.LeakyRateReadout(config.hidden, 3, tau=10.0 * u.ms)

        def update(self, x):
            given = jnp.concatenate([x, self.neuron.get_spike()], -1) if config.recurrent else x
            return self.readout(self.neuron(self.synapse(given)))

    class Listen(jt.Module):
        environ = {"dt": 1.0 * u.ms}

        def build(self):
            return Net()

        def learning_step(self, forward, x, y):
            return braintools.metric.softmax_cross_entropy_with_integer_labels(forward(x), y)

        def configure_optimizer(self):
            return braintools.optim.Adam(config.lr or 1e-3)

    class Noise:
        def batch(self, step: int):
            rng = np.random.default_rng((config.seed, step))
            shape = config.time, config.batch_size
            return rng.normal(size=(*shape, 4)).astype(np.float32), rng.integers(0, 3, shape).astype(np.int32)

    fit = jt.Fit(config.make_strategy(), **config.fit_options())
    return fit, Listen(), jt.DataModule(Noise())


if __name__ == "__main__":
    sys.exit(cli.main(Config, make))
