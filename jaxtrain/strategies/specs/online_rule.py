"""Base classes of the braintrace rules: window, reach of each loss, and the batching that a rule supports."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .base import ONE_STEP, Reach, ScheduledStrategy

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner, Network
    from .backward_rule import BackwardRule

RequiredBatching = Literal["either", "batched", "vmap"]
MULTI_STEP = "Use vjp='multi-step'"


@dataclass(frozen=True)
class OnlineRule(ScheduledStrategy):
    """An online learning rule that braintrace implements.

    A subclass defines ``rule()``. Extend ``SteppedRule`` if the rule has a choice of ``vjp``, and ``WindowedRule`` if
    it also has windows.

    Attributes:
        required_batching: The batching in which the rule works: "batched", "vmap" or "either".
        why_batching: The reason, for the error message.
        narrow: Whether braintrace can run the rule on hidden states of less than 32 bits.

    Raises:
        ValueError: ``batching`` is not the one that the rule requires.

    >>> window = jaxtrain.DRTRL(window=5).window_of()
    """

    required_batching: ClassVar[RequiredBatching] = "either"
    why_batching: ClassVar[str] = ""
    narrow: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        required, why = self.works_in()
        if required != "either" and self.batching not in ("auto", required):
            raise ValueError(f"{type(self).__name__}(batching={self.batching!r}): this rule needs {required!r}, {why}")

    def works_in(self) -> tuple[RequiredBatching, str]:
        """Return the batching that the rule requires with these options, and why the other one fails."""
        return self.required_batching, self.why_batching

    @abstractmethod
    def rule(self) -> tuple[Any, dict[str, Any]]:
        """Return how to call ``braintrace.compile``.

        Returns:
            The algorithm (its name, its class or a ``braintrace.ETraceConfig``), and its keyword arguments.
        """

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        """Return the learner.

        Args:
            objective: The module, with its model and its loss.
            compiled: The result of ``braintrace.compile``.
            example: A batch of the shape that the learner will receive.
        """
        from ..online import OnlineLearner

        time = example.sizes[1]
        window, schedule, reach = min(self.window_of(), time), self.update_schedule(), self.reach(time)
        return OnlineLearner(objective, compiled, window=window, update_schedule=schedule, reach=reach)

    def reach(self, time: int) -> Reach:
        """Return how far back credit without a trace reaches if ``time`` time steps are scored."""
        return ONE_STEP

    def window_of(self) -> int:
        """Return the number of scored time steps that are differentiated together."""
        return 1

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..bind_rule import bind

        self._check_times(example)
        return bind(self, objective, example)

    def _check_times(self, example: Phases) -> None:
        """Raise ValueError if the window or the update interval does not suit the length of the sequence."""
        warm, time, _ = example.sizes
        window = self.window_of()
        if window >= time > 1 and not warm and not self.stateful:
            raise ValueError(
                f"{type(self).__name__}(window={window}) spans the whole sequence, which is BPTT: use strategy='bptt', "
                f"or a window below the {time} time steps"
            )
        self._check_length(time)
        self._check_multiple(window)


@dataclass(frozen=True)
class SteppedRule(OnlineRule):
    """An online rule with a choice of how far each loss is backpropagated.

    Args:
        vjp: "multi-step" or "single-step".

    >>> fit = jaxtrain.Fit(SnAp(vjp="single-step"), max_steps=1000)
    """

    vjp: Literal["multi-step", "single-step"] = "multi-step"
    """how far each loss is backpropagated: through the window (multi-step) or into the hidden state only (single-step)

    "multi-step" differentiates the window (one time step, if the rule has no windows) exactly and contracts the trace
    at the start of the window. "single-step" contracts the trace after each time step and holds every other weight
    constant. A weight without a trace that acts through the hidden state then has a gradient of exactly zero.
    """

    def reach(self, time: int) -> Reach:
        return replace(super().reach(time), anyway=MULTI_STEP)


@dataclass(frozen=True)
class EngineRule(OnlineRule):
    """An online rule that can also be computed without a forward trace of every weight.

    Args:
        engine: "reverse", "trace" or "auto".
        segment: Time steps whose activations are stored at once by the reverse engine, "sequence" or "auto".

    Raises:
        ValueError: ``segment`` is out of range or is combined with a trace.
    """

    engine: Literal["auto", "reverse", "trace"] = "auto"
    """compute the gradient backward in time (reverse) or with a forward trace (trace)

    "trace" updates a trace at every time step, as braintrace does. "reverse" computes the same gradient from known
    hidden states, backward in time, at about the cost of BPTT. It works one segment at a time and keeps a trace between
    segments, so memory does not grow with the length of the sequence. "auto" uses "reverse" if the model allows it.
    """
    segment: int | Literal["auto", "sequence"] = "auto"
    """time steps whose activations are stored at once in reverse mode

    "sequence" makes the whole sequence one segment.
    """

    def __post_init__(self):
        super().__post_init__()
        valid = isinstance(self.segment, str) or self.segment >= 1
        self._require(valid, "segment", "'auto', 'sequence' or a number of time steps, 1 or more")
        if self.engine == "trace" and self.segment != "auto":
            name = type(self).__name__
            raise ValueError(f"{name}(engine='trace', segment={self.segment!r}): a trace has no segments; drop one")

    @abstractmethod
    def backward_rule(self) -> BackwardRule:
        """Return what distinguishes the rule from others in the reverse engine."""

    def is_single_step(self) -> bool:
        """Return whether each learning signal acts on the new hidden states of its time step only."""
        return False

    def credits_memory(self) -> bool:
        """Return whether credit passes through readout memory."""
        return False

    def reverse_learner(self, objective: Objective, network: Network, step: Any, example: Phases, **options: Any):
        """Create the learner of the reverse engine.

        Args:
            objective: The module, with its model and its loss.
            network: The model over a batch.
            step: Its detached time step (``DetachedStep``).
            example: A batch of the shape that the learner will receive.
            **options: Options of ``ReverseLearner``.
        """
        from ..reverse.learner import ReverseLearner

        return ReverseLearner(objective, network, step, self.backward_rule(), **options)

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..in_reverse import bind

        self._check_times(example)
        return bind(self, objective, example)


@dataclass(frozen=True)
class ReversibleRule(EngineRule, SteppedRule):
    """An online rule with a linear trace and a choice of ``vjp``, whose gradient can also be computed backward in time.

    Args:
        readout_memory: Also backpropagate through the memory of the readout.

    Raises:
        ValueError: ``readout_memory`` is combined with a trace.
    """

    readout_memory: bool = False
    """also backpropagate through the memory of the readout: a leaky readout, a sum over time, a delay

    The credit is exact within a segment. A second recurrent layer does not count as readout memory. The option requires
    the reverse engine.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.engine == "trace" and self.readout_memory:
            raise ValueError(
                f"{type(self).__name__}(engine='trace', readout_memory=True): a trace does not go through readout "
                "memory; drop one"
            )

    def is_single_step(self) -> bool:
        return self.vjp == "single-step"

    def reach(self, time: int) -> Reach:
        memory = "readout_memory=True" + " with engine='auto'" * (self.engine == "trace")
        if self.update_every != "sequence":
            memory += f", which reaches back to the last update only (update_every={self.update_every})"
        return replace(super().reach(time), memory=memory)

    def credits_memory(self) -> bool:
        return self.readout_memory


@dataclass(frozen=True)
class WindowedRule(SteppedRule):
    """An online rule with a window.

    Args:
        window: Scored time steps that are differentiated together, at least 1.

    Raises:
        ValueError: The window is below 1, or is combined with ``vjp="single-step"`` or ``batching="vmap"``.

    Example::

        @dataclass(frozen=True)
        class Leaky(WindowedRule):
            def rule(self):
                return braintrace.ETraceConfig(temporal_recursion="scalar_leak", decay=0.8), {}
    """

    window: int = 1
    """scored time steps that are differentiated together

    With ``vjp="multi-step"``, the window is differentiated exactly, then the trace at its start is contracted. The
    first window starts at the first scored time step; the last window may be shorter. A window over all scored time
    steps is an error if there is no warm-up and ``stateful=False``, since that is BPTT.
    """

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        self._require_steps("window")
        if self.window > 1 and self.vjp == "single-step":
            raise ValueError(
                f"{name}(vjp='single-step', window={self.window}): a single-step rule has no window; set window=1, or "
                "leave vjp out"
            )
        if self.window > 1 and (self.batching == "vmap" or self.works_in()[0] == "vmap"):
            raise ValueError(
                f"{name}(window={self.window}): windows need batched states, and this is mapped over sequences"
            )

    def window_of(self) -> int:
        return self.window

    def reach(self, time: int) -> Reach:
        if self.works_in()[0] == "vmap":
            return super().reach(time)
        return replace(Reach.of_window(min(self.window, time), time, self.update_every), anyway=MULTI_STEP)
