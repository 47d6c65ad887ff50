"""Callback: the base class of everything that watches a run or asks it for something.

Order of events, on which callbacks may rely:

    [reset] on_fit_start [on_restore]
    per chunk:      [on_epoch_start] on_chunk_start ... on_chunk_end
    at a boundary:  on_probe, on_validation_start, on_validation_end, on_epoch_end, on_log, on_checkpoint
    at the end:     on_exception, on_fit_end

A checkpoint is the last thing that happens at its step, so a resumed run neither loses nor repeats anything there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ..period import Period
from .foreign_names import advice

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..core.module import Module, Phases
    from ..strategies.base import Learner
    from .run import Run

RANKS = ("produce", "decide", "record", "persist")


class Callback:
    """Base class of callbacks. Override the methods you need; the others cost nothing.

    A callback changes a run only through ``run.stop``, ``run.save``, ``run.validate`` and ``run.set_task``, which take
    effect at the next boundary. A boundary is a step between two chunks at which something is due: all metrics are
    delivered, and no computation is in flight.

    A subclass with an ``on_...`` method that is not an event, such as ``on_train_end``, causes a UserWarning that names
    the right event.

    Attributes:
        rank: Position within one event. Callbacks that "produce" values come first, then those that "decide", those
            that "record" (loggers), and those that "persist". Callbacks of one rank keep the order of the list. With
            several processes, only the first process calls its "record" callbacks.
        reads_model: Whether the callback reads the model (``run.module``, ``params``, ``predict``, ``validate``) in
            ``on_chunk_start``, ``on_chunk_end`` or ``on_log``. The run then copies the model's values to the host in
            each chunk, and waits for them. At boundaries the values are available without this.
        probe_every: Steps or epochs between calls of ``probe``; None: never.

    The ``run`` of every event is the ``jaxtrain.Run`` in progress.

    Example::

        class StopOnRecall(jaxtrain.Callback):
            def on_validation_end(self, run, metrics):
                if metrics["val/accuracy"] > 0.99:
                    run.stop("recall reached 99 %")
    """

    rank: ClassVar[str] = "decide"
    reads_model: ClassVar[bool] = False
    probe_every: Period | int | str | None = None

    def probe(self, module: Module, learner: Learner, phases: Phases) -> Any:
        """Compute values on the device from one training batch. Traced, and compiled as a separate program.

        It sees the current weights and cannot change them.

        Args:
            module: The module that is trained.
            learner: The strategy's learner; ``learner.predict(phases)`` and ``learner.evaluate(phases)`` may be used.
            phases: The batch, see ``Phases`` for the shapes.

        Returns:
            A pytree of arrays. ``on_probe`` gets it as numpy arrays.
        """
        raise TypeError(f"{type(self).__name__} sets probe_every, but defines no probe(module, learner, phases)")

    def boundaries(self) -> Iterable[Period]:
        """Return the periods, in steps or epochs, at which this callback needs a boundary."""
        return ()

    def reset(self) -> None:
        """Forget earlier runs. Called before every run, and before ``load_state``."""

    def on_fit_start(self, run: Run) -> None:
        """The run starts."""

    def on_restore(self, run: Run) -> None:
        """A checkpoint was loaded. If ``run.forked``, the run continues in a new directory beside the original."""

    def on_epoch_start(self, run: Run) -> None:
        """An epoch starts."""

    def on_epoch_end(self, run: Run) -> None:
        """An epoch ended."""

    def on_chunk_start(self, run: Run) -> None:
        """A chunk of steps is about to be dispatched. The metrics of the previous chunk may not have arrived."""

    def on_chunk_end(self, run: Run, metrics: dict[str, np.ndarray]) -> None:
        """The metrics of a chunk arrived.

        Args:
            run: The run; ``run.step`` is the chunk's last step.
            metrics: One array ``(n,)`` per metric, with one value for each of the chunk's n steps. With
                ``Fit(seeds=...)`` the values are means over the S seeds, and ``seeds/loss`` is an array ``(n, S)``.
        """

    def on_probe(self, run: Run, values: Any) -> None:
        """``probe`` was computed; ``values`` is its result as numpy arrays."""

    def on_validation_start(self, run: Run) -> None:
        """A validation starts."""

    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        """A validation ended.

        Args:
            run: The run.
            metrics: One number per tag, such as ``val/loss``. With ``Fit(seeds=...)`` the numbers are means over the S
                seeds, and ``seeds/val/loss`` is a list of S numbers.
        """

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """A log entry is complete.

        Args:
            run: The run. Its step may be later than that of the entry.
            row: The log entry, ``{"step": int, tag: float, ...}``. With ``Fit(seeds=...)`` the tags below ``seeds/``
                hold lists of S numbers.
        """

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        """A callback passed a matplotlib ``figure`` to ``run.figure`` under the name ``tag``."""

    def on_histogram(self, run: Run, tag: str, values: np.ndarray) -> None:
        """A callback passed finite numbers to ``run.histogram`` under the name ``tag``: ``values``, a flat array."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        """A save has started. It is written in the background, and is complete when ``path`` exists."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """The run failed with ``error``."""

    def on_fit_end(self, run: Run, status: str) -> None:
        """The run ended. ``status``: as in ``Result.status``, or "failed"."""

    def flush(self) -> None:
        """Write to disk what was recorded so far. Called before a checkpoint is saved."""

    def state(self) -> dict[str, Any]:
        """What every checkpoint saves of this callback, so that ``load_state`` restores it exactly.

        Returns:
            A JSON dict. Unless the ``rank`` is "record", it may also hold numpy arrays of numbers, at any depth.
        """
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned when the checkpoint was saved; it is a copy that belongs to the callback."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            # A warning and no error, because a helper method may have such a name.
            if (instead := advice(name, EVENTS)) is not None:
                text = f"{cls.__name__}.{name} is never called: jaxtrain has no such event; {instead}"
                warnings.warn(text, stacklevel=2)


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_")) + ("flush",)
