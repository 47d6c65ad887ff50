"""Fit: what a user configures and calls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from ..callbacks.base import Callback
from ..callbacks.dispatch import Callbacks
from ..callbacks.periods import optional_period
from ..checkpoint.locate import absolute, chosen, opened
from ..checkpoint.store import readable
from ..core.module import Module
from ..core.ownership import alone, refuse_in_use, under_way
from ..data.iterator import as_data, begin_task, set_up
from ..engine import report as preflight
from ..engine.program import NonFinite
from ..engine.seeds import as_seeds
from ..engine.sharding import as_devices
from ..period import Period
from ..strategies import Strategy
from ..utils.coerce import as_count
from ..utils.logging import log
from .defaults import Loggers, Progress, with_defaults
from .evaluate import Kind, Readers, evaluate, predict, read
from .prepare import prepare
from .result import Result
from .session import Session, in_all_processes
from .settings import FitSettings, as_norm, as_seed, as_strategy, as_time


class Fit:
    """Trains a ``Module`` on data, under a strategy that says how gradients are made.

    ``strategy``: a name ("bptt", "drtrl") or a strategy object. The budget is ``max_steps`` (train batches), or
    ``max_epochs`` where the data has a length, or ``max_time`` ("30min"); the first reached ends the run.
    ``clip``: largest global norm of a gradient, in its own units. ``accumulate``: batches an update; those left over at
    the end make none, which is reported before and after.
    ``seed``: initial values and random numbers inside the model; data has a seed of its own. ``seeds``: a number of
    seeds, counted from ``seed``, or a list of them, trained side by side in one program on the same batches: rows hold
    means over them and under ``seeds/`` each, a checkpoint holds all, and the module ends with the model of the first.
    Under ``nonfinite="raise"`` a seed whose numbers are no longer finite is frozen as it was before.
    ``devices``: how many, or "all" that JAX has: they share the lanes of each batch, which must divide, or of several
    seeds the seeds. On CPU they are made if JAX has not started. Results of other numbers agree to rounding. Of several
    processes (``jax.distributed.initialize``) each has so many.
    ``chunk``: steps run in one dispatch; "auto" is a rule over the work of a step.
    ``validate_every``: steps, "1ep" or "10min"; a run with validation data always ends with a validation.
    ``log_every``: steps between rows of the record. ``nonfinite``: "raise", "skip" the step, or "warn".
    ``run_dir``: where config, checkpoints, logs and the result go; None keeps everything in memory.

    Raises ValueError or TypeError with one line that says what is wrong, before anything is computed or written.

    Example::

        fit = jaxtrain.Fit(strategy="drtrl", max_steps=2000, clip=1.0, validate_every=200, run_dir="runs/demo")
        result = fit.run(CopyGRU(), jaxtrain.datasets.CopyDataModule(time_lag=50), resume="last")
    """

    def __init__(
        self,
        strategy: str | Strategy,
        *,
        max_steps: int | None = None,
        max_epochs: int | None = None,
        max_time: str | Period | None = None,
        clip: float | None = None,
        accumulate: int = 1,
        seed: int = 0,
        seeds: int | Sequence[int] | None = None,
        devices: int | Literal["all"] = 1,
        chunk: int | Literal["auto"] = "auto",
        validate_every: int | str | Period | None = None,
        log_every: int = 50,
        nonfinite: NonFinite = "raise",
        callbacks: Iterable[Callback] = (),
        loggers: Loggers = "default",
        progress: Progress = "auto",
        run_dir: str | Path | None = None,
    ):
        folder = None if run_dir is None else readable(absolute(run_dir))
        self.settings = FitSettings(
            strategy=as_strategy(strategy),
            max_steps=as_count(max_steps, "max_steps"),
            max_epochs=as_count(max_epochs, "max_epochs"),
            max_time=as_time(max_time),
            clip=as_norm(clip),
            accumulate=as_count(accumulate, "accumulate", required=True),
            chunk="auto" if chunk == "auto" else as_count(chunk, "chunk", required=True),
            log_every=as_count(log_every, "log_every", required=True),
            validate_every=optional_period(validate_every, "Fit", "validate_every"),
            nonfinite=nonfinite,
            seed=as_seed(seed),
            seeds=as_seeds(seeds, seed),
            devices=as_devices(devices),
            callbacks=with_defaults(callbacks, loggers, progress, folder),
            run_dir=folder,
        )
        self._readers = Readers(self.settings.seeds[0] if self.settings.seeds else seed)
        self._latest = self.run_dir  # where the last run wrote: a fork has a directory of its own

    @property
    def callbacks(self) -> Callbacks:
        """The callbacks, in their order."""
        return self.settings.callbacks

    @callbacks.setter
    def callbacks(self, callbacks: Callbacks) -> None:
        self.settings = dataclasses.replace(self.settings, callbacks=callbacks)

    strategy = property(attrgetter("settings.strategy"))
    max_steps = property(attrgetter("settings.max_steps"))
    max_epochs = property(attrgetter("settings.max_epochs"))
    max_time = property(attrgetter("settings.max_time"))
    clip = property(attrgetter("settings.clip"))
    accumulate = property(attrgetter("settings.accumulate"))
    seed = property(attrgetter("settings.seed"))
    seeds = property(attrgetter("settings.seeds"))
    devices = property(attrgetter("settings.devices"))
    chunk = property(attrgetter("settings.chunk"))
    validate_every = property(attrgetter("settings.validate_every"))
    log_every = property(attrgetter("settings.log_every"))
    nonfinite = property(attrgetter("settings.nonfinite"))
    run_dir = property(attrgetter("settings.run_dir"))

    # ------------------------------------------------------------------------------------------------ training

    @alone("Fit.run")
    def run(
        self,
        module: Module,
        data: Any,
        *,
        resume: str | int | Path = "never",
        config: dict[str, Any] | None = None,
        dry_run: bool = False,
        batch_first: bool | None = None,
    ) -> Result:
        """Train, and return a ``Result``; never exits the process.

        ``resume``: "never" (a directory that holds a run is refused); "last" goes on where the run directory stopped
        and starts fresh where it is empty; "best", a step, or a path ``<run>/checkpoints/<step>`` fork the run into a
        directory of its own unless that step is its last. ``config``: a JSON dict recorded with the run.
        ``dry_run``: compile, report, and return without training or writing anything. ``batch_first``: the layout of
        bare batches, as ``DataModule`` has it: True for ``(B, T, ...)``, False for ``(T, B, ...)``.
        """
        started = time.perf_counter()
        refuse_in_use(module, "Fit.run", self.callbacks)
        with in_all_processes(), opened(self.run_dir, resume, write=not dry_run) as origin:
            data = as_data(data, batch_first=batch_first)
            set_up(data)
            begin_task(data, None if origin.saved is None else origin.saved.meta["task"])
            prepared = prepare(self.settings, module, data, origin, config, dry_run, self)
            for line in preflight.lines(prepared.report):
                log.info("%s", line)
            if dry_run:
                return Result("finished", prepared.run.step, "dry run", report=prepared.report)
            preflight.refuse_beyond_memory(prepared.report)
            self._latest = origin.run_dir
            self._readers.trained(module, data)
            with under_way(prepared.live), Session(prepared, origin, self._readers, started) as session:
                session.train()
            return session.result

    # ---------------------------------------------------------------------------------------------- evaluating

    @alone("Fit.validate")
    def validate(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> dict[str, float]:
        """Metrics over the validation data, ``{"val/loss": ...}``, weighted as in training.

        ``data``: a DataModule (its ``val_data``), or the batches themselves; a smaller last one counts too.
        ``checkpoint``: None uses the module's values as they are; "last", "best", a step (of this Fit's last run, or
        of its run directory), or a path load them first. ``batch_first``: the layout of bare batches, as for ``run``.
        """
        return self._evaluate(module, data, "val", checkpoint, batch_first)

    @alone("Fit.test")
    def test(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> dict[str, float]:
        """Metrics over the test data, ``{"test/loss": ...}``; see ``validate``."""
        return self._evaluate(module, data, "test", checkpoint, batch_first)

    @alone("Fit.predict")
    def predict(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> Any:
        """Outputs of ``predict_step`` over the learning phase of all batches, joined along the sequences.

        They are laid out as the data: ``(T_l, N, ...)``, or ``(N, T_l, ...)`` where it puts the batch first.
        ``data``: a DataModule (its ``predict_data``) or batches, of any number of sequences and of one length; targets
        are not needed. Compiled programs are kept as long as the module lives, so one batch a call is no slower.
        """
        return predict(*self._read(module, data, "predict", checkpoint, batch_first, "predict"))

    def _evaluate(self, module: Module, data: Any, name: str, checkpoint: Any, batch_first: Any) -> dict[str, float]:
        reader, batches, layout = self._read(module, data, name, checkpoint, batch_first, "evaluate")
        metrics = evaluate(reader, batches, name, batch_first=layout)
        assert metrics is not None  # nothing interrupts it
        return metrics

    def _read(self, module: Module, data: Any, name: str, checkpoint: Any, batch_first: Any, kind: Kind):
        saved = None if checkpoint is None else chosen(checkpoint, self._latest)
        return read(
            self._readers,
            module,
            self.strategy,
            data,
            name,
            kind=kind,
            seed=self._readers.seed,
            saved=saved,
            batch_first=batch_first,
        )
