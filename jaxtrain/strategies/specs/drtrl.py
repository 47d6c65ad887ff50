"""D-RTRL, and its variant with a factored trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .rule import WindowedRule

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner


@dataclass(frozen=True)
class DRTRL(WindowedRule):
    """Real-time recurrent learning with a diagonal Jacobian.

    What every recurrent weight does to the hidden state is carried along with the network, as far as a (block-)diagonal
    Jacobian lets it through (Wang et al., Nature Communications 17:1745, 2026).

    On a GRU the reset gate's weight ``Wr`` acts on the hidden state only through ``Wh``, so no trace of it is kept:
    ``vjp="single-step"`` leaves its gradient exactly zero, the default ``vjp="multi-step"`` gives it the credit that
    lies within a window.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.DRTRL(window=5), max_steps=1000)
    """

    name: ClassVar[str] = "drtrl"
    engine: Literal["auto", "reverse", "trace"] = "auto"
    """compute the gradient by reverse-mode differentiation (reverse) or with a forward trace (trace)

    "trace" carries a trace of size lanes x parameters forward, time step by time step, as braintrace does. "reverse"
    gives the same numbers by going back through time steps in which the inputs of the traced weights are held constant,
    segment by segment; from segment to segment it carries a trace, so that memory does not grow with the length of the
    sequence. "auto" takes "reverse" wherever the model allows it.
    """
    segment: int | Literal["auto", "sequence"] = "auto"
    """time steps whose activations are stored at once in reverse mode

    "sequence" makes the whole sequence one segment.
    """
    readout_memory: bool = False
    """also backpropagate through the memory of the readout: a leaky readout, a sum over time, a delay

    Credit is exact within a segment. A second recurrent layer is no such memory. It needs the reverse engine.
    """

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.segment, int) and self.segment < 1:
            raise ValueError(
                f"DRTRL(segment={self.segment!r}): expected 'auto', 'sequence' or a number of time steps, 1 or more"
            )
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
class PPProp(WindowedRule):
    """D-RTRL with a factored trace (pp-prop, ES-D-RTRL).

    The trace is factored into an input and an output side, each an exponential average (Wang et al., Nature
    Communications 17:1745, 2026). Memory is lanes x (inputs + outputs).

    The average of the output side begins at zero and is corrected for that by the time steps since the sequence's (with
    ``stateful=True``: the stream's) beginning, the same number for all lanes. So after ``Phases.reset`` has cleared a
    lane, the gradient that its traces give is too small for about 1 / (1 - decay) time steps, in the same direction.

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
        if self.rank is None and self.decay is None:
            object.__setattr__(self, "decay", 0.9)  # so that what is compared and shown is what is used
        if self.rank is not None and self.decay is not None:
            raise ValueError(f"PPProp(decay={self.decay!r}, rank={self.rank!r}): a rank replaces the decay; drop one")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"PPProp(decay={self.decay!r}): expected a number in [0, 1)")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"PPProp(rank={self.rank!r}): expected a whole number of time steps, at least 1")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "pp_prop", {"decay_or_rank": self.decay if self.rank is None else self.rank, "vjp_method": self.vjp}

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        learner = super().learner(objective, compiled, example)
        if example.reset is not None:
            steps = (self.rank + 1) / 2 if self.rank is not None else 1 / (1 - (self.decay or 0))
            learner.notes.append(
                f"pp_prop: after a lane's reset its gradient is too small for about {steps:.0f} time steps"
            )
        return learner
