"""Cognitive tasks of neuroscience: the 26 tasks of `braintools.cogtask`, and the cue accumulation of e-prop's paper.

A trial ends in a decision period. The loss is that of the decision period, and the decision of a trial is the answer
with the largest sum of scores over it. `docs/cognitive_tasks.md` has a table of all tasks.

python recipes/cogtask.py --task DelayMatchSample --network gru
python recipes/cogtask.py --task ContextDecisionMaking --network vanilla     # rate units under Dale's law
python recipes/cogtask.py --preset evidence                                  # ALIF units accumulate left and right cues
python recipes/cogtask.py --preset dms --strategy pp_prop
python recipes/cogtask.py --preset context
"""

import difflib
import math
import sys
from dataclasses import dataclass
from typing import Literal

from cognitive.networks import network, signs_of
from cognitive.tasks import CUES, TASKS, TIMING, VECTOR, Trials, make_task

from jaxtrain import cli
from jaxtrain.cli import TrainingOptions, check_options
from jaxtrain.errors import ConfigError

TOLERANCE = 0.1
"""A timed response is right if its interval differs from the asked one by at most this fraction."""


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Cognitive tasks: one decision per trial."""

    task: str = "ContextDecisionMaking"
    """name of the task; a wrong name lists the closest ones, docs/cognitive_tasks.md lists all"""
    network: Literal["gru", "vanilla", "lif", "alif", "gif"] = "gru"
    """gru; vanilla: leaky rate units; lif, alif, gif: spiking units, the last two with a slow variable"""
    hidden: int = 64
    """number of units"""
    dt: float = 20.0
    """time step in ms"""
    dale: bool | None = None
    """Dale's law, four excitatory units to one inhibitory unit; none: for vanilla only"""
    tau: float | None = None
    """time constant of a unit in ms; none: 100 for vanilla, 20 for spiking units"""
    tau_slow: float = 2000.0
    """time constant of the slow variable of alif and gif in ms"""
    slow: float | None = None
    """effect of a spike on the slow variable, relative to the threshold; none: 0.03 for alif, 0.02 for gif"""
    val_trials: int = 512
    """trials of a validation; the test has four times as many"""
    validate_every: int | str | None = 50
    """steps between validations and figures"""
    max_steps: int = 500
    """train steps, one batch each"""

    def __post_init__(self):
        check_options(self, counts=("hidden", "val_trials"))
        if self.task not in TASKS:
            near = difflib.get_close_matches(self.task.lower(), {name.lower(): name for name in TASKS}, 3, 0.5)
            close = [name for low in near for name in TASKS if name.lower() == low]
            known = f"did you mean {', '.join(close)}?" if close else f"expected one of {', '.join(TASKS)}"
            raise ConfigError(f"--task {self.task}: unknown; {known}")
        for name in ("dt", "tau", "tau_slow"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected a positive number of ms")
        if self.network == "gru" and (self.dale or self.tau is not None):
            given = "dale" if self.dale else "tau"
            raise ConfigError(
                f"--{given} does not apply to --network gru, whose gates mix signs and times; leave it out"
            )
        for name, default in (("slow", None), ("tau_slow", type(self).tau_slow)):
            if (value := getattr(self, name)) != default and self.network not in ("alif", "gif"):
                flag = f"--{name.replace('_', '-')} {value}"
                raise ConfigError(f"{flag}: --network {self.network} has no slow variable; use alif or gif")


PRESETS = {
    "evidence": {
        "task": CUES, "network": "alif", "hidden": 100, "dt": 5.0, "batch_size": 64, "lr": 5e-3, "decay": "cosine",
        "max_steps": 300,
    },
    "dms": {
        "task": "DelayMatchSample", "network": "gif", "hidden": 100, "dt": 10.0, "lr": 5e-3, "decay": "cosine",
        "max_steps": 300, "pp_prop": {"decay": 0.99},
    },
    "context": {
        "task": "ContextDecisionMaking", "network": "gru", "hidden": 100, "lr": 1e-2, "decay": "cosine",
        "max_steps": 400,
    },
}  # fmt: skip


def make(config: Config):
    """Create Fit, module and data. JAX is imported here, so that --help does not load it."""
    import braintools
    import jax
    import jax.numpy as jnp
    import saiunit as u

    import jaxtrain as jt

    task = make_task(config.task, config.dt, config.seed)
    counts = (None, config.val_trials, 4 * config.val_trials)
    data = jt.DataModule(*(Trials(config, task, split, count) for split, count in enumerate(counts)))
    n_in, n_out = task.num_inputs, 2 if config.task in TIMING else task.num_outputs
    steps = task.max_trial_duration()
    signs, dale = signs_of(config), jt.projections.dale
    laws = {}
    if signs is not None:
        laws = {"recurrent.weight": dale(signs, rows=slice(n_in, None)), "readout.weight": dale(signs)}

    class Decide(jt.Module):
        environ = {"dt": config.dt * u.ms}

        def build(self):
            return network(config, n_in, n_out, steps, signs)

        def learning_step(self, forward, x, y):
            outputs = forward(x)
            if config.task in VECTOR:
                angles = 2 * jnp.pi * jnp.arange(8) / 8
                templates = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
                loss = jnp.square(outputs - y).sum(-1)
                return loss, {"accuracy": accuracy(outputs[:, 1:] @ templates, (y[:, 1:] @ templates).argmax(-1))}
            loss = braintools.metric.softmax_cross_entropy_with_integer_labels(outputs, y)
            if config.task in TIMING:
                timed = jnp.stack([outputs[:, 1] - outputs[:, 0], y.astype(outputs.dtype)], -1)
                return loss, {"accuracy": jt.metrics.Accuracy(timed, jnp.ones_like(y), decide=on_time)}
            scores = jax.nn.log_softmax(outputs)
            if config.task != "PostDecisionWager":
                return loss, {"accuracy": accuracy(scores, y)}
            choice = y < 3
            return loss, {"accuracy": accuracy(scores, y, choice), "wager": accuracy(scores, y, ~choice)}

        def configure_optimizer(self):
            return config.optimizer(steps)

    class UnderDalesLaw(Decide):
        def project(self, name, value):
            return {**value, "weight": laws[name](value["weight"])}

    def accuracy(scores, y, weight=1.0):
        return jt.metrics.Accuracy(scores, y, decide="sum", weight=weight)

    def on_time(outputs, weights):
        """Whether the first time step with a score for "go" is near the true one. ``(T, B, 2) -> (B, 2)``: no, yes."""
        begins = (weights > 0).argmax(0)
        first = lambda go: jnp.where(go.any(0), go.argmax(0), len(go)) - begins  # noqa: E731
        said, true = (first((outputs[..., i] > 0) & (weights > 0)) for i in range(2))
        right = jnp.abs(said - true) <= TOLERANCE * true
        return jnp.stack([~right, right], -1).astype(outputs.dtype)

    fit = jt.Fit(config.make_strategy(), callbacks=config.callbacks(), **config.fit_options())
    return fit, UnderDalesLaw() if laws else Decide(), data


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS))
