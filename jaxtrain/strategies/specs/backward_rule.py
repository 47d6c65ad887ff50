"""What distinguishes online rules with a linear trace from each other when they are computed backward in time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackwardRule:
    """An online rule with a linear trace.

    Attributes:
        own_recurrence: Whether the Jacobian includes each unit's effect on itself through recurrent weights (SnAp-1).
        kappa: Decay of a low-pass filter on the trace; 0 for no filter.
        decay: Decay of the input and the output side of a factored trace; None if the trace is not factored.
        feedback_seed: Seed of a fixed random feedback matrix; None for the gradient of the loss.
        modulator: Name of a reward sequence that replaces the gradient of the loss; None for that gradient.
        estimate: Whether parameters without a trace also receive estimated gradients of later losses (DNI).
        rank_one: Whether the trace is a random estimate of rank one (UORO).
    """

    own_recurrence: bool = False
    kappa: float = 0.0
    decay: float | None = None
    feedback_seed: int | None = None
    modulator: str | None = None
    estimate: bool = False
    rank_one: bool = False

    @property
    def needs_factors(self) -> bool:
        """Whether the rule needs the derivative of each hidden state by each product on its own."""
        return self.decay is not None or self.own_recurrence
