"""Fit: what a user configures and calls. It assembles a run (program, data, directory, callbacks) and loops."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..callbacks.base import Callback, Callbacks
from ..callbacks.checkpoint import Checkpoint, best_of, kept_by, require_metrics
from ..callbacks.periods import optional_period
from ..callbacks.recorder import Recorder
from ..callbacks.run import Run
from ..checkpoint.load import build_each, require_module
from ..checkpoint.locate import CHECKPOINTS, Origin, absolute, chosen, describe, log_changes, opened, refuse_unlike_runs
from ..checkpoint.locate import refuse_differences as refuse
from ..checkpoint.store import Store, readable
from ..core.module import Module
from ..core.ownership import alone, refuse_in_use, under_way
from ..core.state import flatten, parameters, signature
from ..data.batch import Spec, stated_layout
from ..data.iterator import DataModule, Feed, as_data, begin_task, change_task, set_up, warn_of_layout
from ..data.passes import Passes, validation_passes
from ..distributed import processes
from ..engine import report as preflight
from ..engine.optimizer import accumulated_batches
from ..engine.program import NonFinite, Program
from ..engine.seeds import as_seeds, is_seed
from ..engine.sharding import as_devices
from ..errors import NonFiniteError
from ..period import Period
from ..strategies import Strategy
from ..strategies.names import make_strategy
from ..utils.coerce import as_count
from ..utils.diff import first_difference
from ..utils.files import as_json, read_json, write_json
from ..utils.logging import log
from .evaluate import Kind, Readers, evaluate, predict, read
from .loop import Loop
from .outcome import summarize
from .result import Result, Status
from .run_config import recorded
from .schedule import Schedule, total_steps, unused_batches
from .signals import Signals


class Fit:
    """Trains a ``Module`` on data, under a strategy that says how gradients are made.

    ``strategy``: a name ("bptt", "drtrl") or a strategy object. The budget is ``max_steps`` (train batches), or
    ``max_epochs`` where the data has a length, or ``max_time`` ("30min"); the first reached ends the run.
    ``clip``: largest global norm of a gradient, in its own units. ``accumulate``: batches an update; those left over at
    the end make none, which is reported before and after.
    ``seed``: initial values and random numbers inside the model; data has a seed of its own. ``seeds``: a number of
    seeds, counted from ``seed``, or a list of them, trained side by side in one program on the same batches: rows hold
    means over them and under ``lanes/`` each, a checkpoint holds all, and the module ends with the model of the first.
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
        result = fit.run(CopyGRU(), jaxtrain.CopyDataModule(time_lag=50), resume="last")
    """

    def __init__(self, strategy: str | Strategy, *, max_steps: int | None = None, max_epochs: int | None = None,
                 max_time: str | Period | None = None, clip: float | None = None, accumulate: int = 1, seed: int = 0,
                 seeds: int | Sequence[int] | None = None, devices: int | Literal["all"] = 1,
                 chunk: int | Literal["auto"] = "auto",
                 validate_every: int | str | Period | None = None,
                 log_every: int = 50, nonfinite: NonFinite = "raise", callbacks: Iterable[Callback] = (),
                 run_dir: str | Path | None = None):  # fmt: skip
        self.strategy = make_strategy(strategy) if isinstance(strategy, str) else strategy
        if not isinstance(self.strategy, Strategy):
            hint = f"; did you mean {strategy.__name__}()?" if isinstance(strategy, type) else ""
            raise TypeError(f"Fit(strategy={strategy!r}): expected a name or a jaxtrain.Strategy object{hint}")
        self.max_steps = as_count(max_steps, "max_steps")
        self.max_epochs = as_count(max_epochs, "max_epochs")
        self.max_time = optional_period(max_time, "Fit", "max_time")
        if self.max_time is not None and self.max_time.unit != "time":
            raise ValueError(f"Fit(max_time={max_time!r}): expected a time, as '30min' or '2h'")
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, Real) or not 0 < clip < np.inf):
            raise ValueError(f"Fit(clip={clip!r}): expected a positive norm, or None")
        if nonfinite not in ("raise", "skip", "warn"):
            raise ValueError(f"Fit(nonfinite={nonfinite!r}): expected 'raise', 'skip' or 'warn'")
        if not is_seed(seed):
            raise ValueError(f"Fit(seed={seed!r}): expected a whole number from 0 to 2**32 - 1")
        self.clip = None if clip is None else float(clip)
        self.accumulate = as_count(accumulate, "accumulate", required=True)
        if self.max_steps is not None and self.max_steps < self.accumulate:
            raise ValueError(f"Fit(accumulate={accumulate}, max_steps={max_steps}): no update would be made")
        self.chunk: int | Literal["auto"] = "auto" if chunk == "auto" else as_count(chunk, "chunk", required=True)
        self.log_every = as_count(log_every, "log_every", required=True)
        self.validate_every = optional_period(validate_every, "Fit", "validate_every")
        self.seed, self.seeds = seed, as_seeds(seeds, seed)
        self.devices = as_devices(devices)
        self._held = self.seeds[0] if self.seeds else seed  # the seed whose values a module has after a run
        self.nonfinite: NonFinite = nonfinite
        self.callbacks = Callbacks(callbacks)
        kept = [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]
        if len(kept) > 1:
            raise ValueError("Fit takes one Checkpoint callback: it decides which checkpoints are kept")
        if kept and run_dir is None:
            raise ValueError("Checkpoint needs a run directory: Fit(run_dir=...)")
        self._checkpoint = kept[0] if kept else None
        self.run_dir = None if run_dir is None else readable(absolute(run_dir))
        self._readers = Readers()
        self._latest = self.run_dir  # where the last run wrote: a fork has a directory of its own

    # ------------------------------------------------------------------------------------------------ training

    @alone("Fit.run")
    def run(self, module: Module, data: Any, *, resume: str | int | Path = "never",
            config: dict[str, Any] | None = None, dry_run: bool = False,
            batch_first: bool | None = None) -> Result:  # fmt: skip
        """Train, and return a ``Result``; never exits the process.

        ``resume``: "never" (a directory that holds a run is refused); "last" goes on where the run directory stopped
        and starts fresh where it is empty; "best", a step, or a path ``<run>/checkpoints/<step>`` fork the run into a
        directory of its own unless that step is its last. ``config``: a JSON dict recorded with the run.
        ``dry_run``: compile, report, and return without training or writing anything. ``batch_first``: the layout of
        bare batches, as ``DataModule`` has it: True for ``(B, T, ...)``, False for ``(T, B, ...)``.
        """
        started = time.perf_counter()
        refuse_in_use(module, "Fit.run", self.callbacks)
        processes.begin()
        with processes.watched(), opened(self.run_dir, resume, write=not dry_run) as origin:
            data = as_data(data, batch_first=batch_first)
            set_up(data)
            begin_task(data, None if origin.saved is None else origin.saved.meta["task"])
            loop = self._assemble(module, data, origin, config, dry_run)
            layout = stated_layout(loop.program.example, "train", loop.feed.batch_first)
            report = {
                **loop.program.report(),
                "batch_first": layout,
                "val": preflight.val_sizes(loop.program.module, loop.val),
            }
            for line in preflight.lines(report):
                log.info("%s", line)
            if dry_run:
                return Result("finished", loop.run.step, "dry run", report=report)
            preflight.refuse_beyond_memory(report)
            self._latest = origin.run_dir
            self._readers.trained(module, data)
            with under_way(loop.live):
                return self._train(loop, origin, report, started)

    def _train(self, loop: Loop, origin: Origin, report: dict[str, Any], started: float) -> Result:
        run, saved = loop.run, origin.saved
        over = None if saved is None or loop.cut else saved.meta["over"]
        if over is not None and (origin.explicit if over[0] == "stopped" else not loop.is_over()):
            over = None  # asked to train on, or given a larger budget
        trains = over is None and (loop.cut or not loop.is_over())
        loop.store = None if origin.run_dir is None else self._store(origin.run_dir)
        written = origin.run_dir if processes.is_first() else None
        if written is not None and (trains or not (written / "config.json").exists()):
            write_json(written / "config.json", run.config)
        status: Status = "failed"
        try:
            with loop.signals:
                loop.callbacks("on_fit_start", run)
                if saved is not None or origin.restarted:
                    loop.callbacks("on_restore", run)
                if over is not None:
                    loop.stay_over(*over)
                if trains and written is not None:
                    (written / "result.json").unlink(missing_ok=True)  # of an earlier part of the run
                loop.train()
                loop.saved = None if loop.store is None else loop.store.wait()
                status = loop.status or "finished"
        except BaseException as error:
            loop.callbacks("on_exception", run, error)
            raise
        finally:
            try:
                # Values that are not finite are of no use; and a process that failed must not wait for the others.
                if not isinstance(sys.exception(), NonFiniteError) and (status != "failed" or processes.count() == 1):
                    self._held = loop.program.write_back()
            finally:
                try:
                    if loop.store is not None:
                        loop.store.close()
                finally:
                    try:
                        result = self._result(loop, status, report, started, trains)
                    finally:
                        with run.closed():
                            loop.callbacks("on_fit_end", run, status)
        return result

    def _assemble(self, module: Module, data: DataModule, origin: Origin, config: dict[str, Any] | None,
                  dry_run: bool) -> Loop:  # fmt: skip
        """Everything that can be wrong is found here, before a run directory is touched; what is cheap, first."""
        require_module(module)
        if self.max_steps is None and self.max_epochs is None and self.max_time is None:
            raise ValueError("Fit.run needs a budget: Fit(max_steps=...), max_epochs or max_time")
        saved, initial = origin.saved, "seed" if module.model is None else "values"
        feed = Feed(data.train_data(), "train", data.batch_first)
        example = feed.example()
        warn_of_layout(data, example, feed.batch_first)
        val = validation_passes(data)
        if val is None and self.validate_every is not None:
            raise ValueError(
                f"Fit(validate_every={self.validate_every.shown()}), but {type(data).__name__} has no val data: give "
                "jaxtrain.DataModule(train, val), define val_data(), or leave validate_every out"
            )
        unused = unused_batches(self._schedule(1, feed.length).total, self.accumulate, self.max_epochs is not None)
        described = describe(self.strategy, data, self.callbacks)
        strategy, chunk = self._resolved(origin.config)
        if saved is not None:
            refuse(saved.meta, described, ("strategy", "data"))
            if origin.config is not None:  # random numbers go on from the checkpoint: another seed would do nothing
                initial = origin.config.get("initial", "seed")
                of = lambda fit: {"fit.seed": fit["seed"], "fit.seeds": fit.get("seeds")}  # noqa: E731
                before = {"step": saved.step, "seed": of(origin.config["fit"])}
                refuse(before, {"seed": of(self._settings())}, ("seed",))
        elif initial == "values":
            name = type(module).__name__
            log.info("the model of %s is trained on from its present values; make a new module to start fresh", name)
        seeds, several = self.seeds or (self.seed,), self.seeds is not None
        models = build_each(module, seeds, several=several, resumed=saved is not None)
        if saved is not None and not several:
            live = {"model": signature(flatten({n: s.value for n, s in parameters(module.model).items()}))}
            refuse(saved.meta, live, ("model",))
        program = self._program(module, data, strategy, chunk, example, models)
        if saved is not None:
            params, train = program.signature()
            refuse(saved.meta, {"model": params, "optimizer": train}, ("model", "optimizer"))
            program.load(saved.params, saved.train, saved.meta["optimizer_settings"])
            feed.restore(saved.meta["feed"])
            before = origin.config or {}
            devices = (before.get("fit") or {}).get("devices", 1) * before.get("processes", 1)
            program.learner.notes.extend(program.devices.notes(devices))
        record = recorded(
            config, self._settings(), described, program.auto, type(module).__name__, initial, origin.parent
        )
        refuse_unlike_runs(record, self.callbacks, program, feed, val)
        self._prepare(program, val)
        schedule = self._schedule(program.chunk, feed.length)  # made now, since its clock starts
        program.learner.notes.extend(unused)
        if origin.config is not None and not dry_run:
            rates = {} if saved is None else saved.meta["optimizer_settings"]
            log_changes({**origin.config, "optimizer": rates}, {**record, "optimizer": program.optimizer.settings()})
        run = Run(
            module=module, callbacks=self.callbacks, recorder=Recorder(self.log_every), config=record,
            run_dir=origin.run_dir, max_steps=schedule.total, epoch_length=feed.length,
            batch_size=program.phases.sizes[2], params=lambda: loop.live.params(), fit=self,
        )  # fmt: skip
        run.forked, run.task = origin.forked, data.task
        loop = Loop(
            run=run, program=program, callbacks=self.callbacks, schedule=schedule, data=data, feed=feed, val=val,
            store=None, nonfinite=self.nonfinite, signals=Signals(), retask=self._retask,
        )  # fmt: skip
        if saved is not None:
            loop.restore(saved.meta)
        elif origin.restarted:
            run.restored_step = 0
        return loop

    def _resolved(self, config: dict[str, Any] | None) -> tuple[Strategy, int | Literal["auto"]]:
        """The strategy and the chunk, with what every auto became when the run was started."""
        auto = (config or {}).get("auto") or {}
        chunk = auto.get("chunk", "auto") if self.chunk == "auto" else self.chunk
        return self.strategy.resolve(auto), chunk

    @alone("Fit.program")
    def program(self, module: Module, data: DataModule, example: Any) -> Program:
        """The programs of a built module under this Fit's strategy, for batches like ``example``; nothing runs yet."""
        refuse_in_use(module, "Fit.program")
        return self._program(module, data, self.strategy, self.chunk, example)

    def _program(self, module: Module, data: DataModule, strategy: Strategy, chunk: int | Literal["auto"],
                 example: Any, models: Sequence[Any] = ()) -> Program:  # fmt: skip
        """``models``: of each seed; where there are none, the module's own stands for all."""
        return Program(
            module, strategy, data.encode, example, seed=self.seeds or self.seed, clip=self.clip,
            accumulate=self.accumulate, nonfinite=self.nonfinite, chunk=chunk,
            models=models or [dict(vars(module))] * len(self.seeds or ()), devices=self.devices,
        )  # fmt: skip

    def _prepare(self, program: Program, val: Passes | None) -> None:
        probes = [callback for callback in self.callbacks if callback.probe_every is not None]
        program.prepare(evaluate=[] if val is None else val.examples, probes=probes)
        if val is not None:
            require_metrics(self.callbacks, program.evaluated)

    def _schedule(self, chunk: int, epoch_length: int | None) -> Schedule:
        edges = [period for callback in self.callbacks for period in callback.edges()]
        edges += [every for every in (Period.of(callback.probe_every) for callback in self.callbacks) if every]
        listened = self.callbacks.listens("on_epoch_start") or self.callbacks.listens("on_epoch_end")
        return Schedule(
            chunk=chunk, total=total_steps(self.max_steps, self.max_epochs, epoch_length), max_time=self.max_time,
            validate_every=self.validate_every, epoch_length=epoch_length, edges=edges, epochs_are_edges=listened,
        )  # fmt: skip

    def _retask(self, loop: Loop, task: dict[str, Any]) -> None:
        """Give the data another task, and compile anew where its shapes changed; said openly, it costs a compile.

        All that hangs on the data is then as a run that is resumed under this task would find it.
        """
        run, schedule, program = loop.run, loop.schedule, loop.program
        change_task(loop.data, as_json(task, f"run.retask at step {run.step}"))
        loop.feed.clear()
        example, length = loop.feed.first(), loop.feed.length
        self._schedule(1, length)
        run.max_steps = schedule.total = total_steps(self.max_steps, self.max_epochs, length)
        run.epoch_length = schedule.epoch_length = length
        loop.val = validation_passes(loop.data)
        if Spec(example).mismatch(program.example) is None:
            program.example = example
            program.prepare(evaluate=[] if loop.val is None else loop.val.examples, train=False)
            log.info("task %s from step %d on", loop.data.task, run.step)
            return
        params, train = program.state()
        settings, before = program.optimizer.settings(), {"optimizer": program.signature()[1]}
        program.write_back()
        program = self._program(program.module, loop.data, program.strategy, program.chunk, example)
        if difference := first_difference(before, {"optimizer": program.signature()[1]}):
            raise ValueError(f"run.retask at step {run.step}: what is carried does not fit the new task: {difference}")
        program.load(params, train, settings)
        self._prepare(program, loop.val)
        log.info("task %s from step %d on: compiled in %.1f s", loop.data.task, run.step, program.compile_seconds)
        program.compile_seconds += loop.program.compile_seconds
        loop.program, run.batch_size = program, program.phases.sizes[2]

    def _store(self, run_dir: Path) -> Store:
        kept = kept_by(self._checkpoint)
        return Store(run_dir / CHECKPOINTS, last=kept["last"], best=kept["best"], mode=kept["mode"])

    def _settings(self) -> dict[str, Any]:
        periods = {"max_time": self.max_time, "validate_every": self.validate_every}
        names = ("max_steps", "max_epochs", "clip", "accumulate", "seed", "devices", "chunk", "log_every", "nonfinite")
        return {
            **{name: getattr(self, name) for name in names},
            "seeds": None if self.seeds is None else list(self.seeds),
            **{name: None if period is None else str(period) for name, period in periods.items()},
            "checkpoint": kept_by(self._checkpoint),
            "callbacks": list(self.callbacks.keys()),
        }

    def _result(self, loop: Loop, status: Status, report: dict[str, Any], started: float, trains: bool) -> Result:
        result = summarize(loop, status, report, best_of(self._checkpoint), time.perf_counter() - started)
        if self.accumulate > 1 and status != "failed":
            values, lanes = loop.program.values, loop.program.lanes
            unused = accumulated_batches(values if lanes is None else lanes.first_live(values)[1])
            result.summary["unused_batches"] = unused
            if unused and status in ("finished", "stopped"):
                log.info("the last %d batches made no update: accumulate=%d", unused, self.accumulate)
        if loop.run.run_dir is not None and processes.is_first():
            path = loop.run.run_dir / "result.json"
            # Where nothing was left to train, what the run came to, and how fast, is known better already.
            if trains or not path.exists() or read_json(path).get("status") != status:
                write_json(path, result.summary)
        return result

    # ---------------------------------------------------------------------------------------------- evaluating

    @alone("Fit.validate")
    def validate(self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None,
                 batch_first: bool | None = None) -> dict[str, float]:  # fmt: skip
        """Metrics over the validation data, ``{"val/loss": ...}``, weighted as in training.

        ``data``: a DataModule (its ``val_data``), or the batches themselves; a smaller last one counts too.
        ``checkpoint``: None uses the module's values as they are; "last", "best", a step (of this Fit's last run, or
        of its run directory), or a path load them first. ``batch_first``: the layout of bare batches, as for ``run``.
        """
        return self._evaluate(module, data, "val", checkpoint, batch_first)

    @alone("Fit.test")
    def test(self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None,
             batch_first: bool | None = None) -> dict[str, float]:  # fmt: skip
        """Metrics over the test data, ``{"test/loss": ...}``; see ``validate``."""
        return self._evaluate(module, data, "test", checkpoint, batch_first)

    @alone("Fit.predict")
    def predict(self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None,
                batch_first: bool | None = None) -> Any:  # fmt: skip
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
            self._readers, module, self.strategy, data, name, kind=kind, seed=self._held, saved=saved,
            batch_first=batch_first,
        )  # fmt: skip
