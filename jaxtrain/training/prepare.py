"""Prepare a run. All errors of its options and data are found here, before a run directory is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..callbacks.recorder import Recorder
from ..callbacks.run import Reads, Run
from ..checkpoint.load import build_each, require_module
from ..checkpoint.locate import Origin, describe, log_changes, require_same_run
from ..checkpoint.locate import refuse_differences as refuse
from ..core.module import Module
from ..core.state import flatten, parameters, signature
from ..data.eval_loader import EvalLoader, validation_loader
from ..data.iterator import DataIterator, DataModule, warn_of_layout
from ..engine.report import val_sizes
from ..utils.logging import log
from .checkpointer import parts
from .live import Live
from .progress import Progress
from .run_config import recorded
from .schedule import Schedule, unused_batches
from .settings import FitSettings
from .workload import Workload, make_program


@dataclass(frozen=True)
class Prepared:
    """A run that can begin, and the report on it."""

    workload: Workload
    run: Run
    schedule: Schedule
    progress: Progress
    live: Live
    report: dict[str, Any]


def prepare(
    settings: FitSettings, module: Module, data: DataModule, origin: Origin, config: Any, dry_run: bool, reader: Reads
) -> Prepared:
    """Open the data, check that the run may resume, build the models, compile, and restore.

    Args:
        settings: The settings of the ``Fit``.
        module: The module to train.
        data: Its data, set up.
        origin: Where the run starts.
        config: What the user records with the run.
        dry_run: Whether nothing will be trained.
        reader: What callbacks predict and validate with.
    """
    require_module(module)
    if settings.max_steps is None and settings.max_epochs is None and settings.max_time is None:
        raise ValueError("Fit.run needs a budget: Fit(max_steps=...), max_epochs or max_time")
    iterator, val, notes = open_data(settings, data)
    described, initial = check_resumable(settings, module, data, origin)
    models = build_models(settings, module, origin)
    workload = make_workload(settings, module, data, iterator, val, models, origin)
    program = workload.program
    record = recorded(workload, described, initial, config, origin.parent)
    require_same_run(record, settings.callbacks, program, iterator, val)
    workload.compile()
    schedule = settings.schedule(program.chunk, iterator.length)  # made now, since its clock starts
    program.learner.notes.extend(notes)
    if origin.config is not None and not dry_run:
        rates = {} if origin.saved is None else origin.saved.meta["optimizer_settings"]
        now = {**record, "optimizer": program.optimizer.settings()}
        log_changes({**origin.config, "optimizer": rates}, now)
    run, progress, live = restore(workload, schedule, origin, record, reader)
    report = {**program.report(), "batch_first": workload.batch_first, "val": val_sizes(module, val)}
    return Prepared(workload, run, schedule, progress, live, report)


def open_data(settings: FitSettings, data: DataModule) -> tuple[DataIterator, EvalLoader | None, list[str]]:
    """The train data, the validation data, and notes on them for the report."""
    iterator = DataIterator(data.train_data(), "train", data.batch_first)
    warn_of_layout(data, iterator.example(), iterator.batch_first)
    val = validation_loader(data)
    if val is None and settings.validate_every is not None:
        raise ValueError(
            f"Fit(validate_every={settings.validate_every.shown()}), but {type(data).__name__} has no val data: give "
            "jaxtrain.DataModule(train, val), define val_data(), or leave validate_every out"
        )
    total = settings.schedule(1, iterator.length).total
    return iterator, val, unused_batches(total, settings.accumulate, settings.max_epochs is not None)


def check_resumable(
    settings: FitSettings, module: Module, data: DataModule, origin: Origin
) -> tuple[dict[str, Any], str]:
    """Refuse a checkpoint of another strategy, of other data, or of other seeds.

    Returns:
        What is recorded of strategy and data, and where initial values come from: "seed", or the module's own "values".
    """
    described = describe(settings.strategy, data, settings.callbacks)
    saved, initial = origin.saved, "seed" if module.model is None else "values"
    if saved is not None:
        refuse(saved.meta, described, ("strategy", "data"))
    elif initial == "values":
        name = type(module).__name__
        log.info("the model of %s is trained on from its present values; make a new module to start fresh", name)
    if saved is not None and origin.config is not None:
        initial = origin.config.get("initial", "seed")
        # Random numbers go on from the checkpoint: another seed would do nothing.
        before, now = (
            {"fit.seed": fit["seed"], "fit.seeds": fit.get("seeds")}
            for fit in (origin.config["fit"], settings.as_json())
        )
        refuse({"step": saved.step, "seed": before}, {"seed": now}, ("seed",))
    return described, initial


def build_models(settings: FitSettings, module: Module, origin: Origin) -> list[dict[str, Any]]:
    """Build the module's model under each seed, and refuse a checkpoint of another model."""
    seeds, several = settings.seeds or (settings.seed,), settings.seeds is not None
    models = build_each(module, seeds, several=several, resumed=origin.saved is not None)
    if origin.saved is not None and not several:
        live = {"model": signature(flatten({n: s.value for n, s in parameters(module.model).items()}))}
        refuse(origin.saved.meta, live, ("model",))
    return models


def make_workload(
    settings: FitSettings,
    module: Module,
    data: DataModule,
    iterator: DataIterator,
    val: EvalLoader | None,
    models: Any,
    origin: Origin,
) -> Workload:
    """Make the programs, and give them and the data what the checkpoint holds."""
    saved, before = origin.saved, origin.config or {}
    program = make_program(settings.resolved(before.get("auto") or {}), module, data, iterator.example(), models)
    if saved is not None:
        params, train = program.signature()
        refuse(saved.meta, {"model": params, "optimizer": train}, ("model", "optimizer"))
        program.load(saved.params, saved.train, saved.meta["optimizer_settings"])
        iterator.restore(saved.meta["position"])
        devices = (before.get("fit") or {}).get("devices", 1) * before.get("processes", 1)
        program.learner.notes.extend(program.devices.notes(devices))
    return Workload(settings, data, iterator, val, program)


def restore(
    workload: Workload, schedule: Schedule, origin: Origin, record: dict[str, Any], reader: Reads
) -> tuple[Run, Progress, Live]:
    """Make the run that callbacks see, and set it to the checkpoint."""
    settings, program, progress = workload.settings, workload.program, Progress()
    run = Run(
        own_module=program.module,
        callbacks=settings.callbacks,
        recorder=Recorder(settings.log_every),
        config=record,
        run_dir=origin.run_dir,
        max_steps=schedule.total,
        epoch_length=workload.iterator.length,
        batch_size=program.phases.sizes[2],
        reader=reader,
    )
    run.forked, run.task, run.has_validation = origin.forked, workload.data.task, workload.val is not None
    run.live = live = Live(workload, run, progress)
    for callback in settings.callbacks:
        callback.reset()
    if origin.saved is not None:
        for part in parts(workload, run, progress):
            part.load_state(origin.saved.meta)
    elif origin.restarted:
        run.restored_step = 0
    return run, progress, live
