"""A run: what callbacks see of it, what they ask of it, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from ..utils.logging import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.module import Module
    from .base import Callbacks
    from .recorder import Recorder


class LiveModel(Protocol):
    """Gives the module the values of the present step."""

    def show(self) -> None: ...


class Reads(Protocol):
    """Predicts and validates with a module; ``Fit`` does."""

    def predict(self, module: Module, data: Any, *, batch_first: bool | None = None) -> Any: ...
    def validate(self, module: Module, data: Any, *, batch_first: bool | None = None) -> dict[str, Any]: ...


@dataclass
class Requests:
    """What callbacks asked for; the loop reads and clears it at the next event edge."""

    save: bool = False
    validate: bool = False
    stop: str | None = None
    task: dict[str, Any] | None = None

    def any(self) -> bool:
        return self.save or self.validate or self.stop is not None or self.task is not None


class Run:
    """A callback's view of a run.

    ``module``, ``params``, ``predict`` and ``validate`` have the values of ``step``. They are there in every event at
    an event edge, in ``on_fit_start``, ``on_restore`` and, unless the run failed within a chunk, ``on_fit_end``; in
    ``on_chunk_start``, ``on_chunk_end`` and the ``on_log`` of steps within a chunk the program may hold those of a
    later step, which is a RuntimeError unless a callback sets ``reads_model``.

    ``step``: train batches completed whose metrics have been delivered. ``metrics``: the last value of every tag, below
    ``seeds/`` a list, a number of each seed. ``run_dir``: None without one. ``restored_step``: the step a resumed run
    started from, else None. ``config``: what config.json holds. ``last_validation``: the step of the last complete
    validation. ``task``: the data module's, as it is now; ``set_task`` changes it.
    """

    def __init__(self, *, module: Module, callbacks: Callbacks, recorder: Recorder, config: dict[str, Any],
                 run_dir: Path | None, max_steps: int | None, epoch_length: int | None, batch_size: int,
                 params: Callable[[], dict[str, Any]], fit: Reads | None = None):  # fmt: skip
        self.own_module, self._fit = module, fit
        self.live: LiveModel | None = None
        self.callbacks = callbacks
        self.recorder = recorder
        self.config = config
        self.run_dir = run_dir
        self.max_steps = max_steps
        self.epoch_length = epoch_length
        self.batch_size = batch_size
        self.step = 0
        self.restored_step: int | None = None
        self.first_open_entry: int | None = None
        """After a restore: the step of the first row that the checkpoint still holds, to be written later."""
        self.last_validation: int | None = None
        self.metrics: dict[str, Any] = {}
        self.requests = Requests()
        self.score: float | None = None
        self.has_validation = True
        self.forked = False
        self.task: dict[str, Any] = {}
        self._params = params
        self._open_entries = True

    @property
    def log_limit(self) -> int:
        """At the time of ``on_restore``: the last step whose rows the record may hold."""
        return self.step if self.first_open_entry is None else self.first_open_entry - 1

    def log(self, values: dict[str, float]) -> None:
        """Put values into the next row of the record (tag -> number)."""
        if not self._open_entries:
            raise RuntimeError(
                f"run.log({list(values)}) in on_checkpoint or on_fit_end: the row of step {self.step} is written; "
                "log in on_validation_end or on_chunk_end"
            )
        self.recorder.log(self.step, values)
        self.metrics.update({name: float(value) for name, value in values.items()})

    @contextmanager
    def closed(self) -> Iterator[None]:
        """While the rows of this step are already written."""
        self._open_entries = False
        try:
            yield
        finally:
            self._open_entries = True

    def figure(self, tag: str, figure: Any) -> None:
        """Hand a matplotlib figure to the loggers under ``tag`` at this step."""
        self.callbacks("on_figure", self, tag, figure)

    def histogram(self, tag: str, values: Any) -> None:
        """Hand an array of numbers to the loggers under ``tag`` at this step: how its values are distributed. Those
        that are not finite are left out, with a warning."""
        array = np.ravel(np.asarray(values))
        if array.dtype.kind in "cOUSmM":
            raise TypeError(f"run.histogram({tag!r}): got {array.dtype}; expected an array of real numbers")
        array = array.astype(np.float64)
        finite = array[np.isfinite(array)]
        if (left_out := len(array) - len(finite)) > 0:
            log.warning("step %d: %d of %d values of %s are not finite", self.step, left_out, len(array), tag)
        if len(finite):
            self.callbacks("on_histogram", self, tag, finite)

    def stop(self, reason: str) -> None:
        """End the run at the next event edge, after a validation and a save."""
        self.requests.stop = self.requests.stop or reason

    def save(self) -> None:
        """Save a checkpoint at the next event edge; ``run.score``, if set at that step, ranks it."""
        self.requests.save = True

    @overload
    def validate(self) -> None: ...
    @overload
    def validate(self, data: Any, *, batch_first: bool | None = None) -> dict[str, Any]: ...
    def validate(self, data: Any = None, *, batch_first: bool | None = None) -> dict[str, Any] | None:
        """Validate at the next event edge. Given ``data``, do it now and return the metrics, as ``Fit.validate`` with
        the values of ``step``; see ``predict``. Of several seeds these are means, and under ``seeds/`` each."""
        if data is None:
            self.requests.validate = True
            return None
        assert self._fit is not None
        return self._fit.validate(self.own_module, data, batch_first=batch_first)

    def set_task(self, **params: Any) -> None:
        """Change the data module's ``task`` at the next event edge (a curriculum)."""
        self.requests.task = {**(self.requests.task or {}), **params}

    def state(self) -> dict[str, Any]:
        """What a checkpoint's metadata holds of the run as callbacks see it."""
        return {
            "step": self.step,
            "callbacks": self.callbacks.states(),
            "recorder": self.recorder.state(),
            "metrics": self.metrics,
            "last_validation": self.last_validation,
            "requests": vars(self.requests),
        }

    def load_state(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's metadata."""
        self.step = self.restored_step = meta["step"]
        self.metrics, self.last_validation = dict(meta["metrics"]), meta["last_validation"]
        self.requests = Requests(**meta["requests"])
        self.recorder.load_state(meta["recorder"])
        unwritten = self.recorder.entries  # of a step whose validation a signal ended
        self.first_open_entry = unwritten[0]["step"] if unwritten else None
        keys = self.callbacks.keys()
        for key, state in meta["callbacks"].items():
            if key in keys:
                keys[key].load_state(state)
            elif state:
                log.warning("resume: the checkpoint holds the state of a callback that this run lacks: %s", key)
        for key in keys:
            if key not in meta["callbacks"] and keys[key].state():
                log.warning("resume: %s was not part of the saved run and starts anew", key)

    @property
    def module(self) -> Module:
        """The module, its model given the values of ``step``; of several seeds, those of the first that is not frozen.

        Ask for it anew in every event: a handle from an earlier one has that one's values, until it is handed to
        ``Fit.predict``, ``validate`` or ``test``, which read it as ``run.predict`` does.
        """
        if self.live is not None:
            self.live.show()
        return self.own_module

    def params(self) -> dict[str, Any]:
        """A host copy of the parameters at ``step``, name -> pytree of numpy arrays; of several seeds with an axis of
        seeds first."""
        return self._params()

    def predict(self, data: Any, *, batch_first: bool | None = None) -> Any:
        """As ``Fit.predict`` with the values of ``step``; of several seeds, by the first that is not frozen.

        The run's own compiled programs do it, made once for each shape of batch. Bare batches have the layout of the
        run's own data unless ``batch_first`` states another. Of several processes each may call this by itself.
        """
        assert self._fit is not None
        return self._fit.predict(self.own_module, data, batch_first=batch_first)
