"""Callbacks watch a run and ask it for things; they never change its numbers.

Order of events in one step of the loop, which is law (``Fit`` and the tests hold it):

    [reset] on_fit_start [on_restore]
    per chunk:      [on_epoch_start] on_chunk_start ... on_chunk_end
    at an event edge, in this order:
                    on_probe, on_validation_start, on_validation_end, on_epoch_end, on_log, on_checkpoint
    on_exception, on_fit_end

A checkpoint is the last thing that happens at its step, so nothing at that step is lost or repeated by a resume.
"""

from __future__ import annotations

import difflib
import errno
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from ..distributed import processes
from ..period import Period
from ..utils.files import as_json
from ..utils.logging import log, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from .run import Run

MOST_LATE = 10_000
"""Events that wait for a logger."""
LAST = ("on_exception", "on_fit_end")
AGAIN = ("flush", "state")
"""Asked for anew at the next save, so they need not wait."""
OF_THE_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.ENFILE, errno.EMFILE,
)  # fmt: skip
"""What a write or an fsync fails with; an open names the file beside."""
RANKS = ("produce", "decide", "record", "persist")


class Callback:
    """Base class: override what you need; what nobody overrides costs nothing.

    ``rank`` orders callbacks within one event: those that *produce* values come before those that *decide* on them,
    then those that *record*, then those that *persist*; within a rank the order of ``Fit(callbacks=...)`` holds. Of
    several processes those that *record* are told of events in the first one alone, and what it asks of a run counts.
    A callback changes a run only through ``run.stop``, ``run.save``, ``run.validate`` and ``run.set_task``, which take
    effect at the next event edge. A subclass that defines an ``on_...`` method that is no event, as ``on_train_end``,
    draws a UserWarning that names the event meant.
    """

    rank: ClassVar[str] = "decide"
    reads_model: ClassVar[bool] = False
    """Whether it reads the model (``run.module``, ``params``, ``predict``, ``validate``) in ``on_chunk_start``,
    ``on_chunk_end`` or ``on_log``: the run then keeps a copy of the values of ``run.step`` there, which takes a copy to
    the host a chunk, and waits for it. At event edges they are there anyway."""

    probe_every: Period | int | str | None = None
    """How often ``probe`` runs, in steps or epochs; None (the default): never."""

    def probe(self, module, learner, phases) -> Any:
        """Traced: a pytree of numbers from the device, computed on one training batch (shapes: ``Phases``).

        Compiled as a program of its own; it sees the live weights and cannot change them. The result reaches
        ``on_probe`` as numpy arrays.
        """
        raise TypeError(f"{type(self).__name__} sets probe_every, but defines no probe(module, learner, phases)")

    def boundaries(self) -> Iterable[Period]:
        """Periods, of steps or epochs, at which this callback needs an event edge: every metric delivered, the state
        at rest."""
        return ()

    def reset(self) -> None:
        """Forget the runs so far: called before every run, and before ``load_state`` where the run goes on from a
        checkpoint that holds this callback's state."""

    def on_fit_start(self, run: Run) -> None: ...
    def on_restore(self, run: Run) -> None:
        """After a checkpoint was loaded; ``run.forked``: into a directory of its own, beside the run it came from."""

    def on_epoch_start(self, run: Run) -> None: ...
    def on_epoch_end(self, run: Run) -> None: ...
    def on_chunk_start(self, run: Run) -> None: ...
    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        """``metrics``: one numpy array ``(n,)`` a name, a value for each of the chunk's n steps. With
        ``Fit(seeds=...)`` these are means over the S seeds, and ``seeds/loss`` is an array ``(n, S)``."""

    def on_probe(self, run: Run, values: Any) -> None: ...
    def on_validation_start(self, run: Run) -> None: ...
    def on_validation_end(self, run: Run, metrics: dict[str, Any]) -> None:
        """``metrics``: a number a tag, as ``val/loss``. With ``Fit(seeds=...)`` these are means over the S seeds, and
        ``seeds/val/loss`` is a list of S numbers."""

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """``row``: one finished line of the record, ``{"step": int, tag: float, ...}``. With ``Fit(seeds=...)`` tags
        below ``seeds/`` hold a list of S numbers."""

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        """``figure``: a matplotlib figure that a callback made with ``run.figure``."""

    def on_histogram(self, run: Run, tag: str, values: Any) -> None:
        """``values``: a flat numpy array of finite numbers that a callback gave to ``run.histogram``."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        """A save is under way: it is written in the background, and ``path`` is where it will be. It is complete when
        ``path`` exists."""

    def on_exception(self, run: Run, error: BaseException) -> None: ...
    def on_fit_end(self, run: Run, status: str) -> None: ...

    def flush(self) -> None:
        """Put on disk what was recorded so far; called before a checkpoint is saved."""

    def state(self) -> dict[str, Any]:
        """A JSON dict that ``load_state`` restores exactly; saved in every checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            if name in EVENTS or not (name.startswith("on_") or name in LIGHTNING_METHODS):
                continue
            close = difflib.get_close_matches(name, EVENTS, n=1)
            meant = LIGHTNING_METHODS.get(name) or (f"did you mean {close[0]}?" if close else "rename it without on_")
            # A helper may be called so: this is no error.
            warnings.warn(f"{cls.__name__}.{name} is never called: jaxtrain has no such event; {meant}", stacklevel=2)


LIGHTNING_METHODS = {
    **dict.fromkeys(("on_train_start", "on_train_begin", "on_fit_begin", "on_sanity_check_start"), "use on_fit_start"),
    **dict.fromkeys(("on_train_end", "on_fit_stop", "on_teardown"), "use on_fit_end"),
    **dict.fromkeys(("on_train_epoch_start", "on_epoch_begin", "on_train_epoch_begin"), "use on_epoch_start"),
    "on_train_epoch_end": "use on_epoch_end",
    **dict.fromkeys(
        ("on_train_batch_start", "on_train_batch_begin", "on_batch_start", "on_batch_begin", "on_step_begin",
         "on_step_start"),
        "use on_chunk_start",
    ),
    **dict.fromkeys(
        ("on_train_batch_end", "on_batch_end", "on_step_end", "on_before_optimizer_step", "on_after_backward",
         "on_before_zero_grad"),
        "use on_chunk_end, which gets an array with a value a step",
    ),
    **dict.fromkeys(
        ("on_test_begin", "on_validation_begin", "on_validation_epoch_start", "on_evaluate"), "use on_validation_start"
    ),
    **dict.fromkeys(("on_test_end", "on_validation_epoch_end"), "use on_validation_end"),
    **dict.fromkeys(
        ("on_validation_batch_start", "on_validation_batch_end", "on_test_batch_begin", "on_test_batch_end"),
        "use on_validation_end, which gets the means over all batches",
    ),
    "on_save_checkpoint": "define state(), or use on_checkpoint",
    "on_save": "use on_checkpoint",
    **dict.fromkeys(("on_load_checkpoint", "on_load"), "define load_state(state), or use on_restore"),
    **dict.fromkeys(("on_row", "on_log_metrics"), "use on_log"),
    "on_keyboard_interrupt": "use on_fit_end, whose status is then 'interrupted'",
    "state_dict": "define state()",
    "load_state_dict": "define load_state(state)",
}  # fmt: skip
"""What events of Lightning, Keras and others are called here."""

EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_")) + ("flush",)


class Callbacks:
    """The callbacks of one run in their order, with a list of listeners for each event made beforehand.

    Raises TypeError or ValueError with one line that names the callback that cannot be one.
    """

    def __init__(self, callbacks: Iterable[Callback]):
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks must be a list of jaxtrain.Callback objects, got {callbacks!r}")
        callbacks = list(callbacks)
        for callback in callbacks:
            if not isinstance(callback, Callback):
                hint = f"; did you mean {callback.__name__}()?" if isinstance(callback, type) else ""
                raise TypeError(f"callbacks must be jaxtrain.Callback objects, got {callback!r}{hint}")
            if callback.rank not in RANKS:
                raise ValueError(f"{type(callback).__name__}.rank is {callback.rank!r}; expected one of {RANKS}")
            _check_periods(callback)
        if len({id(callback) for callback in callbacks}) < len(callbacks):
            raise ValueError("callbacks holds one object twice, which would be told of everything twice")
        self.all = sorted(callbacks, key=lambda callback: RANKS.index(callback.rank))
        self._listen()

    def _listen(self) -> None:
        self._over = False
        self.dropped: dict[str, str] = {}
        """Loggers that failed and are told no more of this run: name and error."""
        # By name, since a callback may be one that cannot be hashed, or that equals another, as a dataclass.
        self._late: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}
        """Events that a logger could not take for want of space, or for another error of the disk, in their order."""
        self._warned: set[str] = set()
        told = {n: c for n, c in self.keys().items() if c.rank != "record" or processes.is_first()}
        self._listeners = {event: {n: c for n, c in told.items() if _has(c, event)} for event in EVENTS}

    def __iter__(self):
        return iter(self.all)

    def __call__(self, event: str, *args: Any) -> None:
        """Call every listener. Once a run has started, no error of a logger ends it (``_excuse``)."""
        if event == "on_fit_start":
            self._listen()
        if event in LAST:
            self._end(event, args)
            return
        for name, callback in [*self._listeners[event].items()]:
            self._tell(name, callback, event, args)

    def tell(self, callback: Callback, event: str, *args: Any) -> None:
        """Call one callback alone, as ``__call__`` does."""
        self._tell(next(name for name, own in self.keys().items() if own is callback), callback, event, args)

    def _tell(self, name: str, callback: Callback, event: str, args: tuple[Any, ...]) -> None:
        if name in self.dropped:
            return
        try:
            self._catch_up(name, callback)
            getattr(callback, event)(*args)
        except Exception as error:
            if callback.rank != "record" or event in ("on_fit_start", "on_restore") or self._over:
                raise
            self._excuse(name, event, args, error)

    def _end(self, event: str, args: tuple[Any, ...]) -> None:
        """At the end of a run an error of one callback keeps none of the others from being called, and none hides the
        error that ended the run: it becomes a note of that one, or else is raised after all, with later ones as its
        notes. Of a logger only what the disk did not take is such an error, and not once it was dropped."""
        first = args[1] if event == "on_exception" else None
        if event == "on_fit_end":
            self._over = True
            if args[1] == "failed":
                first = sys.exception()  # what ended the run is on its way out
        raised = first
        for name, callback in self.keys().items():
            calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(self._catch_up, (name, callback))]
            if name in self._listeners[event]:
                calls.append((getattr(callback, event), args))
            for call, given in calls:
                try:
                    call(*given)
                except Exception as error:
                    if callback.rank == "record" and (name in self.dropped or not _of_the_disk(error)):
                        self._drop(name, event, error)
                    elif raised is None:
                        raised = error
                    elif error is not raised:
                        failed = f"{type(callback).__name__}.{event} failed, too: {type(error).__name__}: {error}"
                        raised.add_note(f"jaxtrain: {failed}")
        if raised is not first and raised is not None:
            raise raised

    def _excuse(self, name: str, event: str, args: tuple[Any, ...], error: Exception) -> None:
        """A run does not end for the sake of its logs: a logger that raises is told no more until the end, with one
        warning; at an error of the disk, as a full one, with one warning a run, events wait and are offered again, in
        their order, at every later one."""
        if not _of_the_disk(error):
            self._drop(name, event, error)
            return
        if name not in self._warned:
            self._warned.add(name)
            log.warning("%s.%s failed: %s; what it is told waits, and is tried again", name, event, one_line(error))
        if event in AGAIN:
            return
        late = self._late.setdefault(name, [])
        late.append((event, (_AsItWas(args[0]), *args[1:])))
        if len(late) > MOST_LATE:
            self._drop(name, event, error)

    def _drop(self, name: str, event: str, error: Exception) -> None:
        what = "failed, and gets no more of this run" if name not in self.dropped else "failed, too"
        log.warning("%s.%s %s: %s", name, event, what, one_line(error))
        self.dropped.setdefault(name, one_line(error))
        self._late.pop(name, None)
        for other, listeners in self._listeners.items():
            if other not in LAST:  # it may still close what it opened
                listeners.pop(name, None)

    def _catch_up(self, name: str, callback: Callback) -> None:
        late = self._late.get(name, [])
        while late:
            event, args = late[0]
            getattr(callback, event)(*args)
            del late[0]
        self._late.pop(name, None)

    def listens(self, event: str) -> bool:
        """Whether any callback has this event: of several processes also one that is told of it elsewhere."""
        return any(_has(callback, event) for callback in self.all)

    def alive(self) -> list[Callback]:
        """All but those that were dropped."""
        return [callback for name, callback in self.keys().items() if name not in self.dropped]

    def states(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint holds of each; of a logger that was dropped, too, and not of one that cannot tell."""
        states = {}
        for name, callback in self.keys().items():
            if callback.rank == "record" and not processes.is_first():
                continue  # it was told nothing, and the first process saves
            try:
                states[name] = as_json(callback.state(), f"the state of callback {name}")
            except Exception as error:
                if callback.rank != "record":
                    raise
                if name not in self.dropped:
                    self._excuse(name, "state", (), error)
        return states

    def keys(self) -> dict[str, Callback]:
        """Name of each callback in a checkpoint: its class name and position among its kind."""
        counts: dict[str, int] = {}
        keys = {}
        for callback in self.all:
            name = type(callback).__name__
            keys[f"{name}.{counts.get(name, 0)}"] = callback
            counts[name] = counts.get(name, 0) + 1
        return keys


def _of_the_disk(error: Exception) -> bool:
    """Whether a logger may be offered the same again. Sockets and the libraries that use them (urllib, requests, ssl)
    raise OSErrors, too, or classes of their own that extend it: a server that stays away would cost a timeout at every
    event."""
    if not isinstance(error, OSError) or type(error).__module__ != "builtins":
        return False
    return error.filename is not None or error.errno in OF_THE_DISK


def _has(callback: Callback, event: str) -> bool:
    """Whether its class overrides an event."""
    return getattr(type(callback), event) is not getattr(Callback, event)


class _AsItWas:
    """A run for an event that waited: ``step`` and ``metrics`` of that moment, all else as it is now."""

    def __init__(self, run: Run):
        self._run, self.step, self.metrics = run, run.step, dict(run.metrics)

    def __getattr__(self, name: str) -> Any:
        if name in ("module", "params", "predict", "validate") and self.step != self._run.step:
            raise RuntimeError(
                f"run.{name} of an event of step {self.step} that waited until step {self._run.step}: its values are "
                "gone; read the model where no event waits, in a callback of another rank than 'record'"
            )
        return getattr(self._run, name)


def _check_periods(callback: Callback) -> None:
    """Edges and probes come due at steps: a time would never be one of them."""
    name = type(callback).__name__
    try:
        probe = Period.of(callback.probe_every)
    except ValueError as error:
        raise ValueError(f"{name}.probe_every: {error}") from None
    for what, period in [("probe_every", probe), *(("boundaries()", period) for period in callback.boundaries())]:
        if period is None:
            continue
        if not isinstance(period, Period):
            raise TypeError(f"{name}.{what} gives {period!r}; expected jaxtrain.period.Period objects")
        if period.unit == "time":
            raise ValueError(f'{name}.{what} is "{period}"; expected steps (200) or epochs ("1ep"), not a time')
