"""Recorded spikes or events in HDF5 files: Spiking Heidelberg Digits, Spiking Speech Commands, N-MNIST.

Nothing is downloaded; `--data FILE` names the file of the training recordings. Two layouts are read:

- SHD and SSC (Cramer et al. 2020; as tonic reads them): `spikes/times` in seconds and `spikes/units`, one array for
  each recording, and `labels`. The test recordings are in the file of the same name with "test" for "train", such as
  shd_test.h5, unless `--test-data FILE` is given. A file with "valid" for "train" (SSC has one) is the validation set;
  without it, every tenth training recording is.
- N-MNIST (as torchneuromorphic converts it): a group `data/KEY` for each recording, with `times` in microseconds,
  `addrs` with the columns polarity, x and y, and `labels`; and `extra/train_keys`, `extra/test_keys`.

A recording is read and binned when a batch needs it, so a file may be larger than the memory. Reading needs the package
h5py (pip install "jaxtrain[shd]").

python recipes/shd.py --data shd_train.h5 --strategy pp_prop
python recipes/shd.py --data ssc_train.h5 --dt 10 --time 100 --pool 5 --neuron alif
python recipes/shd.py --data n_mnist.hdf5 --dt 3 --time 100 --pool 2
"""

import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtrain import cli
from jaxtrain.cli import TrainingOptions, check_options
from jaxtrain.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Recordings of spikes, classified by the scores of all time steps."""

    data: str | None = None
    """the HDF5 file of the training recordings"""
    test_data: str | None = None
    """the HDF5 file of the test recordings; none: named as --data, with "test" for "train", if it exists"""
    dt: float = 10.0
    """milliseconds of a time step"""
    time: int = 100
    """time steps; later events are left out"""
    channels: int = 700
    """channels of a recording of SHD or SSC"""
    pool: int = 5
    """neighbouring channels whose events are summed; in N-MNIST, along both axes"""
    neuron: Literal["lif", "alif"] = "lif"
    """leaky integrate-and-fire neurons, or ones whose threshold adapts"""
    tau: float = 20.0
    """time constant of neurons and readout, in milliseconds"""
    tau_a: float = 200.0
    """time constant of the threshold of alif neurons, in milliseconds"""
    hidden: int = 256
    """neurons"""
    lr: float = 1e-3
    """learning rate of Adam"""

    def __post_init__(self):
        check_options(self, counts=("time", "channels", "pool", "hidden"))
        for name in ("dt", "tau", "tau_a"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected a positive number of milliseconds")
        if self.neuron == "lif" and self.tau_a != type(self).tau_a:
            raise ConfigError(f"--tau-a {self.tau_a}: lif neurons have no threshold that adapts; add --neuron alif")


SIDE = 34
"""Pixels of N-MNIST's sensor along each axis."""


class Spikes:
    """A file in the layout of SHD and SSC."""

    def __init__(self, path: Path, file: Any, config: Config):
        self.path, self.pool, self.limit = path, config.pool, config.channels
        self.times, self.units, self.labels = (
            get(path, file, key) for key in ("spikes/times", "spikes/units", "labels")
        )
        counts = [len(one) for one in (self.times, self.units, self.labels)]
        if len(set(counts)) > 1:
            raise ConfigError(
                f"{path}: spikes/times, spikes/units and labels hold {counts[0]}, {counts[1]} and {counts[2]} "
                "recordings; expected one number"
            )
        self.labels, self.channels = self.labels[:], -(-config.channels // config.pool)

    def events(self, number: int) -> "tuple[np.ndarray, np.ndarray]":
        """Times in seconds and pooled channels of a recording."""
        units = self.units[number].astype("i8")
        if (wrong := units[(units < 0) | (units >= self.limit)]).size:
            raise ConfigError(
                f"{self.path}: recording {number} has unit {wrong[0]}; expected 0 to {self.limit - 1} "
                f"(--channels {self.limit})"
            )
        return self.times[number].astype("f8"), units // self.pool


class Pixels:
    """Some recordings of a file in the layout of N-MNIST: those whose keys ``extra`` lists for ``part``."""

    def __init__(self, path: Path, file: Any, config: Config, part: str):
        self.path, self.pool, self.side = path, config.pool, -(-SIDE // config.pool)
        keys = get(path, file, f"extra/{part}_keys")[:]
        self.groups = [get(path, file, f"data/{key}") for key in keys]
        self.labels, self.channels = [get(path, one, "labels")[()] for one in self.groups], 2 * self.side**2

    def events(self, number: int) -> "tuple[np.ndarray, np.ndarray]":
        """Times in seconds and pooled channels of a recording."""
        import numpy as np

        times, addrs = (get(self.path, self.groups[number], key)[:] for key in ("times", "addrs"))
        most = np.array([1, SIDE - 1, SIDE - 1])
        if addrs.shape[1:] != (3,) or (addrs > most).any():
            raise ConfigError(
                f"{self.path}: addrs of {self.groups[number].name} are {addrs.shape} up to {addrs.max(0)}; expected "
                f"the columns polarity, x and y up to {most}"
            )
        polarity, x, y = addrs.astype("i8").T
        return times / 1e6, (polarity * self.side + y // self.pool) * self.side + x // self.pool


class Binned:
    """Recordings as items ``(counts (T, channels), class)``, each of which is read when it is asked for."""

    def __init__(self, recordings: Spikes | Pixels, rows: Any, config: Config):
        self.recordings, self.rows, self.config = recordings, rows, config

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> "tuple[np.ndarray, np.int32]":
        import numpy as np

        row, steps, channels = int(self.rows[index]), self.config.time, self.recordings.channels
        times, at = self.recordings.events(row)
        if len(times) != len(at):
            raise ConfigError(
                f"{self.recordings.path}: recording {row} has {len(times)} times and {len(at)} channels; expected "
                "one number"
            )
        begins = np.arange(steps + 1) * self.config.dt / 1e3
        step = np.searchsorted(begins, times, side="right") - 1
        kept = (step >= 0) & (step < steps)
        counts = np.bincount(step[kept] * channels + at[kept], minlength=steps * channels)
        return counts.reshape(steps, channels).astype("f4"), np.int32(self.recordings.labels[row])


def get(path: Path, group: Any, key: str) -> Any:
    """A data set or a group of a file."""
    if key not in group:
        raise ConfigError(f"{path} has no {group.name.rstrip('/')}/{key}; it has {', '.join(group) or 'nothing'} there")
    return group[key]


def opened(path: Path) -> Any:
    """An HDF5 file, which stays open."""
    try:
        import h5py
    except ImportError:
        raise ConfigError('the package h5py is not installed: pip install "jaxtrain[shd]"') from None
    try:
        return h5py.File(path, "r")
    except OSError as error:  # of h5py, whose text is that of its library
        reason = os.strerror(error.errno) if error.errno else "it is no HDF5 file"
        raise ConfigError(f"{path} cannot be read: {reason}") from None


def recordings_of(config: Config) -> "tuple[Spikes | Pixels, Spikes | Pixels | None, Spikes | Pixels | None]":
    """The recordings for training, for validation and for the test, as far as there are files of them."""
    if config.data is None:
        raise ConfigError("--data: expected the HDF5 file of the training recordings, such as shd_train.h5")
    path = Path(config.data).expanduser()
    file = opened(path)
    if "extra/train_keys" in file:
        if config.test_data is not None:
            raise ConfigError(f"--test-data: {path} holds the test recordings as well; leave it out")
        if config.channels != type(config).channels:
            raise ConfigError(f"--channels {config.channels}: {path} has the pixels of a sensor; leave it out")
        return Pixels(path, file, config, "train"), None, Pixels(path, file, config, "test")

    def other(part: str) -> Spikes | None:
        near = path.with_name(path.name.replace("train", part))
        return Spikes(near, opened(near), config) if near != path and near.exists() else None

    if config.test_data is None:
        test = other("test")
    else:
        given = Path(config.test_data).expanduser()
        test = Spikes(given, opened(given), config)
    return Spikes(path, file, config), other("valid"), test


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import brainpy.state
    import brainstate
    import braintools
    import braintrace
    import jax.numpy as jnp
    import numpy as np
    import saiunit as u

    import jaxtrain as jt
    from jaxtrain.datasets import ArrayDataset

    train, val, test = recordings_of(config)
    labels = np.asarray(train.labels)
    classes, tenth = int(labels.max()) + 1, np.arange(len(labels)) % 10 == 0
    for part in filter(None, (val, test)):
        if (most := int(np.max(part.labels))) >= classes:
            raise ConfigError(f"{part.path} has label {most}; the labels of {train.path} end at {classes - 1}")

    class Spiking(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            options: dict[str, Any] = {"tau": config.tau * u.ms, "spk_fun": braintools.surrogate.ReluGrad()}
            self.current = braintrace.nn.Linear(train.channels + config.hidden, config.hidden)
            if config.neuron == "alif":
                options["tau_a"] = config.tau_a * u.ms
                self.neurons = brainpy.state.ALIF(config.hidden, **options)
            else:
                self.neurons = brainpy.state.LIF(config.hidden, **options)
            self.readout = braintrace.nn.Linear(config.hidden, classes)

        def init_state(self, batch_size=None, **_):
            shape = (config.hidden,) if batch_size is None else (batch_size, config.hidden)
            self.filtered = brainstate.HiddenState(jnp.zeros(shape, "f4"))  # spikes, low-pass filtered for the readout

        def update(self, x):
            self.neurons(20.0 * self.current(jnp.concatenate([x, self.neurons.get_spike()], -1)) * u.mA)
            self.filtered.value = math.exp(-config.dt / config.tau) * self.filtered.value + self.neurons.get_spike()
            return self.readout(self.filtered.value)

    class Classify(jt.Module):
        environ = {"dt": config.dt * u.ms}

        def build(self):
            return Spiking()

        def learning_step(self, forward, x, y):
            logits = forward(x)  # (B, classes)
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)  # (B,)
            rate = self.model.neurons.get_spike().mean(-1)  # spikes of a neuron in a time step
            return loss, {"accuracy": jt.metrics.Accuracy(logits, y, decide="sum"), "firing_rate": rate}

        def configure_optimizer(self):
            return config.optimizer(config.time)

    batches = partial(ArrayDataset, batch_size=config.batch_size, seed=config.seed)
    every = lambda part: Binned(part, np.arange(len(part.labels)), config)  # noqa: E731
    data = jt.DataModule(
        batches(every(train) if val is not None else Binned(train, np.flatnonzero(~tenth), config)),
        batches(every(val) if val is not None else Binned(train, np.flatnonzero(tenth), config), shuffle=False),
        None if test is None else batches(every(test), shuffle=False),
    )
    fit = jt.Fit(config.make_strategy(), callbacks=config.callbacks(), **config.fit_options())
    return fit, Classify(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make))
