"""Run: what callbacks see of a run, and what they ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from ..utils.logging import log

if TYPE_CHECKING:
    from ..core.module import Module
    from .dispatch import Callbacks
    from .recorder import Recorder


class LiveModel(Protocol):
    """Gives access to the model's values at the current step."""

    def show(self) -> None: ...
    def params(self) -> dict[str, Any]: ...


class Reads(Protocol):
    """Reads a module; ``Fit`` does."""

    def predict(self, module: Module, data: Any, *, batch_first: bool | None = None) -> Any: ...
    def validate(self, module: Module, data: Any, *, batch_first: bool | None = None) -> dict[str, Any]: ...
    def record(self, module: Module, data: Any, states: Any, *, batch_first: bool | None = None) -> Any: ...
    def generate(self, module: Module, prompt: Any, steps: int, *, sample: Any, seed: int | None,
                 batch_first: bool | None = None) -> Any: ...  # fmt: skip


@dataclass
class Requests:
    """What callbacks asked for. The loop reads and clears it at the next boundary."""

    save: bool = False
    validate: bool = False
    stop: str | None = None
    task: dict[str, Any] | None = None

    def any(self) -> bool:
        return self.save or self.validate or self.stop is not None or self.task is not None


@dataclass(kw_only=True, eq=False, repr=False)
class Run:
    """A run as its callbacks see it.

    ``Fit`` creates it of ``own_module``, ``callbacks``, ``recorder``, ``reader``, the ``live`` model and ``requests``.
    ``module``, ``params``, ``predict``, ``validate``, ``record`` and ``generate`` have the model's values at ``step``.
    The values are available in every event at a boundary, in ``on_fit_start`` and ``on_restore``, and in ``on_fit_end``
    unless the run failed within a chunk. In ``on_chunk_start``, ``on_chunk_end`` and the ``on_log`` of steps within a
    chunk, the program may already hold the values of a later step; reading them is then a RuntimeError unless the
    callback sets ``reads_model``.

    Attributes:
        step: Number of completed train batches whose metrics have been delivered.
        metrics: The last value of every tag. Below ``seeds/`` a value is a list with one number per seed.
        run_dir: The run directory, or None.
        config: The content of config.json.
        max_steps: Steps of the whole run, or None if only its time is limited.
        epoch_length: Batches of an epoch, or None if the train data has no length.
        batch_size: Sequences of a batch.
        restored_step: The step that a resumed run started from, else None.
        forked: Whether the run continues another one in a new directory.
        has_validation: Whether the run has validation data.
        tags: Tags of the metrics of training and validation that are numbers, as the log will show them.
        last_validation: The step of the last complete validation, or None.
        task: The data module's task; ``set_task`` changes it.
        score: The value that ranks a checkpoint saved at this step, or None.

    Example::

        class Stop(jaxtrain.Callback):
            def on_validation_end(self, run, metrics):
                run.log({"val/error": 1 - metrics["val/accuracy"]})
    """

    own_module: Module
    callbacks: Callbacks
    recorder: Recorder
    config: dict[str, Any]
    run_dir: Path | None
    max_steps: int | None
    epoch_length: int | None
    batch_size: int
    reader: Reads | None = None
    live: LiveModel | None = None
    step: int = 0
    restored_step: int | None = None
    first_open_entry: int | None = None
    """After a restore: the step of the first log entry that the checkpoint holds because it is still to be written."""
    last_validation: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    requests: Requests = field(default_factory=Requests)
    score: float | None = None
    has_validation: bool = True
    tags: list[str] = field(default_factory=list)
    forked: bool = False
    task: dict[str, Any] = field(default_factory=dict)
    accepts_values: bool = True
    """Whether the log entry of this step is still open."""

    @property
    def log_limit(self) -> int:
        """Valid during ``on_restore``: log entries after this step must be dropped."""
        return self.step if self.first_open_entry is None else self.first_open_entry - 1

    def log(self, values: dict[str, float]) -> None:
        """Add values to the next log entry.

        Args:
            values: One number per tag.

        Raises:
            ValueError: A value is not one number, or a tag is reserved.
            RuntimeError: The log entry of this step is already written.
        """
        if not self.accepts_values:
            raise RuntimeError(
                f"run.log({list(values)}) in on_checkpoint or on_fit_end: the log entry of step {self.step} is already "
                "written; log in on_validation_end or on_chunk_end"
            )
        self.recorder.log(self.step, values)
        self.metrics.update({name: float(value) for name, value in values.items()})

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Return a context that refuses ``log``, because the log entries of this step are already written."""
        self.accepts_values = False
        try:
            yield
        finally:
            self.accepts_values = True

    def figure(self, tag: str, figure: Any) -> None:
        """Pass a matplotlib figure of this step to the loggers.

        Args:
            tag: Name of the figure.
            figure: The figure. It is closed after it was written.
        """
        self.callbacks("on_figure", self, tag, figure)

    def histogram(self, tag: str, values: Any) -> None:
        """Pass the distribution of an array at this step to the loggers.

        Args:
            tag: Name of the histogram.
            values: An array of any shape. Values that are not finite are left out, with a warning.

        Raises:
            TypeError: The values are not real numbers.
        """
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
        """End the run at the next boundary, after a validation and a save. ``reason`` is shown and saved."""
        self.requests.stop = self.requests.stop or reason

    def save(self) -> None:
        """Save a checkpoint at the next boundary; ``score``, if set at that step, ranks it."""
        self.requests.save = True

    @overload
    def validate(self) -> None: ...
    @overload
    def validate(self, data: Any, *, batch_first: bool | None = None) -> dict[str, Any]: ...
    def validate(self, data: Any = None, *, batch_first: bool | None = None) -> dict[str, Any] | None:
        """Validate at the next boundary, or now if data is given.

        Args:
            data: None, or what ``Fit.validate`` takes.
            batch_first: Layout of bare batches (default: that of the run's data).

        Returns:
            With ``data``, the metrics at ``step``; for several seeds their means, and each seed's values below
            ``seeds/``.
        """
        if data is None:
            self.requests.validate = True
            return None
        assert self.reader is not None
        return self.reader.validate(self.own_module, data, batch_first=batch_first)

    def set_task(self, **params: Any) -> None:
        """Change parameters of the data module's ``task`` at the next boundary, as a curriculum does."""
        self.requests.task = {**(self.requests.task or {}), **params}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint's metadata holds of the run."""
        return {
            "step": self.step,
            "callbacks": self.callbacks.states(),
            "recorder": self.recorder.state(),
            "metrics": self.metrics,
            "last_validation": self.last_validation,
            "requests": vars(self.requests),
        }

    def load_state(self, meta: dict[str, Any]) -> None:
        """Continue from ``meta``, a checkpoint's metadata."""
        self.step = self.restored_step = meta["step"]
        self.metrics, self.last_validation = dict(meta["metrics"]), meta["last_validation"]
        self.requests = Requests(**meta["requests"])
        self.recorder.load_state(meta["recorder"])
        unwritten = self.recorder.entries  # of a step whose validation was interrupted by a signal
        self.first_open_entry = unwritten[0]["step"] if unwritten else None
        keys = self.callbacks.keys()
        for key, state in meta["callbacks"].items():
            if key in keys:
                keys[key].load_state(state)
            elif state:
                log.warning("resume: the checkpoint holds the state of a callback that this run lacks: %s", key)
        for key in keys:
            if key not in meta["callbacks"] and keys[key].state():
                log.warning("resume: %s was not part of the saved run and starts from scratch", key)

    @property
    def module(self) -> Module:
        """The module, with the model's values at ``step``; for several seeds those of the first that is not frozen.

        Read it again in every event. A module kept from an earlier event has the values of that time, unless it is
        passed to ``Fit.predict``, ``validate`` or ``test``, which read it as ``run.predict`` does.
        """
        if self.live is not None:
            self.live.show()
        return self.own_module

    def params(self) -> dict[str, Any]:
        """Copy the parameters at ``step`` to the host.

        Returns:
            A pytree of numpy arrays by parameter name; for several seeds with a leading seed axis.
        """
        assert self.live is not None
        return self.live.params()

    def predict(self, data: Any, *, batch_first: bool | None = None) -> Any:
        """Predict as ``Fit.predict``, with the values at ``step``; for several seeds by the first that is not frozen.

        Uses the run's compiled programs, which are compiled once for each shape of batch. With several processes, each
        may call this alone.

        Args:
            data: What ``Fit.predict`` takes.
            batch_first: Layout of bare batches (default: that of the run's data).

        Returns:
            The outputs of ``predict_step``, joined along the sequences.
        """
        assert self.reader is not None
        return self.reader.predict(self.own_module, data, batch_first=batch_first)

    def record(self, data: Any, states: Sequence[str] | None = None, *, batch_first: bool | None = None) -> Any:
        """Record hidden states, spikes and outputs with the values at ``step``; see ``predict``.

        Returns:
            What ``Fit.record`` returns for ``data``, ``states`` and ``batch_first``.
        """
        assert self.reader is not None
        return self.reader.record(self.own_module, data, states, batch_first=batch_first)

    def generate(self, prompt: Any, steps: int, *, sample: Any = None, seed: int | None = None,
                 batch_first: bool | None = None) -> Any:  # fmt: skip
        """Run the module on a prompt, and then freely, with the values at ``step``; see ``predict``.

        Returns:
            What ``Fit.generate`` returns for ``prompt``, ``steps``, ``sample``, ``seed`` and ``batch_first``.
        """
        assert self.reader is not None
        return self.reader.generate(self.own_module, prompt, steps, sample=sample, seed=seed, batch_first=batch_first)
