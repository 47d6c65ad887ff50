"""The tasks of `braintools.cogtask` and the cue accumulation of e-prop's paper, and batches of their trials."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogtask import Config

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
DECISIONS = ("response", "decision", "wager")
"""Names of the phases in which a trial is decided."""
SPLIT = 2**29
"""Trials of a split; the seed and its number determine a trial."""


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
