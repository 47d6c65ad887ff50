"""Fit: the entry point. It trains, validates, tests and predicts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from ..callbacks.arguments import optional_period
from ..callbacks.base import Callback
from ..callbacks.dispatch import Callbacks
from ..checkpoint.locate import open_run
from ..checkpoint.run_directory import absolute, read_chosen
from ..checkpoint.step_folders import readable
from ..core.module import Module
from ..core.ownership import alone, refuse_in_use, under_way
from ..data.datamodule import as_data, begin_task, set_up
from ..engine import report as preflight
from ..engine.seeds import as_seeds
from ..engine.sharding import as_devices
from ..engine.steps import NonFinite
from ..period import Period
from ..strategies import Strategy
from ..utils.coerce import as_count
from ..utils.foreign_arguments import ForeignArguments
from ..utils.logging import log
from .control import in_all_processes
from .defaults import Loggers, Progress, with_defaults
from .evaluate import evaluate
from .online import online
from .outputs import ReadsOutputs
from .prepare import prepare
from .reader import METRICS, Readers, What, prefixes, read
from .result import Result
from .session import Session
from .settings import FitSettings, as_norm, as_seed, as_strategy, as_time


class Fit(ReadsOutputs, ForeignArguments):
    """Trains a ``Module`` on data under a strategy, which determines how gradients are computed.

    The budget is ``max_steps``, ``max_epochs`` or ``max_time``; the first one that is reached ends the run.

    With a run directory, a run writes metrics.jsonl and TensorBoard files with learning rate and speed, its newest
    checkpoint, and with validation data the one with the best ``val/loss``. Without one it writes nothing. A callback
    in ``callbacks`` replaces the default callback of its class.

    Args:
        strategy: A name ("bptt", "drtrl") or a strategy object.
        max_steps: Train batches of the whole run.
        max_epochs: Passes over the train data, which must have a length.
        max_time: Time of the run, such as ``"30min"``.
        clip: Largest global norm of a gradient; None: no clipping.
        accumulate: Train batches per update. Batches that are left over at the end make no update, which is reported
            before and after the run.
        seed: Seed of the initial values and of random numbers in the model. Data has its own seed.
        seeds: A number of seeds, counted from ``seed``, or a list of seeds. They are trained side by side in one
            program on the same batches. Log entries hold means over the seeds, and each seed's values below ``seeds/``;
            a checkpoint holds all seeds; the module ends with the model of the first. With ``nonfinite="raise"``, a
            seed whose numbers are no longer finite is frozen with its last finite values.
        devices: Number of devices, "all" or "auto". The batch (or, with ``seeds``, the seeds) is split evenly over
            them. CPU devices are created if JAX has not started. Results with different numbers of devices agree up to
            rounding. With several processes (``jax.distributed.initialize``), the number for each process. "auto" means
            one per CPU core if the batch divides and a time step is worth it, else fewer; a resumed run keeps its
            number.
        chunk: Steps per dispatch; "auto" chooses it by the work of one step.
        validate_every: Steps, ``"1ep"`` or ``"10min"`` between validations. A run with validation data always ends with
            a validation.
        log_every: Steps between log entries.
        nonfinite: What to do about a step that is not finite: "raise", "skip" the step, or "warn".
        callbacks: Callbacks, see ``jaxtrain.Callback``.
        loggers: The loggers of the run. "default" means ``JSONL()`` and ``TensorBoard()`` if there is a run directory;
            ``()`` turns them off. ``LearningRateMonitor`` and ``Throughput`` are added if there are loggers.
        progress: Whether to show a progress bar: "auto" on a terminal or in a notebook; True elsewhere logs a line
            every 30 seconds.
        run_dir: Directory for configuration, checkpoints, logs and result; None keeps everything in memory.

    Raises:
        ValueError: An argument is invalid. Raised before anything is computed or written.
        TypeError: An argument has the wrong type.

    Example::

        fit = jaxtrain.Fit(strategy="drtrl", max_epochs=2, clip=1.0, validate_every="1ep", run_dir="runs/demo")
        result = fit.run(MyModule(), data, resume="last")
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
        devices: int | Literal["all", "auto"] = 1,
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
        given = [tuple(own) if isinstance(own, Iterator) else own for own in (callbacks, loggers)]
        self._with_defaults = partial(with_defaults, *given, progress)
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
            callbacks=self._with_defaults(folder),
            run_dir=folder,
        )
        self._readers = Readers(self.settings.seeds[0] if self.settings.seeds else seed)
        self._latest = self.run_dir  # where the last run wrote; a fork writes to a new directory

    @property
    def callbacks(self) -> Callbacks:
        """All callbacks of a run, with the defaults, in the order in which they are called."""
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
        test: bool = False,
        batch_first: bool | None = None,
    ) -> Result:
        """Train. Never exits the process.

        Args:
            module: The module to train.
            data: A ``DataModule``, or the train batches.
            resume: "never" refuses a directory that holds a run. "last" continues where the run directory stopped, and
                starts from scratch if it is empty. "best", a step, or a path ``<run>/checkpoints/<step>`` continue from
                that checkpoint in a new directory, or in the same one if it is the last checkpoint.
            config: A JSON dict that is stored in config.json.
            dry_run: Compile and report, without training or writing anything.
            test: Compute metrics over ``data.test_data()`` once the run is over, with its last values: ``test/loss``
                and others in the result and the logs. A run that a signal ended tests when it has been resumed.
            batch_first: Layout of bare batches: True for ``(B, T, ...)``, False for ``(T, B, ...)``.

        Returns:
            The result of the run.

        Raises:
            ValueError: The data, the module or ``resume`` does not fit, or there is no budget.
            NonFiniteError: A step was not finite and ``nonfinite`` is "raise".
        """
        started = time.perf_counter()
        refuse_in_use(module, "Fit.run", self.callbacks)
        with in_all_processes(), open_run(self.run_dir, resume, write=not dry_run) as origin:
            settings = self.settings
            if settings.run_dir is None and origin.run_dir is not None:  # resume is the path of a checkpoint
                settings = dataclasses.replace(
                    settings, run_dir=origin.run_dir, callbacks=self._with_defaults(origin.run_dir)
                )
            data = as_data(data, batch_first=batch_first)
            set_up(data)
            begin_task(data, None if origin.saved is None else origin.saved.meta["task"])
            prepared = prepare(settings, module, data, origin, config, dry_run, self, test)
            for line in preflight.lines(prepared.report):
                log.info("%s", line)
            if dry_run:
                return Result("finished", prepared.run.step, "dry run", report=prepared.report)
            self._latest = origin.run_dir
            self._readers.trained(module, data, prepared.workload.batch_first)
            with under_way(prepared.live), Session(prepared, origin, self._readers, started) as session:
                session.train()
            return session.result

    online = online

    # ---------------------------------------------------------------------------------------------- evaluating

    @alone("Fit.validate")
    def validate(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> dict[str, Any]:
        """Compute metrics over validation data, weighted as in training.

        Args:
            module: The module.
            data: A DataModule (its ``val_data`` is used), batches, or a dict of several sets of batches by name. A
                smaller last batch is included.
            checkpoint: The values to load first: "last", "best", a step (of this Fit's last run, or of its run
                directory) or a path. None uses the module's current values.
            batch_first: Layout of bare batches, as in ``run``.

        Returns:
            One number per metric, ``{"val/loss": ...}``; of several sets ``{"val/clean/loss": ...}``. A metric with
            several values is a nested list.
        """
        return self._evaluate(module, data, "val", checkpoint, batch_first)

    @alone("Fit.test")
    def test(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> dict[str, Any]:
        """Compute metrics over test data, weighted as in training.

        Args:
            module: The module.
            data: A DataModule (its ``test_data`` is used), batches, or a dict of several sets of batches by name.
            checkpoint: As in ``validate``.
            batch_first: Layout of bare batches, as in ``run``.

        Returns:
            One number per metric, ``{"test/loss": ...}``, as in ``validate``.
        """
        return self._evaluate(module, data, "test", checkpoint, batch_first)

    def _evaluate(self, module: Module, data: Any, name: str, checkpoint: Any, batch_first: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for prefix, (part, source) in prefixes(data, name, batch_first).items():
            reader, batches, layout = self._read(module, part, prefix, checkpoint, batch_first, METRICS, source=source)
            found = evaluate(reader, batches, prefix, batch_first=layout)
            assert found is not None  # only a signal handler of a run interrupts it
            metrics, checkpoint = {**metrics, **found}, None  # its values are loaded
        return metrics

    def _read(self, module: Module, data: Any, name: str, checkpoint: Any, batch_first: Any, what: What, seed=None,
              source=None):  # fmt: skip
        saved = None if checkpoint is None else read_chosen(checkpoint, self._latest)
        return read(
            self._readers,
            module,
            self.strategy,
            data,
            name,
            what=what,
            seed=seed,
            saved=saved,
            batch_first=batch_first,
            source=source,
        )
