"""Callbacks watch a run and ask it for things; they never change its numbers.

Order of events in one step of the loop, which is law (``Fit`` and the tests hold it):

    on_fit_start, [on_restore]
    per chunk:      [on_epoch_start] on_chunk_start ... on_chunk_end
    at an event edge, in this order:
                    on_probe, on_validation_start, on_validation_end, on_epoch_end, on_row, on_checkpoint
    on_exception, on_fit_end

A checkpoint is the last thing that happens at its step, so nothing at that step is lost or repeated by a resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from .period import Period

if TYPE_CHECKING:
    from pathlib import Path

    from .run import Run

RANKS = ("produce", "decide", "record", "persist")


class Callback:
    """Base class: override what you need; what nobody overrides costs nothing.

    ``rank`` orders callbacks within one event: those that *produce* values come before those that *decide* on them,
    then those that *record*, then those that *persist*; within a rank the order of ``Fit(callbacks=...)`` holds.
    A callback changes a run only through ``run.stop``, ``run.save``, ``run.validate`` and ``run.retask``, which take
    effect at the next event edge.
    """

    rank: ClassVar[str] = "decide"

    probe_every: Period | int | str | None = None
    """How often ``probe`` runs; None (the default): never."""

    def probe(self, module, learner, phases) -> Any:
        """Traced: a pytree of numbers from the device, computed on one training batch (shapes: ``Phases``).

        Compiled as a program of its own; it sees the live weights and cannot change them. The result reaches
        ``on_probe`` as numpy arrays.
        """
        raise TypeError(f"{type(self).__name__} sets probe_every, but defines no probe(module, learner, phases)")

    def edges(self) -> Iterable[Period]:
        """Periods at which this callback needs an event edge: every metric delivered, the state at rest."""
        return ()

    def on_fit_start(self, run: Run) -> None: ...
    def on_restore(self, run: Run) -> None: ...
    def on_epoch_start(self, run: Run) -> None: ...
    def on_epoch_end(self, run: Run) -> None: ...
    def on_chunk_start(self, run: Run) -> None: ...
    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        """``metrics``: one numpy array ``(n,)`` a name, a value for each of the chunk's n steps."""

    def on_probe(self, run: Run, values: Any) -> None: ...
    def on_validation_start(self, run: Run) -> None: ...
    def on_validation_end(self, run: Run, metrics: dict[str, float]) -> None: ...
    def on_row(self, run: Run, row: dict[str, Any]) -> None:
        """``row``: one finished line of the record, ``{"step": int, tag: float, ...}``."""

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        """``figure``: a matplotlib figure that a callback made with ``run.figure``."""

    def on_checkpoint(self, run: Run, path: Path) -> None: ...
    def on_exception(self, run: Run, error: BaseException) -> None: ...
    def on_fit_end(self, run: Run, status: str) -> None: ...

    def flush(self) -> None:
        """Put on disk what was recorded so far; called before a checkpoint is saved."""

    def state(self) -> dict[str, Any]:
        """A JSON dict that ``load_state`` restores exactly; saved in every checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_")) + ("flush",)


class Callbacks:
    """The callbacks of one run in their order, with a list of listeners for each event made beforehand."""

    def __init__(self, callbacks: Iterable[Callback]):
        callbacks = list(callbacks)
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be jaxtrain.Callback objects, got {callback!r}")
            if callback.rank not in RANKS:
                raise ValueError(f"{type(callback).__name__}.rank is {callback.rank!r}; expected one of {RANKS}")
        self.all = sorted(callbacks, key=lambda callback: RANKS.index(callback.rank))
        self._listeners = {
            event: [c for c in self.all if getattr(type(c), event) is not getattr(Callback, event)] for event in EVENTS
        }

    def __iter__(self):
        return iter(self.all)

    def __call__(self, event: str, *args: Any) -> None:
        for callback in self._listeners[event]:
            getattr(callback, event)(*args)

    def listens(self, event: str) -> bool:
        return bool(self._listeners[event])

    def keys(self) -> dict[str, Callback]:
        """Name of each callback in a checkpoint: its class name and position among its kind."""
        counts: dict[str, int] = {}
        keys = {}
        for callback in self.all:
            name = type(callback).__name__
            keys[f"{name}.{counts.get(name, 0)}"] = callback
            counts[name] = counts.get(name, 0) + 1
        return keys
