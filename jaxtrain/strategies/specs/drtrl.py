"""D-RTRL, and its variant with a factored trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .backward_rule import BackwardRule
from .rule import ReversibleRule, WindowedRule

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner


@dataclass(frozen=True)
class DRTRL(WindowedRule):
    """Real-time recurrent learning with a diagonal Jacobian.

    D-RTRL tracks how every recurrent weight affects the hidden state, with a (block-)diagonal approximation of the
    Jacobian between time steps (Wang et al., Nature Communications 17:1745, 2026).

    In a GRU, the weight of the reset gate, ``Wr``, affects the hidden state only through ``Wh``, so no trace of it is
    kept. With ``vjp="single-step"`` its gradient is exactly zero. With the default ``vjp="multi-step"`` it receives the
    credit within a window.

    Args:
        update_every: Scored time steps per update, or "sequence".
        stateful: Continue each sequence from the hidden states and traces of the previous one.
        batching: "batched", "vmap" or "auto".
        vjp: How far each loss is backpropagated, "multi-step" or "single-step".
        window: Scored time steps that are differentiated together.
        engine: "reverse", "trace" or "auto".
        segment: Time steps whose activations are stored at once by the reverse engine, "sequence" or "auto".
        readout_memory: Also backpropagate through the memory of the readout.

    Raises:
        ValueError: A value is out of range, or two options exclude each other.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.DRTRL(window=5), max_steps=1000)
    """

    name: ClassVar[str] = "drtrl"
    engine: Literal["auto", "reverse", "trace"] = "auto"
    """compute the gradient by reverse-mode differentiation (reverse) or with a forward trace (trace)

    "trace" updates a trace of size batch x parameters at every time step, as braintrace does. "reverse" computes the
    same gradient by reverse mode through time steps in which the inputs of the traced weights are held constant, one
    segment at a time. Between segments it keeps a trace, so memory does not grow with the length of the sequence.
    "auto" uses "reverse" if the model allows it.
    """
    segment: int | Literal["auto", "sequence"] = "auto"
    """time steps whose activations are stored at once in reverse mode

    "sequence" makes the whole sequence one segment.
    """
    readout_memory: bool = False
    """also backpropagate through the memory of the readout: a leaky readout, a sum over time, a delay

    The credit is exact within a segment. A second recurrent layer does not count as readout memory. The option requires
    the reverse engine.
    """

    def __post_init__(self):
        super().__post_init__()
        valid = isinstance(self.segment, str) or self.segment >= 1
        self._require(valid, "segment", "'auto', 'sequence' or a number of time steps, 1 or more")
        if self.engine == "trace" and self.segment != "auto":
            raise ValueError(f"DRTRL(engine='trace', segment={self.segment!r}): a trace has no segments; drop one")
        if self.engine == "trace" and self.readout_memory:
            raise ValueError(
                "DRTRL(engine='trace', readout_memory=True): a trace does not go through readout memory; drop one"
            )

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "d_rtrl", {"vjp_method": self.vjp}

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..drtrl import bind

        self._check_times(example)
        return bind(self, objective, example)


@dataclass(frozen=True)
class PPProp(ReversibleRule, WindowedRule):
    """D-RTRL with a factored trace (pp-prop, ES-D-RTRL).

    The trace is factored into an input side and an output side, and each is an exponential average over time (Wang et
    al., Nature Communications 17:1745, 2026). Its memory is batch x (inputs + outputs).

    The average of the output side starts at zero. A correction for this start uses the number of time steps since the
    beginning of the sequence (with ``stateful=True``: of the stream), which is the same for the whole batch. After
    ``Phases.reset`` has reset one sequence, the gradient from its traces is therefore too small for about
    1 / (1 - decay) time steps. Its direction is right.

    The other options are those of ``WindowedRule``.

    Args:
        decay: Decay rate of the averages, in [0, 1).
        rank: Time steps, at least 1; a replacement for ``decay``.

    Raises:
        ValueError: A value is out of range, or both ``decay`` and ``rank`` are given.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.strategies.PPProp(decay=0.9), max_steps=1000)
    """

    name: ClassVar[str] = "pp_prop"
    decay: float | None = None
    """decay rate of the trace averages, in [0, 1); default 0.9 unless rank is given"""
    rank: int | None = None
    """a number of time steps that replaces decay: decay = (rank - 1) / (rank + 1)"""

    def __post_init__(self):
        super().__post_init__()
        if self.rank is not None and self.decay is not None:
            raise ValueError(f"PPProp(decay={self.decay!r}, rank={self.rank!r}): a rank replaces the decay; drop one")
        if self.rank is not None:
            self._require_steps("rank")
        else:
            if self.decay is None:
                object.__setattr__(self, "decay", 0.9)  # so that the report and a resume see the value in use
            self._require_fraction("decay")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "pp_prop", {"decay_or_rank": self.decay if self.rank is None else self.rank, "vjp_method": self.vjp}

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(decay=self.decay if self.rank is None else (self.rank - 1) / (self.rank + 1))

    def bind(self, objective: Objective, example: Phases) -> Learner:
        learner = super().bind(objective, example)
        if example.reset is not None:
            steps = (self.rank + 1) / 2 if self.rank is not None else 1 / (1 - (self.decay or 0))
            learner.notes.append(
                f"pp_prop: after a sequence is reset, its gradient is too small for about {steps:.0f} time steps"
            )
        return learner
