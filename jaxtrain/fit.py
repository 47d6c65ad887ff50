"""Fit: what a user configures and calls. It assembles a run (program, data, directory, callbacks) and loops."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from . import __version__, preflight
from .callback import Callback, Callbacks
from .callbacks import Checkpoint
from .checkpoint import Saved, Store
from .console import log
from .data import DataModule, Feed, as_data, batches
from .loading import build, load_into, require_module
from .loop import Loop, evaluate, summarize
from .module import Module
from .period import Period
from .program import NonFinite, Program
from .record import Recorder
from .resume import CHECKPOINTS, Origin, absolute, locate, log_changes, read_checkpoint, refuse_differences
from .run import Result, Run, RunLock, Status, write_json
from .schedule import Schedule
from .signals import Signals
from .state import flatten, parameters, signature
from .strategies import Strategy
from .strategies.names import make_strategy

PACKAGES = ("jax", "brainstate", "braintools", "braintrace", "numpy", "orbax-checkpoint")


class Fit:
    """Trains a ``Module`` on data, under a strategy that says how gradients are made.

    ``strategy``: a name ("bptt", "drtrl") or a strategy object. The budget is ``max_steps`` (train batches), or
    ``max_epochs`` where the data has a length, or ``max_time`` ("30min"); the first reached ends the run.
    ``clip``: largest global norm of a gradient, in its own units. ``accumulate``: batches an update.
    ``seed``: initial values and random numbers inside the model; data has a seed of its own.
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
                 chunk: int | Literal["auto"] = "auto", validate_every: int | str | Period | None = None,
                 log_every: int = 50, nonfinite: NonFinite = "raise", callbacks: Iterable[Callback] = (),
                 run_dir: str | Path | None = None):  # fmt: skip
        self.strategy = make_strategy(strategy) if isinstance(strategy, str) else strategy
        if not isinstance(self.strategy, Strategy):
            raise TypeError(f"Fit(strategy={strategy!r}): expected a name or a jaxtrain.Strategy object")
        self.max_steps = _count(max_steps, "max_steps")
        self.max_epochs = _count(max_epochs, "max_epochs")
        self.max_time = Period.of(max_time)
        if self.max_time is not None and self.max_time.unit != "time":
            raise ValueError(f"Fit(max_time={max_time!r}): expected a time, as '30min' or '2h'")
        if max_steps is None and max_epochs is None and max_time is None:
            raise ValueError("Fit needs a budget: max_steps, max_epochs or max_time")
        if clip is not None and not (np.isfinite(clip) and clip > 0):
            raise ValueError(f"Fit(clip={clip!r}): expected a positive norm, or None")
        if nonfinite not in ("raise", "skip", "warn"):
            raise ValueError(f"Fit(nonfinite={nonfinite!r}): expected 'raise', 'skip' or 'warn'")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"Fit(seed={seed!r}): expected a whole number from 0 to 2**32 - 1")
        self.clip = None if clip is None else float(clip)
        self.accumulate = _count(accumulate, "accumulate", required=True)
        self.chunk: int | Literal["auto"] = "auto" if chunk == "auto" else _count(chunk, "chunk", required=True)
        self.log_every = _count(log_every, "log_every", required=True)
        self.validate_every = Period.of(validate_every)
        self.seed = seed
        self.nonfinite: NonFinite = nonfinite
        self.callbacks = Callbacks(callbacks)
        kept = [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]
        if len(kept) > 1:
            raise ValueError("Fit takes one Checkpoint callback: it decides which checkpoints are kept")
        if kept and run_dir is None:
            raise ValueError("Checkpoint needs a run directory: Fit(run_dir=...)")
        self._checkpoint = kept[0] if kept else None
        self.run_dir = None if run_dir is None else absolute(run_dir)

    # ------------------------------------------------------------------------------------------------ training

    def run(self, module: Module, data: Any, *, resume: str | int | Path = "never",
            config: dict[str, Any] | None = None, dry_run: bool = False) -> Result:  # fmt: skip
        """Train, and return a ``Result``; never exits the process.

        ``resume``: "never" (a directory that holds a run is refused); "last" goes on where the run directory stopped
        and starts fresh where it is empty; "best", a step, or a path ``<run>/checkpoints/<step>`` fork the run into a
        directory of its own unless that step is its last. ``config``: a JSON dict recorded with the run.
        ``dry_run``: compile, report, and return without training or writing anything.
        """
        started = time.perf_counter()
        origin = locate(self.run_dir, resume)
        with RunLock(None if dry_run else origin.run_dir):
            data = self._data(data, origin)
            loop = self._assemble(module, data, origin, config, dry_run)
            report = loop.program.report()
            for line in preflight.lines(report):
                log.info("%s", line)
            if dry_run:
                return Result("finished", loop.run.step, "dry run", report=report)
            return self._train(loop, origin, report, started)

    def _train(self, loop: Loop, origin: Origin, report: dict[str, Any], started: float) -> Result:
        run, saved = loop.run, origin.saved
        over = None if saved is None or loop.cut else saved.meta["over"]
        if over is not None and (origin.explicit if over[0] == "stopped" else not loop.is_over()):
            over = None  # asked to train on, or given a larger budget
        loop.store = None if origin.run_dir is None else self._store(origin.run_dir)
        if origin.run_dir is not None:
            write_json(origin.run_dir / "config.json", run.config)
        status: Status = "failed"
        try:
            with loop.signals:
                loop.callbacks("on_fit_start", run)
                if saved is not None or origin.restarted:
                    loop.callbacks("on_restore", run)
                if over is not None:
                    loop.status, loop.reason = over
                    log.info("already %s at step %d%s", loop.status, run.step, f": {over[1]}" if over[1] else "")
                loop.train()
                loop.saved = None if loop.store is None else loop.store.wait()
                loop.program.write_back()
                status = loop.status or "finished"
        except BaseException as error:
            loop.callbacks("on_exception", run, error)
            raise
        finally:
            try:
                if loop.store is not None:
                    loop.store.close()
            finally:
                result = self._result(loop, status, report, started)
                with run.closed():
                    loop.callbacks("on_fit_end", run, status)
        return result

    def _assemble(self, module: Module, data: DataModule, origin: Origin, config: dict[str, Any] | None,
                  dry_run: bool) -> Loop:  # fmt: skip
        """Everything that can be wrong is found here, before a run directory is touched."""
        require_module(module)
        feed = Feed(data.train_data(), "train")
        example = feed.example()
        val = _optional_feed(data.val_data(), "val")
        if val is None and self.validate_every is not None:
            raise ValueError(
                f"Fit(validate_every={str(self.validate_every)!r}), but {type(data).__name__} has no val data"
            )
        saved = origin.saved
        strategy, chunk = self._resolved(origin.config)
        if saved is not None:
            live = {"step": saved.step, "strategy": self.strategy.config(), "data": data.identity()}
            refuse_differences(saved.meta, live, ("strategy", "data"))
            if origin.config is not None:  # random numbers go on from the checkpoint: another seed would do nothing
                before = {"step": saved.step, "seed": {"fit.seed": origin.config["fit"]["seed"]}}
                refuse_differences(before, {"seed": {"fit.seed": self.seed}}, ("seed",))
        build(module, self.seed)
        if saved is not None:
            live = {"model": signature(flatten({n: s.value for n, s in parameters(module.model).items()}))}
            refuse_differences(saved.meta, live, ("model",))
        program = self._program(module, data, strategy, chunk, example)
        if saved is not None:
            params, train = program.signature()
            refuse_differences(saved.meta, {"model": params, "optimizer": train}, ("model", "optimizer"))
            program.load(saved.params, saved.train, saved.meta["optimizer_settings"])
            feed.restore(saved.meta["feed"])
        self._prepare(program, val)
        schedule = self._schedule(program.chunk, feed.length)
        record = {
            "schema": 1,
            "config": config,
            "fit": self._settings(),
            "strategy": self.strategy.config(),
            "module": type(module).__name__,
            "data": data.identity(),
            "auto": program.report()["auto"],
            "versions": versions(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "parent": origin.parent,
        }
        if origin.config is not None and not dry_run:
            rates = {} if saved is None else saved.meta["optimizer_settings"]
            log_changes({**origin.config, "optimizer": rates}, {**record, "optimizer": program.optimizer.settings()})
        run = Run(
            module=module, callbacks=self.callbacks, recorder=Recorder(self.log_every), config=record,
            run_dir=origin.run_dir, max_steps=schedule.total, epoch_length=feed.length,
            batch_size=program.phases.sizes[2], params=lambda: loop.program.host_parameters(),
        )  # fmt: skip
        loop = Loop(
            run=run, program=program, callbacks=self.callbacks, schedule=schedule, data=data, feed=feed, val=val,
            store=None, nonfinite=self.nonfinite, signals=Signals(), retask=self._retask,
        )  # fmt: skip
        if saved is not None:
            loop.restore(saved.meta)
        elif origin.restarted:
            run.restored_step = 0
        return loop

    def _data(self, data: Any, origin: Origin) -> DataModule:
        data = as_data(data)
        data.setup()
        if origin.saved is not None:
            data.task.update(origin.saved.meta["task"])
        return data

    def _resolved(self, config: dict[str, Any] | None) -> tuple[Strategy, int | Literal["auto"]]:
        """The strategy and the chunk, with what every auto became when the run was started."""
        auto = (config or {}).get("auto") or {}
        chunk = auto.get("chunk", "auto") if self.chunk == "auto" else self.chunk
        return self.strategy.resolve(auto), chunk

    def _program(self, module: Module, data: DataModule, strategy: Strategy, chunk: int | Literal["auto"],
                 example: Any) -> Program:  # fmt: skip
        return Program(
            module, strategy, data.encode, example, seed=self.seed, clip=self.clip, accumulate=self.accumulate,
            nonfinite=self.nonfinite, chunk=chunk,
        )  # fmt: skip

    def _prepare(self, program: Program, val: Feed | None) -> None:
        probes = [callback for callback in self.callbacks if callback.probe_every is not None]
        program.prepare(evaluate=None if val is None else val.example(), probes=probes)

    def _schedule(self, chunk: int, epoch_length: int | None) -> Schedule:
        totals = [] if self.max_steps is None else [self.max_steps]
        if self.max_epochs is not None:
            if epoch_length is None:
                raise ValueError("Fit(max_epochs=...) needs train data with a length; give max_steps instead")
            totals.append(self.max_epochs * epoch_length)
        edges = [period for callback in self.callbacks for period in callback.edges()]
        edges += [every for every in (Period.of(callback.probe_every) for callback in self.callbacks) if every]
        listened = self.callbacks.listens("on_epoch_start") or self.callbacks.listens("on_epoch_end")
        return Schedule(
            chunk=chunk, total=min(totals, default=None), max_time=self.max_time, validate_every=self.validate_every,
            epoch_length=epoch_length, edges=edges, epochs_are_edges=listened,
        )  # fmt: skip

    def _retask(self, loop: Loop, task: dict[str, Any]) -> None:
        """Give the data another task, and compile anew where its shapes changed; said openly, it costs a compile."""
        loop.data.task.update(task)
        loop.feed.clear()
        example = loop.feed.example()
        if jax.tree.map(np.shape, example) == jax.tree.map(np.shape, loop.program.example):
            return
        params, train = loop.program.state()
        loop.program.write_back()
        program = self._program(loop.program.module, loop.data, loop.program.strategy, loop.program.chunk, example)
        program.load(params, train, program.optimizer.settings())
        loop.val = _optional_feed(loop.data.val_data(), "val")
        self._prepare(program, loop.val)
        loop.program = program
        log.info("task %s from step %d on: compiled in %.1f s", loop.data.task, loop.run.step, program.compile_seconds)

    # -------------------------------------------------------------------------------------------------- result

    def _store(self, run_dir: Path) -> Store:
        kept = self._kept()
        return Store(run_dir / CHECKPOINTS, last=kept["last"], best=kept["best"], mode=kept["mode"])

    def _kept(self) -> dict[str, Any]:
        callback = self._checkpoint
        if callback is None:
            return {"last": 1, "best": 0, "mode": "min", "monitor": None}
        monitor, best = callback.best or (None, 0)
        return {"last": callback.last, "best": best, "mode": callback.mode, "monitor": monitor}

    def _settings(self) -> dict[str, Any]:
        periods = {"max_time": self.max_time, "validate_every": self.validate_every}
        names = ("max_steps", "max_epochs", "clip", "accumulate", "seed", "chunk", "log_every", "nonfinite")
        return {
            **{name: getattr(self, name) for name in names},
            **{name: None if period is None else str(period) for name, period in periods.items()},
            "checkpoint": self._kept(),
            "callbacks": list(self.callbacks.keys()),
        }

    def _result(self, loop: Loop, status: Status, report: dict[str, Any], started: float) -> Result:
        result = summarize(loop, status, report, self._best(), time.perf_counter() - started)
        if loop.run.run_dir is not None:
            write_json(loop.run.run_dir / "result.json", result.summary)
        return result

    def _best(self) -> dict[str, Any] | None:
        scores = self._checkpoint.scores if self._checkpoint else []
        if not scores or self._checkpoint is None or self._checkpoint.best is None:
            return None
        return {"monitor": self._checkpoint.best[0], "score": scores[0][0], "step": scores[0][1]}

    # ---------------------------------------------------------------------------------------------- evaluating

    def validate(self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None) -> dict[str, float]:
        """Metrics over the validation data, ``{"val/loss": ...}``, weighted as in training.

        ``checkpoint``: None uses the module's values as they are; "last", "best", a step, or a path load them first.
        """
        data = self._data(data, Origin(None))
        return self._evaluate(module, data, data.val_data(), "val", checkpoint)

    def test(self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None) -> dict[str, float]:
        """Metrics over the test data, ``{"test/loss": ...}``; see ``validate``."""
        data = self._data(data, Origin(None))
        return self._evaluate(module, data, data.test_data(), "test", checkpoint)

    def predict(self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None) -> Any:
        """Outputs of ``predict_step`` over the learning phase of every batch: time-major, ``(T_l, N, ...)``.

        ``data``: a DataModule (its ``predict_data``) or batches. A last batch of another size is predicted too.
        """
        whole = isinstance(data, DataModule)
        data = self._data(data, Origin(None))
        source = data.predict_data() if whole else data.train_data()
        program, _ = self._reader(module, data, source, "predict", checkpoint)
        outputs = [program.predict(batch, index).fetch() for index, batch in enumerate(batches(source, "predict"))]
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *outputs)

    def _evaluate(
        self, module: Module, data: DataModule, source: Any, prefix: str, checkpoint: Any
    ) -> dict[str, float]:
        program, feed = self._reader(module, data, source, prefix, checkpoint)
        metrics = evaluate(program, feed, prefix, lambda: False)
        assert metrics is not None
        return metrics

    def _reader(
        self, module: Module, data: DataModule, source: Any, name: str, checkpoint: Any
    ) -> tuple[Program, Feed]:
        require_module(module)
        if source is None:
            raise ValueError(f"{type(data).__name__} has no {name} data: define {name}_data()")
        feed = Feed(source, name)
        build(module, self.seed)
        if checkpoint is not None:
            load_into(module, self._saved(checkpoint))
        return self._program(module, data, self.strategy, 1, feed.example()), feed

    def _saved(self, checkpoint: str | int | Path) -> Saved:
        word = str(checkpoint)
        if word not in ("last", "best") and not word.isdigit():
            return read_checkpoint(word)
        if self.run_dir is None:
            raise ValueError(f"checkpoint={checkpoint!r} needs a run directory: Fit(run_dir=...)")
        return read_checkpoint(self.run_dir, word)


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "jaxtrain": __version__, **found}


def _optional_feed(source: Any, name: str) -> Feed | None:
    return None if source is None else Feed(source, name)


def _count(value: Any, name: str, required: bool = False) -> Any:
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Fit({name}={value!r}): expected a whole number, 1 or more")
    return value
