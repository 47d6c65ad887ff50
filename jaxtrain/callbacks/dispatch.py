"""Callbacks: delivers the events of a run to its callbacks, and keeps a failing logger from ending the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..distributed import processes
from ..period import Period
from ..utils.logging import log, one_line
from .base import EVENTS, RANKS, Callback
from .late import Late, is_disk_error
from .state_arrays import state_of

FINAL = ("on_exception", "on_fit_end")


class Callbacks:
    """The callbacks of one run, sorted by rank.

    A logger is a callback of rank "record". After the run has started, its errors do not end the run. At a disk error
    the event is queued and retried; at any other error the logger is disabled (``dropped``) for the rest of the run.

    Args:
        callbacks: The callbacks. Those of one rank keep their order.

    Raises:
        TypeError: Something is not a callback. The message names it.
        ValueError: A callback is invalid, or is given twice.
    """

    def __init__(self, callbacks: Iterable[Callback]):
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks must be a list of jaxtrain.Callback objects, got {callbacks!r}")
        callbacks = list(callbacks)
        for callback in callbacks:
            _check(callback)
        if len({id(callback) for callback in callbacks}) < len(callbacks):
            raise ValueError("callbacks contains one object twice, which would get every event twice")
        self.all = sorted(callbacks, key=lambda callback: RANKS.index(callback.rank))
        self._start()

    def _start(self) -> None:
        """Prepare for a run: find the listeners of each event, and give loggers that were dropped another chance."""
        self._ended = False
        self.dropped: dict[str, str] = {}
        """Name and error of each logger that was disabled in this run."""
        self._late = Late()
        # Keyed by name: a callback need not be hashable, and may equal another one.
        here = {n: c for n, c in self.keys().items() if c.rank != "record" or processes.is_first()}
        self._listeners = {event: {n: c for n, c in here.items() if _overrides(c, event)} for event in EVENTS}

    def __iter__(self) -> Iterator[Callback]:
        return iter(self.all)

    def __call__(self, event: str, *args: Any) -> None:
        """Deliver an event to every callback that overrides it."""
        if event == "on_fit_start":
            self._start()
        if event in FINAL:
            self._deliver_final(event, args)
            return
        for name, callback in [*self._listeners[event].items()]:
            self._deliver(name, callback, event, args)

    def tell(self, callback: Callback, event: str, *args: Any) -> None:
        """Deliver an event to one callback."""
        self._deliver(next(name for name, own in self.keys().items() if own is callback), callback, event, args)

    def _deliver(self, name: str, callback: Callback, event: str, args: tuple[Any, ...]) -> None:
        if name in self.dropped:
            return
        try:
            self._late.retry(name, callback)
            getattr(callback, event)(*args)
        except Exception as error:
            _note_keys(error, callback, event, args)
            if callback.rank != "record" or event in ("on_fit_start", "on_restore") or self._ended:
                raise
            self._excuse(name, event, args, error)

    def _deliver_final(self, event: str, args: tuple[Any, ...]) -> None:
        """Deliver an event of the end of a run to every callback, even if some of them fail.

        No error hides the one that ended the run: later errors become its notes. If nothing else failed, the first
        error is raised afterwards. A logger's error counts only if it means that data could not be written.
        """
        first = args[1] if event == "on_exception" else None
        if event == "on_fit_end":
            self._ended = True
            if args[1] == "failed":
                first = sys.exception()  # the error that ended the run is propagating
        raised = first
        for name, callback in self.keys().items():
            calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(self._late.retry, (name, callback))]
            if name in self._listeners[event]:
                calls.append((getattr(callback, event), args))
            for call, given in calls:
                try:
                    call(*given)
                except Exception as error:
                    if callback.rank == "record" and (name in self.dropped or not is_disk_error(error)):
                        self._drop(name, event, error)
                    elif raised is None:
                        raised = error
                    elif error is not raised:
                        failed = f"{type(callback).__name__}.{event} failed, too: {type(error).__name__}: {error}"
                        raised.add_note(f"jaxtrain: {failed}")
        if raised is not first and raised is not None:
            raise raised

    def _excuse(self, name: str, event: str, args: tuple[Any, ...], error: Exception) -> None:
        """Handle the error of a logger while the run continues."""
        if not is_disk_error(error) or not self._late.add(name, event, args, error):
            self._drop(name, event, error)

    def _drop(self, name: str, event: str, error: Exception) -> None:
        what = "failed and is disabled for the rest of this run" if name not in self.dropped else "failed, too"
        log.warning("%s.%s %s: %s", name, event, what, one_line(error))
        self.dropped.setdefault(name, one_line(error))
        self._late.forget(name)
        for other, listeners in self._listeners.items():
            if other not in FINAL:  # it may still close what it opened
                listeners.pop(name, None)

    def listens(self, event: str) -> bool:
        """Whether any callback overrides this event, in this or another process."""
        return any(_overrides(callback, event) for callback in self.all)

    def alive(self) -> list[Callback]:
        """All callbacks except those that were dropped."""
        return [callback for name, callback in self.keys().items() if name not in self.dropped]

    def states(self) -> dict[str, dict[str, Any]]:
        """The state of each callback for a checkpoint, without loggers that cannot give one."""
        states = {}
        for name, callback in self.keys().items():
            if callback.rank == "record" and not processes.is_first():
                continue  # it got no events, and only the first process saves
            try:
                states[name] = state_of(name, callback)
            except Exception as error:
                if callback.rank != "record":
                    raise
                if name not in self.dropped:
                    self._excuse(name, "state", (), error)
        return states

    def periods(self) -> list[str]:
        """The periods of each callback that has some, such as "Checkpoint.0 every 500"."""
        lines = []
        for name, callback in self.keys().items():
            given = [getattr(callback, "every", None), Period.of(callback.probe_every), *callback.boundaries()]
            texts = [str(period) for period in given if isinstance(period, Period)]
            lines += [f"{name} every {', '.join(dict.fromkeys(texts))}"] if texts else []
        return lines

    def keys(self) -> dict[str, Callback]:
        """Name of each callback in checkpoints: its class name and its position among callbacks of that class."""
        counts: dict[str, int] = {}
        keys = {}
        for callback in self.all:
            name = type(callback).__name__
            keys[f"{name}.{counts.get(name, 0)}"] = callback
            counts[name] = counts.get(name, 0) + 1
        return keys


def _note_keys(error: Exception, callback: Callback, event: str, args: tuple[Any, ...]) -> None:
    """Note which keys an event has if the error is about another one."""
    for given in args:
        if isinstance(error, KeyError) and isinstance(given, dict) and error.args[:1] and error.args[0] not in [*given]:
            name = f"{type(callback).__name__}.{event}"
            error.add_note(f"jaxtrain: in {name}, whose dict has the keys {', '.join(map(str, given))}")


def _overrides(callback: Callback, event: str) -> bool:
    return getattr(type(callback), event) is not getattr(Callback, event)


def _check(callback: Any) -> None:
    """Raise TypeError or ValueError if this cannot be a callback of a run."""
    if not isinstance(callback, Callback):
        hint = f"; did you mean {callback.__name__}()?" if isinstance(callback, type) else ""
        raise TypeError(f"callbacks and loggers must be jaxtrain.Callback objects, got {callback!r}{hint}")
    name = type(callback).__name__
    if callback.rank not in RANKS:
        raise ValueError(f"{name}.rank is {callback.rank!r}; expected one of {RANKS}")
    try:
        probe = Period.of(callback.probe_every)
    except ValueError as error:
        raise ValueError(f"{name}.probe_every: {error}") from None
    for what, period in [("probe_every", probe), *(("boundaries()", period) for period in callback.boundaries())]:
        if period is None:
            continue
        if not isinstance(period, Period):
            raise TypeError(f"{name}.{what} gives {period!r}; expected jaxtrain.period.Period objects")
        if period.unit == "time":  # the steps of boundaries must not depend on the clock
            raise ValueError(f'{name}.{what} is "{period}"; expected steps (200) or epochs ("1ep"), not a time')
