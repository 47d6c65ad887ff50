"""Steps and metrics that are NaN or infinite: the errors and warnings, and where in the data the cause is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import SEEDS
from ..core.module import Module, Phases
from ..core.objective import phases_of
from ..core.state import is_key, seeded
from ..errors import NonFiniteError
from ..utils.logging import log
from .binding import environ
from .program import Program
from .steps import ALL_FINITE, NonFinite

EARLY = 10
"""In so many first steps, a loss that is not finite may come from integer targets that are no classes."""


def finite_steps(nonfinite: np.ndarray, first: int, batches: list[Any], policy: NonFinite, program: Program,
                 batch_first: bool | None = None) -> tuple[int, NonFiniteError | None]:  # fmt: skip
    """The number of steps of a chunk that count, and the error to raise after them.

    A warning is logged for a seed that is frozen, and for steps that are skipped or trained with in spite of NaN.

    Args:
        nonfinite: The nonfinite index of each step and seed, ``(n, seeds)``.
        first: The step after which the chunk began.
        batches: The batches of the chunk.
        policy: ``Fit(nonfinite=...)``.
        program: The program that ran the chunk.
        batch_first: The layout of the user's data, for positions in messages.
    """
    raises, fatal = policy == "raise", np.flatnonzero((nonfinite != ALL_FINITE).all(axis=1))
    seed_axis, fatal_text, fatal_name = program.seed_axis, "", ""
    for index in range(nonfinite.shape[1]):
        steps = np.flatnonzero(nonfinite[:, index] >= 0)
        if not len(steps):
            continue
        step, name = first + int(steps[0]) + 1, program.bad_name(int(nonfinite[steps[0], index]))
        prefix = "" if seed_axis is None else f"seed {seed_axis.seeds[index]}: "
        text = f"step {step}: {prefix}{name} is not finite"
        if len(fatal) and steps[0] == fatal[0]:
            fatal_text, fatal_name = text, name
        more = f" (and {len(steps) - 1} more steps of this chunk)" if len(steps) > 1 else ""
        if raises and seed_axis is not None:
            log.warning("%s; this seed is frozen in its state after step %d", text, step - 1)
        elif not raises:
            data = _in_train_data(program, batches[int(steps[0])], step - 1, batch_first)
            skipped = "; skipped" if policy == "skip" else ""
            log.warning("%s%s%s%s", text, more, skipped, f"; {data.text}" if data else "")
    if not raises or not len(fatal):
        return len(nonfinite), None
    none_left = "" if seed_axis is None else ", and no seed is left"
    data = _in_train_data(program, batches[int(fatal[0])], first + int(fatal[0]), batch_first)
    # The model may ignore the nonfinite data, so the learning rate stays a possible cause.
    metric = fatal_name.startswith("train/") and fatal_name != "train/loss"
    early = fatal_name == "train/loss" and data is None and first + fatal[0] < EARLY
    remedies = [
        *([f"{data.text}: {data.advice}"] if data else []),
        *(["return (value, weight), with weight 0 where the metric has no value"] if metric else []),
        "lower the learning rate, clip gradients, or choose Fit(nonfinite='skip' or 'warn')",
    ]
    labels = class_range_advice(_train_phases(program, batches[int(fatal[0])])) if early else ""
    return int(fatal[0]), NonFiniteError(f"{fatal_text}{none_left}; {labels}{'; or '.join(remedies)}")


@dataclass(frozen=True)
class NonFiniteData:
    """An array of a batch that contains NaN or infinity: its name and the position, and what to do about it."""

    text: str
    advice: str


def _in_train_data(program: Program, batch: Any, number: int, batch_first: bool | None) -> NonFiniteData | None:
    """The first nonfinite array of a train batch, among values that affect training."""
    prefix, phases = f"train data: batch {number}: ", _train_phases(program, batch)
    return _find(batch, phases, prefix, batch_first, program.learner.carried)


def _train_phases(program: Program, batch: Any) -> Phases:
    """A train batch, split in time as in a program."""
    learner = program.learner
    with environ(program.module, fit=True), seeded(0):
        batch = jax.tree.map(jnp.asarray, batch)  # as Module.phases receives it in a program
        return program.binding.phases_of(batch, learner.objective.learn, learner.carried)


def class_range_advice(phases: Phases) -> str:
    """What to check about the range of integer targets with weight; "" if there are none.

    A class that is no output makes the loss NaN. More advice can follow the text.
    """
    counts = slice(None) if phases.weights is None else np.asarray(phases.weights) != 0
    integers = [leaf for leaf in jax.tree.leaves(phases.targets) if jnp.isdtype(leaf.dtype, "integral")]
    leaves = [np.asarray(leaf)[counts] for leaf in integers]
    ranges = [f"integer targets reach from {leaf.min()} to {leaf.max()}" for leaf in leaves if leaf.size]
    return f"{', '.join(ranges)}: check that all are below the number of outputs. Otherwise " if ranges else ""


def _find(
    batch: Any, phases: Phases, prefix: str, batch_first: bool | None, stateful: bool = False
) -> NonFiniteData | None:
    """The first nonfinite array of a batch, or of its phases if they have weights; None if all are finite."""
    weighted = phases.weights is not None
    what, tree = ("Phases", phases) if weighted else ("leaf batch", batch)
    for path, bad in nonfinite_leaves(tree):
        if batch_first and not weighted and bad.ndim > 1:
            bad = bad.swapaxes(0, 1)  # the user's layout; Phases are time-major
        first = [int(index) for index in np.argwhere(bad)[0]]
        text = (
            f"{prefix}{what}{jax.tree_util.keystr(path)} holds {int(bad.sum())} values that are not finite, the first "
            f"at {first}" + (", axis 0 is time" if weighted and batch_first else "")
        )
        return NonFiniteData(text, _advice(phases, path[0], first, stateful))
    return None


def nonfinite_leaves(tree: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """Path of each array that holds NaN or infinity, and where it does."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_key(leaf):
            bad = ~np.isfinite(np.asarray(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64))
            if bad.any():
                yield path, bad


def _advice(phases: Phases, part: Any, first: list[int], stateful: bool) -> str:
    """What to do about a value of ``part`` at ``first``.

    An input without a weight may still reach a weighted time step.
    """
    if phases.weights is not None and getattr(part, "name", "") == "inputs":
        time, index = first[:2]
        weights = np.asarray(phases.weights)
        if not (weights[time] if weights.ndim == 1 else weights[time, index]):
            if stateful:
                return (
                    "it has weight 0, but with stateful=True the hidden state continues from it: replace these values, "
                    "or let Phases.reset begin a sequence after them in the same batch"
                )
            return "it has weight 0, but a weighted time step of its sequence follows: replace these values"
    return "fix the data, or give it weight 0 (Phases.weights)"


class Unscored:
    """Warns once about steps in which nothing is scored, for example because all weights are 0. They make no update.

    Args:
        limit: Number of consecutive steps that triggers the warning. Fewer may be pauses of a stream.
    """

    def __init__(self, limit: int):
        self._limit, self._last_scored = limit, 0
        self._any_scored = self._warned = False

    def add(self, first: int, weights: np.ndarray, nonfinite: np.ndarray) -> None:
        """Add the steps after step ``first``.

        Args:
            first: The step before them.
            weights: The weight of each step's loss.
            nonfinite: As for ``finite_steps``.
        """
        scored = (weights > 0) | (nonfinite[: len(weights)] != ALL_FINITE).any(axis=1)
        if scored.all():  # almost every chunk of almost every run
            self._any_scored, self._last_scored = self._any_scored or len(scored) > 0, first + len(scored)
            return
        for number, counts in enumerate(scored, first + 1):
            if counts:
                self._any_scored, self._last_scored = True, number
            elif number - self._last_scored >= self._limit and not self._warned:
                self._warned = True
                log.warning("steps %d to %d: %s", self._last_scored + 1, number, NOTHING_SCORED)

    def end(self, first: int, last: int) -> None:
        """Warn at the end of a run over the steps after ``first`` if none was scored."""
        if last > first and not self._any_scored:
            log.warning("no update in all %d steps; the parameters are unchanged: %s", last - first, NOTHING_SCORED)


NOTHING_SCORED = (
    "no time step has a weight above 0, so nothing is scored and no update is made; see the weights of the Phases that "
    "Module.phases returns"
)


class Watched:
    """Warns about nonfinite metrics of an evaluation, and reports whether the data or the model is the cause."""

    def __init__(self, module: Module, prefix: str, batch_first: bool | None):
        self._module, self._prefix, self._batch_first = module, prefix, batch_first
        self._first_batch: dict[str, int] = {}
        """For each nonfinite metric, the number of the first batch in which it is nonfinite."""
        self._cause = ""

    def look(self, number: int, batch: Any, metrics: dict[str, Any]) -> None:
        """Check the metrics of one batch."""
        bad = [name for name, found in metrics.items() if not (name.startswith(SEEDS) or found.finite)]
        if bad and not self._first_batch:
            self._cause = self._find_cause(batch)
        for name in bad:
            self._first_batch.setdefault(name, number)

    def _find_cause(self, batch: Any) -> str:
        with environ(self._module, fit=False), seeded(0):
            phases = phases_of(self._module, jax.tree.map(jnp.asarray, batch))
        if phases.weights is not None:  # targets without a weight may hold anything
            weights = jnp.asarray(phases.weights) != 0
            kept = lambda leaf: jnp.where(weights.reshape(weights.shape + (1,) * (leaf.ndim - weights.ndim)), leaf, 0)  # noqa: E731
            targets, extras = jax.tree.map(kept, (phases.targets, phases.extras))
            phases = replace(phases, targets=targets, extras=extras)
        data = _find(batch, phases, "", self._batch_first)
        finite = "all of its arrays are finite, so the model's outputs, or what is computed from them, are not"
        return data.text if data else finite

    def end(self, total: dict[str, Any]) -> None:
        """Warn about the metrics of all batches, ``total``."""
        prefix = self._prefix
        if self._first_batch:
            names = ", ".join(f"{prefix}/{name}" for name in self._first_batch)
            verb, number = "are" if len(self._first_batch) > 1 else "is", min(self._first_batch.values())
            log.warning("%s %s not finite; %s data: batch %d: %s", names, verb, prefix, number, self._cause)
        elif "loss" in total and not np.any(total["loss"].weight):
            log.warning("%s/loss is not finite: all time steps of the %s data have weight 0", prefix, prefix)
