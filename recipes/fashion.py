"""Fashion-MNIST: ten kinds of clothing in images of 28 x 28 pixels, as spikes, rows, pixels or a direct current.

The Debian package dataset-fashion-mnist installs the four IDX files. `--data DIR` names another folder with such files,
compressed or not; those of MNIST have the same names and the same form.

python recipes/fashion.py --preset neurotrain --strategy pp_prop
python recipes/fashion.py --preset neurotrain --strategy readout_only
python recipes/fashion.py --preset rows
python recipes/fashion.py --preset direct
python recipes/fashion.py --preset stream
"""

import math
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

from images.idx import CLASSES, load

from jaxtrain import cli
from jaxtrain.cli.options import TrainingOptions, check_options, streamed, time_steps_of
from jaxtrain.errors import ConfigError

DATA = "/usr/share/datasets/fashion-mnist"
HELD_OUT = 12
"""One part of so many of the training images is the validation set: the first 5,000 of 60,000."""
CHANCE = {"accuracy": 1 / CLASSES, "loss": math.log(CLASSES)}


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Fashion-MNIST: ten kinds of clothing."""

    data: str = DATA
    """folder of the IDX files; default: where the Debian package dataset-fashion-mnist puts them"""
    input: Literal["rate", "latency", "direct", "rows", "pixels"] = "rate"
    """how an image becomes a sequence: Bernoulli spikes, one spike per pixel, a constant current, a row or a pixel per
    time step"""
    steps: int = 10
    """time steps of an image with --input rate, latency or direct"""
    network: Literal["lif", "alif", "gru", "lru"] = "lif"
    """the recurrent layer: spiking neurons, without or with adaptive thresholds, or a cell of jaxtrain.nn.Network"""
    hidden: int = 256
    """units of the recurrent layer"""
    tau: float = 10.0
    """time constant of the membranes and of the leaky readout of lif and alif, in time steps"""
    gain: float = 5.0
    """factor of the current into lif and alif"""
    width: int | None = None
    """gru, lru: units of a linear encoder before the recurrent layer, and of an LRU's output; none: no encoder"""
    mlp: int = 0
    """gru, lru: units of a residual MLP after the recurrent layer; 0: none"""
    scored: int | None = None
    """time steps of an image that have a loss, the last ones; none: all"""
    decide: Literal["sum", "last"] = "sum"
    """scores that decide: their sum over the scored time steps, or the last ones"""
    shift: int = 0
    """largest random shift of a training image, in pixels"""
    flip: bool = False
    """mirror half of the training images"""
    stream: bool = False
    """rows: every sequence of a training batch continues that of the batch before, an endless stream of images that
    begin at different times; online rules make an update at every time step"""
    batch_size: int = 128
    """images per batch"""
    lr: float = 2e-3
    """learning rate of Adam"""
    decay: Literal["constant", "cosine"] = "cosine"
    """learning rate after the warm-up: cosine decays to zero at the last step"""
    epochs: int = 5
    """passes over the training images"""
    max_steps: int = 0
    """train steps, one batch each; 0: as many as --epochs has"""
    validate_every: int | str | None = "1ep"
    """steps between validations, or a period such as 1ep"""
    checkpoint_every: int | str = "1ep"
    """steps between checkpoints, or a period such as 1ep; the best two by val/loss are kept as well"""

    def __post_init__(self):
        check_options(self, counts=("steps", "hidden", "width", "scored", "epochs"), updates=self.max_steps or 2**31)
        spiking = self.network in ("lif", "alif")
        unused = {
            "tau": not spiking, "gain": not spiking, "width": spiking, "mlp": spiking,
            "steps": self.input in ("rows", "pixels"),
        }  # fmt: skip
        for field in fields(self):
            if unused.get(field.name) and getattr(self, field.name) != field.default:
                option = f"--{field.name.replace('_', '-')}"
                with_these = f"--network {self.network} --input {self.input}"
                raise ConfigError(f"{option} has no effect with {with_these}: leave it out")
        if self.stream and (self.input != "rows" or self.shift or self.decide != "last"):
            raise ConfigError("--stream: expected --input rows and --decide last, without --shift")
        for name in ("tau", "gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected a positive number")
        for name in ("mlp", "shift", "max_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 or more")

    def has_poles(self) -> bool:
        return self.network == "lru"


ROWS = {"input": "rows", "network": "lru"}
PRESETS = {
    "neurotrain": {"network": "lif", "input": "rate", "steps": 10, "hidden": 256, "epochs": 20,
                   "eprop": {"readout_memory": True}},
    "rows": {**ROWS, "hidden": 128, "width": 96, "mlp": 256, "scored": 1, "shift": 1, "flip": True, "lr": 4e-3,
             "epochs": 10},
    "direct": {"input": "direct", "steps": 2, "network": "gru", "hidden": 384, "width": 512, "mlp": 768, "scored": 1,
               "shift": 1, "flip": True, "lr": 1e-3, "batch_size": 256, "epochs": 30},
    "stream": {**ROWS, "stream": True, "hidden": 128, "mlp": 256, "scored": 2, "decide": "last", "epochs": 10},
}  # fmt: skip


def encoder_of(config: Config):
    """The encoder of an image ``(H, W)``, and the random changes of a training image."""
    import jax
    import jax.numpy as jnp

    from jaxtrain.datasets import Bernoulli, Latency, Pixels, Repeat, Rows

    def changed(image, key):
        where, mirror = jax.random.split(key)
        if config.shift:
            corner = jax.random.randint(where, (2,), 0, 2 * config.shift + 1)
            image = jax.lax.dynamic_slice(jnp.pad(image, config.shift), corner, image.shape)
        return jnp.where(config.flip & jax.random.bernoulli(mirror), image[:, ::-1], image)

    def flat(image, key):
        return image.reshape(-1)

    code = {
        "rate": (flat, Bernoulli(config.steps)), "latency": (flat, Latency(config.steps)),
        "direct": (flat, Repeat(config.steps)), "rows": (Rows(),), "pixels": (Pixels(),),
    }[config.input]  # fmt: skip
    return code, (changed,)


def spiking(config: Config, n_in: int):
    """Recurrent spiking neurons and a leaky readout that does not spike, one time step ``(B, n_in) -> (B, 10)``."""
    import brainpy.state
    import brainstate
    import braintools
    import braintrace
    import jax.numpy as jnp
    import saiunit as u

    n, tau, leak = config.hidden, config.tau * u.ms, math.exp(-1 / config.tau)

    class Spiking(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs, self.recurrent = braintrace.nn.Linear(n_in, n), braintrace.nn.Linear(n, n)
            kind = {"lif": brainpy.state.LIF, "alif": brainpy.state.ALIF}[config.network]
            self.neurons = kind(n, tau=tau, spk_fun=braintools.surrogate.ReluGrad())
            self.readout = braintrace.nn.Linear(n, CLASSES, b_init=None)

        def init_state(self, batch_size=None, **_):
            self.trace = brainstate.ShortTermState(
                jnp.zeros((n,) if batch_size is None else (batch_size, n), "float32")
            )

        def update(self, x):
            current = self.inputs(x) + self.recurrent(self.neurons.get_spike())
            self.neurons(config.gain * current * u.mA)
            # The leak before the weights gives the same scores as the leak of ten outputs. The weights then only read
            # hidden states, so the control `readout_only` can train them.
            self.trace.value = leak * self.trace.value + self.neurons.get_spike()
            return self.readout(self.trace.value)

    return Spiking()


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools
    import numpy as np
    import saiunit as u
    from images.stream import Stream

    import jaxtrain as jt
    from jaxtrain.core.one_program import in_one_program
    from jaxtrain.datasets import ArrayDataset
    from jaxtrain.nn.networks import Network, radii

    x, y, x_test, y_test = load(config.data)
    held_out = len(x) // HELD_OUT
    code, augment = encoder_of(config)
    batches = partial(ArrayDataset, batch_size=config.batch_size, scored=config.scored, seed=config.seed)
    n_in = {"rows": x.shape[2], "pixels": 1}.get(config.input, x[0].size)
    time = {"rows": x.shape[1], "pixels": x[0].size}.get(config.input, config.steps)
    scored, strategy = config.scored or time, config.make_strategy()
    if scored > time:
        raise ConfigError(f"--scored {config.scored}: an image has {time} time steps with --input {config.input}")
    if config.stream:
        strategy = streamed(strategy)
        train = Stream(x[held_out:], y[held_out:], config.batch_size, scored, config.flip, config.seed)
        has_loss = train.batch(0).weights.any(1)
    else:
        train = batches(x[held_out:], y[held_out:], encoder=(*augment, *code) if config.shift or config.flip else code)
        has_loss = np.ones(scored, bool)
    if not config.max_steps:
        config = replace(config, max_steps=config.epochs * len(train))
    each = time_steps_of(strategy, len(has_loss))
    updates = int(np.logical_or.reduceat(has_loss, range(0, len(has_loss), each)).sum())  # in each batch

    class Classify(jt.Module):
        environ = {"dt": 1.0 * u.ms}

        def build(self):
            if config.network in ("lif", "alif"):
                return spiking(config, n_in)
            r_min, r_max = radii(time)
            return in_one_program(partial(
                Network, n_in, CLASSES, cell=config.network, hidden=config.hidden, width=config.width, mlp=config.mlp,
                r_min=r_min, r_max=r_max,
            ))  # fmt: skip

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, 10)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            return loss, {"accuracy": jt.metrics.Accuracy(logits, y, decide=config.decide)}

        def configure_optimizer(self):
            return config.optimizer(time, lambda: config.max_steps * updates)

        def group(self, name):
            return config.group(name)

    data = jt.DataModule(
        train,
        batches(x[:held_out], y[:held_out], encoder=code, shuffle=False),
        batches(x_test, y_test, encoder=code, shuffle=False),
    )
    fit = jt.Fit(strategy, callbacks=config.callbacks(), **config.fit_options())
    return fit, Classify(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS, chance=CHANCE))
