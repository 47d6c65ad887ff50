"""What the rules of braintrace share: cadence, window, and how far a loss is backpropagated."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .base import UpdateEvery, WithUpdates

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner

RequiredBatching = Literal["either", "batched", "vmap"]
MULTI_STEP = "Use vjp='multi-step'"


@dataclass(frozen=True)
class Reach:
    """How far back credit goes that no trace carries: ``within`` which time steps, and what gives ``more`` of it.
    ``besides``: what a parameter without any trace has instead. ``anyway``: what gives credit to what a single-step
    rule holds constant."""

    within: str = "one time step"
    more: str = "For more use drtrl with a window, or tbptt"
    besides: str = ""
    anyway: str = "Use drtrl with vjp='multi-step', or tbptt"

    @staticmethod
    def of_window(window: int, scored: int, update_every: UpdateEvery = "sequence") -> Reach:
        """Of a rule whose windows are ``window`` time steps of the ``scored`` ones of a whole sequence."""
        within = f"one window of {window} scored time step" + ("s" if window > 1 else "")
        larger, exact = "A larger window", "strategy='bptt'"
        if update_every != "sequence":  # what is advised must be what can be had
            larger, exact = f"{larger}, of which update_every is a multiple,", f"{exact}, which has no update_every,"
        if window >= scored:
            return Reach(within, f"Use {exact} for all")
        return Reach(within, f"{larger} gives it more, {exact} all")


ONE_STEP = Reach()


@dataclass(frozen=True)
class OnlineRule(WithUpdates):
    """An online rule of braintrace."""

    required_batching: ClassVar[RequiredBatching] = "either"
    """Which batching the rule works in."""
    why_batching: ClassVar[str] = ""
    narrow: ClassVar[bool] = False
    """Whether braintrace can run the rule on hidden states below 32 bits."""

    def __post_init__(self):
        super().__post_init__()
        required_batching, why = self.works_in()
        if required_batching != "either" and self.batching not in ("auto", required_batching):
            raise ValueError(
                f"{type(self).__name__}(batching={self.batching!r}): this rule needs {required_batching!r}, {why}"
            )

    def works_in(self) -> tuple[RequiredBatching, str]:
        """Which batching the rule works in with these fields, and why no other."""
        return self.required_batching, self.why_batching

    @abstractmethod
    def rule(self) -> tuple[Any, dict[str, Any]]:
        """braintrace's algorithm (a name, a class or an ETraceConfig) and its options."""

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..online import OnlineLearner

        time = example.sizes[1]
        window, reach = min(self.window_of(), time), self.reach(time)
        return OnlineLearner(objective, compiled, window=window, cadence=self.cadence(), reach=reach)

    def reach(self, time: int) -> Reach:
        """How far back credit without a trace goes, where ``time`` time steps are scored."""
        return ONE_STEP

    def window_of(self) -> int:
        return 1

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..rule import bind

        self._check_times(example)
        return bind(self, objective, example)

    def _check_times(self, example: Phases) -> None:
        warm, time, _ = example.sizes
        name, window = type(self).__name__, self.window_of()
        if window >= time > 1 and not warm and not self.stateful:
            raise ValueError(
                f"{name}(window={window}) spans the whole sequence, which is BPTT: use strategy='bptt', or a window "
                f"below the {time} time steps"
            )
        self._check_length(time)
        self._check_multiple(window)


@dataclass(frozen=True)
class SteppedRule(OnlineRule):
    """An online rule with a choice of how far each loss is backpropagated."""

    vjp: Literal["multi-step", "single-step"] = "multi-step"
    """how far each loss is backpropagated: through the window (multi-step) or into the hidden state only (single-step)

    "multi-step" differentiates the window (without one: the time step) exactly and contracts the trace at its entry.
    "single-step" contracts the trace after the time step and holds every other weight constant: a weight without a
    trace that acts through the hidden state then gets exactly zero.
    """

    def reach(self, time: int) -> Reach:
        return replace(super().reach(time), anyway=MULTI_STEP)


@dataclass(frozen=True)
class WindowedRule(SteppedRule):
    """An online rule with a window."""

    window: int = 1
    """scored time steps that are differentiated together

    The window is differentiated exactly before the trace at its entry is contracted (``vjp="multi-step"``). Windows
    tile the scored time steps from the first one; the last may be shorter. One over all scored time steps is refused
    where there is no warm-up and no carried state, since then it is BPTT.
    """

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
