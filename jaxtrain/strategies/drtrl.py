"""D-RTRL: real-time recurrent learning with a (block-)diagonal Jacobian of the hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..core.module import Objective, Phases
from ..core.state import draws_random
from ..utils.logging import one_line
from .base import Learner, Network, choose_batching, input_of, trained
from .equations import ELEMENTWISE, Irreversible
from .reverse.detached_step import Cut
from .reverse.learner import ReverseLearner
from .rows import WITHOUT_REVERSE
from .rule import WindowedRule

SEGMENT, SEQUENCE_UP_TO = 120, 512
"""``segment="auto"``: a sequence up to the second number of time steps is one piece; a longer one is taken in pieces of
the first."""


@dataclass(frozen=True)
class DRTRL(WindowedRule):
    """D-RTRL: what every recurrent weight does to the hidden state is carried along with the network, as far as a
    (block-)diagonal Jacobian lets it through (Wang et al., Nature Communications 17:1745, 2026).

    ``engine``: how that gradient is made. "trace" carries a trace of size lanes x parameters forward, time step by time
    step, as braintrace does. "reverse" gives the same numbers by going back through time steps in which the inputs of
    the traced weights are held constant, in pieces of ``segment`` time steps whose activations are kept; from piece to
    piece it carries a trace, so that memory does not grow with the length of the sequence. "auto" takes "reverse"
    wherever the model allows it. ``segment``: "sequence" makes the whole sequence one piece.

    ``readout_memory``: whether reverse mode also goes back through what lies between the traced units and the loss and
    has a past of its own (a leaky readout, scores summed over time, a delay), exactly within a segment. A second
    recurrent layer is no such memory. It needs the reverse engine.

    On a GRU the reset gate's weight ``Wr`` acts on the hidden state only through ``Wh``, so no trace of it is kept:
    ``vjp="single-step"`` leaves its gradient exactly zero, the default ``vjp="multi-step"`` gives it the credit that
    lies within a window. See ``WindowedRule`` and ``OnlineRule`` for the other fields.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.DRTRL(window=5), max_steps=1000)
    """

    name: ClassVar[str] = "drtrl"
    engine: Literal["auto", "reverse", "trace"] = "auto"
    segment: int | Literal["auto", "sequence"] = "auto"
    readout_memory: bool = False

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
        self._check_times(example)
        if self.engine == "trace":
            return super().bind(objective, example)
        try:
            return self._reverse(objective, example)
        except Irreversible as reason:
            model = type(objective.model).__name__
            if self.readout_memory:
                raise ValueError(
                    f"DRTRL(readout_memory=True) does not fit {model}, which needs a trace: {reason}; use "
                    "readout_memory=False"
                ) from None
            if self.engine == "reverse":
                raise ValueError(f"DRTRL(engine='reverse') does not fit {model}: {reason}; use engine='auto'") from None
            learner: Any = super().bind(objective, example)
            learner.starting = WITHOUT_REVERSE
            learner.notes.append(f"engine: a trace, since {reason}")
            return learner

    def _reverse(self, objective: Objective, example: Phases) -> Learner:
        x = input_of(objective, example)
        network = Network(objective.model, choose_batching(self.batching, objective.model, x, example.sizes[2]))
        names, random = list(trained(objective)), draws_random(network, x)

        def cut(lanes: bool) -> Cut:
            mapped = lanes or network.vmapped
            if random and mapped:
                raise Irreversible("the model draws random numbers, which lanes mapped one by one would share")
            try:
                return Cut(objective, network, x, names, lanes=lanes, memory=self.readout_memory)
            except Exception as error:
                if isinstance(error, Irreversible) or not mapped:
                    raise
                raise Irreversible(f"it cannot be taken one sequence at a time ({one_line(error)})") from error

        made, time = cut(lanes=False), example.sizes[0] + example.sizes[1]
        segment = None
        if self._pieces(time):
            segment = SEGMENT if self.segment in ("auto", "sequence") else self.segment
            if not network.vmapped and any(r.trained and r.name == ELEMENTWISE for r in made.relations):
                made = cut(lanes=True)  # a weight without inputs has no batch axis of its own
        return ReverseLearner(
            objective, network, made, window=min(self.window, example.sizes[1]), single=self.vjp == "single-step",
            cadence=self.cadence(), segment=segment, reach=self.reach(example.sizes[1]), memory=self.readout_memory,
        )  # fmt: skip

    def _pieces(self, time: int) -> bool:
        """Whether a trace is needed, between pieces."""
        if self.carry == "carry" or self.update_every != "sequence":
            return True
        return self.segment != "sequence" and time > (SEQUENCE_UP_TO if self.segment == "auto" else self.segment)
