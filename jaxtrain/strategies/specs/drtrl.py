"""D-RTRL, and its variant with a factored trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .backward_rule import BackwardRule
from .online_rule import ReversibleRule, WindowedRule

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner


@dataclass(frozen=True)
class DRTRL(ReversibleRule, WindowedRule):
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

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "d_rtrl", {"vjp_method": self.vjp}

    def backward_rule(self) -> BackwardRule:
        return BackwardRule()


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
