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
from typing import Any, Literal

from jaxtrain import cli
from jaxtrain.cli.options import TrainingOptions, check_options
from jaxtrain.errors import ConfigError

CUES = "CueAccumulation"
TASKS = {
    "PerceptualDecisionMaking": "which of two directions a noisy stimulus has",
    "PerceptualDecisionMakingDelayResponse": "the same, after a delay",
    "ContextDecisionMaking": "the direction in the modality that a cue named before",
    "SingleContextDecisionMaking": "the direction in the first of two modalities",
    "PulseDecisionMaking": "the side with the larger sum of seven graded pulses",
    "MultiSensoryIntegration": "the direction that two noisy modalities share",
    "EconomicDecisionMaking": "the offer of the greater value: juice A is worth 2.2 drops of juice B",
    "DelayMatchSample": "whether a test stimulus equals the sample before the delay",
    "DualDelayMatchSample": "which of two samples the test stimulus equals",
    "DelayComparison": "whether the second of two magnitudes is larger",
    "DelayMatchCategory": "whether sample and test have the same category",
    "DelayPairedAssociation": "the associate of the sample, one of four",
    "GoNoGo": "whether to respond, by a cue before the delay",
    "IntervalDiscrimination": "which of two intervals is longer",
    "PostDecisionWager": "the direction of a noisy stimulus (accuracy), then a high or a low bet (wager)",
    "ReadySetGo": "when to go: after the interval between two cues",
    "DelayDirectionReproduction": "the direction of the sample, as a vector, after a delay",
    "ImmediateDirectionReproduction": "the direction of the stimulus, as a vector",
    "DelayDirectionClassification": "the half of the circle with the sample's direction, after a delay",
    "ImmediateDirectionClassification": "the half of the circle with the stimulus's direction",
    "OneTwoThreeGo": "when to go: one interval after the third of three pulses",
    "HierarchicalReasoning": "the side of a flash or the other side, by a rule cue and the length of a delay",
    "ProbabilisticReasoning": "the sign of the sum of evidence of eight symbols",
    "AntiReach": "one of eight locations: that of the stimulus or the opposite one, by a cue",
    "Reaching1D": "one of eight locations, after a delay",
    "EvidenceAccumulation": "which of two directions a noisy stimulus of two seconds has",
    CUES: "the side with more of seven cues of Poisson spikes (Bellec et al. 2020; not a task of cogtask)",
}
"""Every task and what a trial decides."""
TIMING, VECTOR = ("ReadySetGo", "OneTwoThreeGo"), ("DelayDirectionReproduction", "ImmediateDirectionReproduction")
SPIKING = ("lif", "alif", "gif")
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


def make_task(name: str, dt: float, seed: int):
    """A task of cogtask, whose trials are a function of the seed and their number."""
    import braintools.cogtask as cog
    import jax.numpy as jnp
    import saiunit as u

    if name != CUES:
        return getattr(cog, name)(dt=dt * u.ms, seed=seed)
    # Seven cues of 100 ms, 150 ms apart, a delay, a decision period of 150 ms, as in the code of Bellec et al. (2020).
    # Inputs are probabilities of a spike: cues and decision 40 Hz, background 10 Hz.
    rate = 0.04 * dt

    def side(ctx, feature):
        return rate * jnp.repeat(jnp.eye(2)[ctx["sides"][ctx["repeat_index"]]], 10)

    def start(ctx):
        likely = ctx.rng.choice(2)
        rare = ctx.rng.uniform(0.0, 1.0, size=7) < 0.3
        ctx["sides"] = jnp.where(rare, 1 - likely, likely)
        ctx["answer"] = (ctx["sides"].sum() > 3).astype(jnp.int32)

    def period(duration: float, name: str = "period", answer: Any = 0, **given: Any):
        inputs = {"noise": rate / 4, **given}
        return cog.Stimulus(u.Quantity(duration, unit=u.ms), inputs=inputs, outputs={"label": answer}, name=name)

    def answer(ctx, _):
        return ctx["answer"] + 1

    cues = cog.Repeat(period(50.0) >> period(100.0, cues=side), 7)
    phases = [cues, period(1050.0), period(150.0, "response", answer, go=rate)]
    inputs = cog.Feature(20, "cues") + cog.Feature(10, "go") + cog.Feature(10, "noise")
    outputs = cog.Feature(1, "fixation") + cog.Feature(2, "choice")
    return cog.Task(cog.concat(phases), inputs, outputs, start, CUES, num_classes=3, seed=seed, dt=dt * u.ms)


class Trials:
    """Batches of trials of a task. A batch is a function of the seed, the split and the step."""

    batch_first = False

    def __init__(self, config: Config, task, split: int, trials: int | None = None):
        self.name, self.size, self.task = config.task, config.batch_size, task
        self.batches = None if trials is None else math.ceil(trials / self.size)
        self.key, self.first = (config.seed, split), split * SPLIT
        history = [] if self.task.is_variable_length else self.task.sample_trial(0)[2]["phase_history"]
        self.decides = [(start, end) for name, start, end in history if name.lower() in DECISIONS]

    def __len__(self):
        if self.batches is None:
            raise TypeError("endless")
        return self.batches

    def batch(self, step: int):
        import numpy as np

        import jaxtrain as jt

        start = self.first + step * self.size % SPLIT
        made = self.task.batch_sample(self.size, start_index=start, return_mask=True)
        x, y, there = map(np.asarray, made)
        if self.name == CUES:
            x = (np.random.default_rng((*self.key, step)).random(x.shape) < x).astype(np.float32)
        if self.decides:  # all trials have the same length, so only the decision periods are in the learning phase
            first = self.decides[0][0]
            return jt.Phases(warmup=x[:first], inputs=x[first:], targets=y[first:])
        if self.name == "ReadySetGo":  # 1: hold, 2: go
            scored, y = y > 0, np.maximum(y - 1, 0)
        elif self.name == "OneTwoThreeGo":  # from the end of the last pulse
            time = np.arange(len(x))[:, None]
            scored = there & (time > np.where(x[..., 1] > 0, time, 0).max(0))
        else:
            scored = y > 0
        return jt.Phases(warmup=None, inputs=x, targets=y, weights=(scored & there).astype(np.float32))


DECISIONS = ("response", "decision", "wager")
"""Names of the phases in which a trial is decided."""
SPLIT = 2**29
"""Trials of a split; the seed and its number determine a trial."""


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


if __name__ == "__main__":
    sys.exit(cli.main(Config, make, presets=PRESETS))
