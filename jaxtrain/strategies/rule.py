"""What every braintrace rule shares: its window, its cadence, and the choice of a batching mode."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import brainstate
import jax

from ..core.module import Objective, Phases
from ..core.state import draws_random, lasting, parameters
from ..utils.logging import one_line
from .base import Batching, Learner, Strategy, choose_batching, input_of
from .cadence import Cadence, Carry, UpdateEvery, check_cadence, check_length
from .independence import dependence
from .online import OnlineLearner, compile_rule, refused
from .rows import ONE_STEP, Reach

Lanes = Literal["either", "batched", "vmap"]
MULTI_STEP = "Use vjp='multi-step'"
VMAP_FROM = 2**19
"""Trace elements, about lanes x parameters, from which mapping over lanes measures faster than a batched trace."""


@dataclass(frozen=True)
class OnlineRule(Strategy):
    """An online rule of braintrace.

    ``update_every``: "sequence", or a number of scored time steps: the optimizer and its schedule then advance within
    the sequence, and time steps that weigh nothing make no update. ``carry``: "reset" begins every sequence with fresh
    hidden states and traces, "carry" goes on with those of the sequence before (``Phases.reset`` clears single lanes).
    ``batching``: whether hidden states carry a batch axis, or the model is mapped over lanes; "auto" takes what the
    rule and the model allow, and of both the faster by size. The gradients are the same.
    """

    update_every: UpdateEvery = "sequence"
    carry: Carry = "reset"
    batching: Batching = "auto"

    lanes: ClassVar[Lanes] = "either"
    """Which batching the rule works in."""
    why_lanes: ClassVar[str] = ""
    narrow: ClassVar[bool] = False
    """Whether braintrace can run the rule on hidden states below 32 bits."""

    def __post_init__(self):
        super().__post_init__()
        check_cadence(type(self).__name__, self.update_every)
        lanes, why = self.works_in()
        if lanes != "either" and self.batching not in ("auto", lanes):
            raise ValueError(f"{type(self).__name__}(batching={self.batching!r}): this rule needs {lanes!r}, {why}")

    def works_in(self) -> tuple[Lanes, str]:
        """Which batching the rule works in with these fields, and why no other."""
        return self.lanes, self.why_lanes

    @abstractmethod
    def rule(self) -> tuple[Any, dict[str, Any]]:
        """braintrace's algorithm (a name, a class or an ETraceConfig) and its options."""

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        return OnlineLearner(
            objective, compiled, window=min(self.window_of(), example.sizes[1]), cadence=self.cadence(),
            reach=self.reach(example.sizes[1]),
        )  # fmt: skip

    def reach(self, time: int) -> Reach:
        """How far back credit without a trace goes, where ``time`` time steps are scored."""
        return ONE_STEP

    def window_of(self) -> int:
        return 1

    def cadence(self) -> Cadence:
        return Cadence(self.update_every, self.carry == "carry")

    def bind(self, objective: Objective, example: Phases) -> Learner:
        self._check_times(example)
        x = input_of(objective, example)
        batch_size = example.sizes[2]
        lanes = self.works_in()[0]
        wanted = "batched" if self.window_of() > 1 else self.batching if lanes == "either" else lanes
        batching = choose_batching(wanted, objective.model, x, batch_size)
        if lanes == "vmap":
            return self._bind_mapped(objective, example, x)
        if not (wanted == "auto" and batching == "batched" and self._prefers_lanes(objective, x)):
            return self._bind(objective, example, x, batching)
        reason = dependence(objective.model, x, batch_size)
        if not reason:
            try:
                return self._bind(objective, example, x, "vmap")
            except Exception as error:  # mapping is only faster: states made in __init__, say, take a batch alone
                reason = one_line(error)
        learner = self._bind(objective, example, x, "batched")
        learner.notes.append(f"batching: batched, since the model cannot be mapped over lanes ({reason})")
        return learner

    def _bind_mapped(self, objective: Objective, example: Phases, x: Any) -> Learner:
        """Of a rule that works in no other way; a model that takes a batch may be another one then."""
        reason, batch_size = "", example.sizes[2]
        if choose_batching("auto", objective.model, x, batch_size) == "batched":
            reason = dependence(objective.model, x, batch_size)
        learner = self._bind(objective, example, x, "vmap")
        if reason:
            learner.notes.append(
                f"batching: {self.name} takes one sequence at a time, where the model differs: {reason}"
            )
        return learner

    def _bind(self, objective: Objective, example: Phases, x: Any, batching: str) -> Learner:
        algorithm, options = self.rule()
        try:
            compiled = compile_rule(objective, x, example.sizes[2], batching == "vmap", algorithm, **options)
        except Exception as error:
            where = f"strategy {self.name!r} cannot run on {type(objective.model).__name__}"
            if refused(error):
                raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
            error.add_note(f"jaxtrain: {where}")
            raise
        self._check_width(objective, compiled)
        return self.learner(objective, compiled, example)

    def _check_width(self, objective: Objective, compiled: Any) -> None:
        """braintrace makes traces and cotangents in float32, which the step of a narrower model does not take."""
        inner: Any = compiled.module if isinstance(compiled, brainstate.nn.Vmap) else compiled
        dtypes = {relation.y_var.aval.dtype for relation in inner.graph.hidden_param_op_relations}
        below = sorted(str(dtype) for dtype in dtypes if dtype.itemsize < 4)
        if below and not self.narrow:
            raise ValueError(
                f"strategy {self.name!r}: the recurrence of {type(objective.model).__name__} runs in {below[0]}, and "
                "braintrace runs this rule in float32 alone: give the model float32 inputs, or use strategy='bptt'"
            )

    def _check_times(self, example: Phases) -> None:
        warm, time, _ = example.sizes
        name, window = type(self).__name__, self.window_of()
        if window >= time > 1 and not warm and self.carry == "reset":
            raise ValueError(
                f"{name}(window={window}) spans the whole sequence, which is BPTT: use strategy='bptt', or a window "
                f"below the {time} time steps"
            )
        check_length(name, self.update_every, time)
        if self.update_every != "sequence" and self.update_every % window:
            raise ValueError(
                f"{name}(window={window}, update_every={self.update_every}): an update comes at the end of a "
                "window, so update_every must be a multiple of it"
            )

    def _prefers_lanes(self, objective: Objective, x) -> bool:
        """A rule over sizes: large traces, of models without running statistics (lanes would share them) or random
        numbers (lanes would draw other ones)."""
        batch_size = jax.tree.leaves(x)[0].shape[0]
        weights = sum(leaf.size for p in parameters(objective.model).values() for leaf in jax.tree.leaves(p.value))
        plain = not lasting(objective.model) and not draws_random(objective.model, x)
        return batch_size * weights >= VMAP_FROM and plain


@dataclass(frozen=True)
class SteppedRule(OnlineRule):
    """An online rule with a choice of what one time step sends back.

    ``vjp="multi-step"`` differentiates the time step exactly and contracts the trace at its entry;
    ``vjp="single-step"`` contracts the trace after the time step and holds every other weight constant: a weight
    without a trace that acts through the hidden state then gets exactly zero.
    """

    vjp: Literal["multi-step", "single-step"] = "multi-step"

    def reach(self, time: int) -> Reach:
        return replace(super().reach(time), anyway=MULTI_STEP)


@dataclass(frozen=True)
class WindowedRule(SteppedRule):
    """An online rule with a window.

    ``window``: scored time steps that are differentiated together, exactly, before the trace at their entry is
    contracted (``vjp="multi-step"``); windows are tiled from the first scored time step, and the last one is as long as
    there are time steps left. One over all scored time steps is refused where there is no warm-up and no carried state,
    since then it is BPTT.
    """

    window: int = 1

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.window < 1:
            raise ValueError(f"{name}(window={self.window!r}): expected a whole number of time steps, at least 1")
        if self.window > 1 and self.vjp == "single-step":
            raise ValueError(
                f"{name}(vjp='single-step', window={self.window}): a single-step rule has no window; set window=1, or "
                "leave vjp out"
            )
        if self.window > 1 and (self.batching == "vmap" or self.works_in()[0] == "vmap"):
            raise ValueError(
                f"{name}(window={self.window}): windows need batched states, and this is mapped over lanes"
            )

    def window_of(self) -> int:
        return self.window

    def reach(self, time: int) -> Reach:
        if self.works_in()[0] == "vmap":
            return super().reach(time)
        return replace(Reach.of_window(min(self.window, time), time, self.update_every), anyway=MULTI_STEP)
