"""A recurrent network on arrays of your own.

python EXPERIMENT.py --help
python EXPERIMENT.py --strategy drtrl --data folder_of_x_and_y
python EXPERIMENT.py --strategy bptt --max-steps 5
jaxtrain inspect EXPERIMENT.py --strategy drtrl
jaxtrain compare EXPERIMENT.py --strategies drtrl,pp_prop --seeds 0-2

Change load() for other data, and Task for another loss or another network.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jaxtrain as jt
from jaxtrain import cli
from jaxtrain.cli.options import check_options


@dataclass(frozen=True)
class Config(cli.TrainingOptions, cli.NetworkOptions):
    """Sequences with a class or a number to predict. Each field is an option."""

    data: str = "."
    """folder with x.npy and y.npy; without these files, made-up arrays"""
    hidden: int = 64
    """units per layer"""
    max_steps: int = 500
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self)


def load(folder):
    """Inputs x (N, T, features), and targets y.

    One class per sequence: y is (N,), integers from 0. Numbers: y is (N, T, outputs).
    """
    import numpy as np

    files = [Path(folder) / "x.npy", Path(folder) / "y.npy"]
    if any(file.exists() for file in files):
        x, y = map(np.load, files)
    else:  # made-up: is the sum of the first feature positive?
        x = np.random.default_rng(0).normal(size=(1000, 20, 3))
        y = (x[:, :, 0].sum(axis=1) > 0).astype("int32")
    return x.astype("float32"), y


def make(config: Config):
    """The trainer, the model with its loss, and the data. Only this imports JAX."""
    import jax.numpy as jnp
    import numpy as np
    import optax

    x, y = load(config.data)
    classes = np.issubdtype(y.dtype, np.integer)
    time, outputs = x.shape[1], int(y.max()) + 1 if classes else y.shape[-1]

    class Task(jt.Module):
        def build(self):  # one time step: (batch, features) -> (batch, outputs)
            return config.network(x.shape[-1], outputs, memory=time)

        def learning_step(self, forward, x, y):  # one scored time step
            out = forward(x)
            if not classes:
                return jnp.square(out - y).mean(-1), {"mae": jnp.abs(out - y).mean(-1)}
            loss = optax.softmax_cross_entropy_with_integer_labels(out, y)
            return loss, {"accuracy": out.argmax(-1) == y}

        def configure_optimizer(self):
            return config.optimizer(memory=time)

        def group(self, name):
            return config.group(name)

    # Three fifths are trained on; the rest is for validation and for the test.
    order = np.random.default_rng(0).permutation(len(x))
    train, val, test = np.split(order, [len(x) * 3 // 5, len(x) * 4 // 5])
    batches = partial(jt.datasets.ArrayDataset, batch_size=config.batch_size, batch_first=True)
    if classes:  # scored at the last time step
        batches = partial(batches, scored=1)
    data = jt.DataModule(
        batches(x[train], y[train], seed=config.seed),
        batches(x[val], y[val], shuffle=False),
        batches(x[test], y[test], shuffle=False),
    )
    callbacks = config.callbacks()
    fit = jt.Fit(config.make_strategy(), callbacks=callbacks, **config.fit_options())
    return fit, Task(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make))
