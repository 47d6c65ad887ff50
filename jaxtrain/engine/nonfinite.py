"""What becomes of steps in which something is NaN or infinite: raise, skip or warn, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import SEEDS, Metrics
from ..core.module import Module, Phases, phases_of
from ..core.state import is_key, seeded
from ..errors import NonFiniteError
from ..utils.logging import log
from .program import Program
from .steps import ALL_FINITE, NonFinite


def judged(bad: np.ndarray, first: int, batches: list[Any], policy: NonFinite, program: Program,
           batch_first: bool | None = None) -> tuple[int, NonFiniteError | None]:  # fmt: skip
    """How many steps of a chunk count, and the error to raise after them.

    Args:
        bad: What the program found in each step and seed, ``(n, seeds)``.
        first: The step after which the chunk began.
        batches: The batches of the chunk.
        policy: ``Fit(nonfinite=...)``.
        program: The program that ran the chunk.
        batch_first: The layout in which an error names a place in the data.
    """
    raises, fatal = policy == "raise", np.flatnonzero((bad != ALL_FINITE).all(axis=1))
    seed_axis, fatal_text, fatal_name = program.seed_axis, "", ""
    for index in range(bad.shape[1]):
        where = np.flatnonzero(bad[:, index] >= 0)
        if not len(where):
            continue
        step, name = first + int(where[0]) + 1, program.bad_name(int(bad[where[0], index]))
        who = "" if seed_axis is None else f"seed {seed_axis.seeds[index]}: "
        text = f"step {step}: {who}{name} is not finite"
        if len(fatal) and where[0] == fatal[0]:
            fatal_text, fatal_name = text, name
        more = f" (and {len(where) - 1} more steps of this chunk)" if len(where) > 1 else ""
        if raises and seed_axis is not None:
            log.warning("%s; this seed is frozen as it was at step %d", text, step - 1)
        elif not raises:
            data = _train_data(program, batches[int(where[0])], step - 1, batch_first)
            skipped = "; skipped" if policy == "skip" else ""
            log.warning("%s%s%s%s", text, more, skipped, f"; {data.text}" if data else "")
    if not raises or not len(fatal):
        return len(bad), None
    none_left = "" if seed_axis is None else ", and no seed is left"
    data = _train_data(program, batches[int(fatal[0])], first + int(fatal[0]), batch_first)
    # The model need not use what is not finite there, so the rate is not ruled out.
    metric = fatal_name.startswith("train/") and fatal_name != "train/loss"
    ways = [
        *([f"{data.text}: {data.advice}"] if data else []),
        *(["return (value, weight), with weight 0 where the metric has no value"] if metric else []),
        "lower the learning rate, clip gradients, or choose Fit(nonfinite='skip' or 'warn')",
    ]
    return int(fatal[0]), NonFiniteError(f"{fatal_text}{none_left}; {'; or '.join(ways)}")


@dataclass(frozen=True)
class Found:
    """An array of a batch that holds NaN or infinity: which and where, and what to do about it."""

    text: str
    advice: str


def _train_data(program: Program, batch: Any, number: int, batch_first: bool | None) -> Found | None:
    """What of a train batch that counts is not finite."""
    module, learner = program.module, program.learner
    with brainstate.environ.context(**module.environ, fit=True), seeded(0):
        batch = jax.tree.map(jnp.asarray, batch)  # as Module.phases meets it in a program
        phases = program.binding.phases_of(batch, learner.objective.learn, learner.carried)
    return _nonfinite(batch, phases, f"train data: batch {number}: ", batch_first, learner.carried)


def _nonfinite(batch: Any, phases: Phases, where: str, batch_first: bool | None, carried: bool = False) -> Found | None:
    """The first array of a batch, or with weights of its phases, that is not finite; None where all are."""
    weighted = phases.weights is not None
    what, tree = ("Phases", phases) if weighted else ("leaf batch", batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_key(leaf):
            continue
        bad = ~np.isfinite(np.asarray(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64))
        if not bad.any():
            continue
        if batch_first and not weighted and bad.ndim > 1:
            bad = bad.swapaxes(0, 1)  # as the user has it; Phases are time-major
        first = [int(index) for index in np.argwhere(bad)[0]]
        text = (
            f"{where}{what}{jax.tree_util.keystr(path)} holds {int(bad.sum())} values that are not finite, the first "
            f"at {first}" + (", axis 0 is time" if weighted and batch_first else "")
        )
        return Found(text, _advice(phases, path[0], first, carried))
    return None


def _advice(phases: Phases, part: Any, first: list[int], carried: bool) -> str:
    """What to do about a value of ``part`` at ``first``: an input without a weight may still reach a weighted time
    step."""
    if phases.weights is not None and getattr(part, "name", "") == "inputs":
        time, index = first[:2]
        weights = np.asarray(phases.weights)
        if not (weights[time] if weights.ndim == 1 else weights[time, index]):
            if carried:
                return (
                    "it has weight 0, but with stateful=True hidden states go on from it: replace these values, or "
                    "let Phases.reset begin a sequence behind them in the same batch"
                )
            return "it has weight 0, but a weighted time step of its sequence follows: replace these values"
    return "mend the data, or give it weight 0 (Phases.weights)"


class Unscored:
    """Warns once of steps in which nothing is scored, as under a mask that is all zero: they make no update.

    Args:
        limit: The number of such steps in a row that draws the warning. Fewer may be pauses of a stream.
    """

    def __init__(self, limit: int):
        self._limit, self._since = limit, 0
        self._any = self._said = False

    def add(self, first: int, weights: np.ndarray, bad: np.ndarray) -> None:
        """Add the steps after step ``first``: the weight of each loss, and ``bad`` as in ``judged``."""
        scored = (weights > 0) | (bad[: len(weights)] != ALL_FINITE).any(axis=1)
        if scored.all():  # almost every chunk of almost every run
            self._any, self._since = self._any or len(scored) > 0, first + len(scored)
            return
        for number, counts in enumerate(scored, first + 1):
            if counts:
                self._any, self._since = True, number
            elif number - self._since >= self._limit and not self._said:
                self._said = True
                log.warning("steps %d to %d: %s", self._since + 1, number, NOTHING)

    def end(self, first: int, last: int) -> None:
        """Warn at the end of a run over the steps after ``first`` if none was scored."""
        if last > first and not self._any:
            log.warning(
                "no update was made in all %d steps, and the parameters are as before: %s", last - first, NOTHING
            )


NOTHING = (
    "no time step has a weight above 0, so nothing is scored and no update is made; see the weights of the Phases that "
    "Module.phases returns"
)


class Watched:
    """Warns of metrics of an evaluation that are not finite, and says whether the data or the model is why."""

    def __init__(self, module: Module, prefix: str, batch_first: bool | None):
        self._module, self._prefix, self._batch_first = module, prefix, batch_first
        self._found: dict[str, int] = {}
        self._why = ""

    def look(self, number: int, batch: Any, metrics: Metrics) -> None:
        """The sums of one batch."""
        bad = [name for name, mean in metrics.items() if not np.isfinite(mean.num).all() and not name.startswith(SEEDS)]
        if bad and not self._found:
            self._why = self._reason(number, batch)
        for name in bad:
            self._found.setdefault(name, number)

    def _reason(self, number: int, batch: Any) -> str:
        with brainstate.environ.context(**self._module.environ, fit=False), seeded(0):
            phases = phases_of(self._module, jax.tree.map(jnp.asarray, batch))
        if phases.weights is not None:  # targets without a weight may hold anything
            weights = jnp.asarray(phases.weights) != 0
            kept = lambda leaf: jnp.where(weights.reshape(weights.shape + (1,) * (leaf.ndim - weights.ndim)), leaf, 0)  # noqa: E731
            phases = replace(
                phases, targets=jax.tree.map(kept, phases.targets), extras=jax.tree.map(kept, phases.extras)
            )
        data = _nonfinite(batch, phases, "", self._batch_first)
        return (
            data.text
            if data
            else "all of its arrays are finite, so the outputs of the model, or what is made of them, are not"
        )

    def end(self, total: Metrics) -> None:
        """``total``: the sums of all batches."""
        if self._found:
            names = ", ".join(f"{self._prefix}/{name}" for name in self._found)
            verb = "are" if len(self._found) > 1 else "is"
            log.warning(
                "%s %s not finite; %s data: batch %d: %s",
                names,
                verb,
                self._prefix,
                min(self._found.values()),
                self._why,
            )
        elif "loss" in total and not np.any(total["loss"].weight):
            log.warning(
                "%s/loss is not finite: in no batch of the %s data has a time step a weight above 0",
                self._prefix,
                self._prefix,
            )
