"""Backpropagation through time (full and truncated), and a control that trains only the readout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Batching, ScheduledStrategy, Strategy

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner


@dataclass(frozen=True)
class BPTT(Strategy):
    """Backpropagation through time.

    The gradient is exact and covers the whole sequence, warm-up included (Werbos 1990). Memory grows with the length of
    the sequence.

    Args:
        remat: Recompute activations in the backward pass instead of storing them.
        batching: "batched", "vmap" or "auto".

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.BPTT(remat=True), max_steps=1000)
    """

    name: ClassVar[str] = "bptt"
    remat: bool = False
    """recompute activations in the backward pass instead of storing them: less memory, more time

    Only hidden states are stored. The work grows by about a third.
    """
    batching: Batching = "auto"
    """batched: hidden states have a batch axis; vmap: the model is mapped over the sequences of a batch"""

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..bptt import bind

        return bind(self, objective, example)


@dataclass(frozen=True)
class TBPTT(ScheduledStrategy):
    """Truncated backpropagation through time.

    Windows of ``window`` time steps cover the whole sequence, warm-up included. Hidden states continue from one window
    to the next, gradients do not (Williams and Peng 1990). A window as long as the sequence is BPTT.

    Args:
        update_every: Scored time steps per update, or "sequence". A number must be a multiple of ``window``, and the
            length of the warm-up must then be a multiple of ``window`` as well.
        stateful: Continue each sequence from the hidden states of the previous one.
        batching: "batched", "vmap" or "auto".
        window: Time steps that are differentiated together.

    Raises:
        ValueError: A value is out of range, or ``update_every`` is no multiple of ``window``.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.TBPTT(window=20, stateful=True), max_steps=1000)
    """

    name: ClassVar[str] = "tbptt"
    window: int = 10
    """time steps that are differentiated together"""

    def __post_init__(self):
        super().__post_init__()
        self._require_steps("window")
        self._check_multiple(self.window)

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..tbptt import bind

        warm, time, _ = example.sizes
        if self.window > warm + time:
            raise ValueError(
                f"TBPTT(window={self.window}): the sequence has only {warm + time} time steps; give a window of "
                f"{warm + time} or less, or use strategy='bptt'"
            )
        self._check_length(time)
        if self.update_every != "sequence" and warm % self.window:
            raise ValueError(
                f"TBPTT(window={self.window}, update_every={self.update_every}): updates within a sequence need a "
                f"warm-up of whole windows, and it has {warm} time steps; give a window that divides {warm}, or "
                "update_every='sequence'"
            )
        return bind(self, objective, example)


@dataclass(frozen=True)
class ReadoutOnly(ScheduledStrategy):
    """Control: trains the readout and leaves the recurrence random.

    It trains the parameters that reach the output without passing through a hidden state. The others keep their initial
    values (a reservoir: Jaeger 2001). The gradient of the trained parameters is exact at every time step, and no trace
    is kept.

    The optimizer does not hold the other parameters, so neither weight decay nor a regulariser in the loss changes
    them. The reported loss still contains such a term.

    Args:
        update_every: Scored time steps per update, or "sequence".
        stateful: Continue each sequence from the hidden states of the previous one.
        batching: "batched", "vmap" or "auto".

    Example::

        fit = jaxtrain.Fit(strategy="readout_only", max_steps=1000)
    """

    name: ClassVar[str] = "readout_only"

    def bind(self, objective: Objective, example: Phases) -> Learner:
        from ..readout import bind

        self._check_length(example.sizes[1])
        return bind(self, objective, example)
