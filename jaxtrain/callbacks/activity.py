"""SpikeRaster and Activity: figures of what the units of a network do over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..period import Period
from .arguments import expect, is_names, steps_or_epochs
from .base import Callback

if TYPE_CHECKING:
    from ..core.module import Module, Phases
    from ..strategies.base import Learner
    from .run import Run


class Activity(Callback):
    """Draws hidden states of the first sequence of a training batch, units over time steps, as colours.

    The figure has the tag ``activity``. A dashed line marks the end of the warm-up. Without
    ``run_dir`` and ``loggers``, nothing is written. Padding at the end of the sequence is drawn as well.

    >>> callbacks = [Activity(every=500), TensorBoard()]

    Args:
        every: Steps or epochs between figures.
        states: Names as in ``Fit.record``; None: all hidden states.

    Raises:
        ValueError: An argument is invalid, or the model has no such state.
    """

    rank = "produce"
    tag: ClassVar[str] = "activity"

    def __init__(self, every: int | str | Period, states: Sequence[str] | None = None):
        name = type(self).__name__
        self.probe_every = steps_or_epochs(every, name)
        expect(states is None or is_names(states), name, "states", states, 'a list of names, as ["rnn.h"]')
        self.states = states

    def probe(self, module: Module, learner: Learner, phases: Phases) -> dict[str, Any]:
        import jax

        from ..strategies.recording import record

        names = self.states if self.states is not None else self._default(learner)
        first = jax.tree.map(lambda leaf: leaf[:, 0].reshape(len(leaf), -1), record(learner, phases, names))
        return {"values": first, "warmup": jax.numpy.int32(phases.sizes[0])}

    def _default(self, learner: Learner) -> list[str]:
        """The names to draw if none are given."""
        return [*learner.network.hidden]

    def on_probe(self, run: Run, values: Any) -> None:
        from .drawing import activity

        run.figure(self.tag, activity(values["values"], int(values["warmup"]), run.step))


class SpikeRaster(Activity):
    """Draws the spikes of the first sequence of a training batch: a dot for each spike of a unit at a time step.

    The figure has the tag ``spikes``. A dashed line marks the end of the warm-up. Without
    ``run_dir`` and ``loggers``, nothing is written. Padding at the end of the sequence is drawn as well.

    >>> callbacks = [SpikeRaster(every=500), TensorBoard()]

    Args:
        every: Steps or epochs between figures.
        states: Names of spikes as in ``Fit.record`` (``"neurons.spike"``); None: of all neurons with ``get_spike``.

    Raises:
        ValueError: An argument is invalid, or the model has no such neurons.
    """

    tag = "spikes"

    def _default(self, learner: Learner) -> list[str]:
        from ..strategies.recording import spikes_of

        if not (found := [*spikes_of(learner)]):
            raise ValueError(
                f"SpikeRaster: no part of {type(learner.network.model).__name__} has a method get_spike; use Activity"
            )
        return found

    def on_probe(self, run: Run, values: Any) -> None:
        from .drawing import raster

        run.figure(self.tag, raster(values["values"], int(values["warmup"]), run.step))
