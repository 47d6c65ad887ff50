"""Prepare a run. Errors of its options and data are raised here, before a run directory is changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..callbacks.recorder import Recorder, tag
from ..callbacks.run import Reads, Run
from ..callbacks.state_arrays import joined
from ..checkpoint.comparison import describe, log_changes, require_same_run
from ..checkpoint.comparison import refuse_differences as refuse
from ..checkpoint.load import build_each, require_module
from ..checkpoint.locate import Origin
from ..checkpoint.trained_parameters import with_trained_parameters
from ..core.metrics import is_rate, numbers
from ..core.module import Module
from ..core.state import flatten, parameters, signature
from ..data.datamodule import DataModule, warn_of_layout
from ..data.eval_loader import EvalLoader, loaders_of
from ..data.iterator import DataIterator
from ..engine import auto_devices
from ..engine.report import val_sizes
from ..errors import DataError
from ..utils.logging import log
from .checkpointer import parts
from .live import Live
from .progress import Progress
from .run_config import run_config
from .schedule import Schedule, unused_batches
from .settings import FitSettings
from .workload import Workload, make_program


@dataclass(frozen=True)
class Prepared:
    """A run that can start, and its report."""

    workload: Workload
    run: Run
    schedule: Schedule
    progress: Progress
    live: Live
    report: dict[str, Any]


def prepare(
    settings: FitSettings, module: Module, data: DataModule, origin: Origin, config: Any, dry_run: bool, reader: Reads,
    test: bool,
) -> Prepared:  # fmt: skip
    """Open the data, check that the run can be resumed, build the models, compile, and restore the checkpoint.

    Args:
        settings: The settings of the ``Fit``.
        module: The module to train.
        data: Its data, set up.
        origin: Where the run starts.
        config: What the user stores with the run.
        dry_run: Whether nothing will be trained.
        reader: The object with which callbacks predict and validate.
        test: Whether the run ends with a test.
    """
    require_module(module)
    if settings.max_steps is None and settings.max_epochs is None and settings.max_time is None:
        raise ValueError("Fit.run needs a budget: Fit(max_steps=...), max_epochs or max_time")
    iterator, val, notes = open_data(settings, data)
    tests = test_loaders(data) if test else []
    described, initial = check_resumable(settings, module, data, origin)
    workload = make_workload(settings, module, data, iterator, val, tests, origin)
    program = workload.program
    stored = run_config(workload.settings, program, described, initial, config, origin.parent)
    stored["steps"] = settings.total(iterator.length)
    require_same_run(stored, settings.callbacks, program, iterator, val)
    workload.compile(must_fit=not dry_run)
    schedule = settings.schedule(program.chunk, iterator.length)  # after compilation: its clock starts now
    program.learner.notes.extend(notes)
    if origin.config is not None and not dry_run:
        rates = {} if origin.saved is None else origin.saved.meta["optimizer_settings"]
        now = {**stored, "optimizer": program.optimizer.settings()}
        log_changes({**origin.config, "optimizer": rates}, now)
    run, progress, live = restore(workload, schedule, origin, stored, reader)
    report = {**program.report(), "batch_first": workload.batch_first, "val": val_sizes(module, [*val, *tests])}
    report |= {"why_devices": workload.settings.why_devices, "strategy": settings.strategy.config()}
    return Prepared(workload, run, schedule, progress, live, report)


def open_data(settings: FitSettings, data: DataModule) -> tuple[DataIterator, list[EvalLoader], list[str]]:
    """The train data, the validation data, and notes for the report."""
    iterator = DataIterator(data.train_data(), "train", data.batch_first)
    warn_of_layout(data, iterator.example(), iterator.batch_first)
    val = loaders_of(data, "val")
    if not val and settings.validate_every is not None:
        raise ValueError(
            f"Fit(validate_every={settings.validate_every.shown()}), but {type(data).__name__} has no val data: give "
            "jaxtrain.DataModule(train, val), define val_data(), or leave validate_every out"
        )
    total = settings.schedule(1, iterator.length).total
    return iterator, val, unused_batches(total, settings.accumulate, settings.max_epochs is not None)


def test_loaders(data: DataModule) -> list[EvalLoader]:
    """The sets of test data.

    Raises:
        DataError: There are none.
    """
    if loaders := loaders_of(data, "test"):
        return loaders
    raise DataError(
        f"Fit.run(test=True): {type(data).__qualname__} has no test data; give jaxtrain.DataModule(train, val, test), "
        "define test_data(), or leave test out"
    )


def check_resumable(
    settings: FitSettings, module: Module, data: DataModule, origin: Origin
) -> tuple[dict[str, Any], str]:
    """Refuse a checkpoint of another strategy, of other data, or of other seeds.

    Returns:
        The description of strategy and data for config.json, and the origin of the initial values: "seed", or "values"
        if they are those of a module that was already built.
    """
    described = describe(settings.strategy, data, settings.callbacks)
    saved, initial = origin.saved, "seed" if module.model is None else "values"
    if saved is not None:
        refuse(saved.meta, described, ("strategy", "data"))
    elif initial == "values":
        name = type(module).__name__
        log.info("training of the model of %s continues from its current values; use a new module to start fresh", name)
    if saved is not None and origin.config is not None:
        initial = origin.config.get("initial", "seed")
        # Random numbers continue from the checkpoint, so another seed would have no effect.
        before, now = (
            {"fit.seed": fit["seed"], "fit.seeds": fit.get("seeds")}
            for fit in (origin.config["fit"], settings.as_json())
        )
        refuse({"step": saved.step, "seed": before}, {"seed": now}, ("seed",))
    return described, initial


def with_devices(settings: FitSettings, module: Module, example: Any, before: dict[str, Any] | None) -> FitSettings:
    """Replace "auto" by a number of devices: the one that an earlier part of the run had, or one chosen by sizes.

    Args:
        settings: The settings of the ``Fit``.
        module: The module, with its model built.
        example: A train batch on the host.
        before: The settings in the run's config.json, or None.
    """
    if settings.devices != "auto":
        return settings
    if before is not None:
        count, why = auto_devices.again(before.get("devices", 1))
    else:
        count, why = auto_devices.choose(module, example, None if settings.seeds is None else len(settings.seeds))
    return replace(settings, devices=count, why_devices=why)


def make_workload(
    settings: FitSettings,
    module: Module,
    data: DataModule,
    iterator: DataIterator,
    val: list[EvalLoader],
    tests: list[EvalLoader],
    origin: Origin,
) -> Workload:
    """Build the models and the programs, and restore the checkpoint's arrays and data position.

    A checkpoint of another model or optimizer is refused.
    """
    saved, before, several = origin.saved, origin.config or {}, settings.seeds is not None
    models = build_each(module, settings.seeds or (settings.seed,), several=several, resumed=saved is not None)
    if saved is not None and not several:  # before the model receives data, whose sizes may not match
        values = {name: state.value for name, state in parameters(module.model).items()}
        refuse(saved.meta, {"model": signature(flatten(values))}, ("model",))
    example = iterator.examples()[0]
    settings = with_devices(settings, module, example, before.get("fit"))
    program = make_program(settings.resolved(before.get("auto") or {}), module, data, example, models)
    if not before and settings.why_devices:  # a strategy that cannot be split has one device for the whole run
        settings = replace(settings, devices=program.devices.own)
    if saved is not None:
        params, train = program.signature()
        if saved.meta["optimizer"] != train:
            saved = with_trained_parameters(saved, params, program.state()[1], origin.forked)
        refuse(saved.meta, {"model": params, "optimizer": train}, ("model", "optimizer"))
        program.load(saved.params, saved.train, saved.meta["optimizer_settings"])
        iterator.restore(saved.meta["position"])
        used = (before.get("fit") or {}).get("devices", 1) * before.get("processes", 1)
        if notes := program.devices.notes(used):
            program.learner.notes.extend(notes)
            settings = replace(settings, why_devices="")
    return Workload(settings, data, iterator, val, tests, program)


def restore(
    workload: Workload, schedule: Schedule, origin: Origin, config: dict[str, Any], reader: Reads
) -> tuple[Run, Progress, Live]:
    """Create the run that callbacks see, and restore its state and theirs from the checkpoint."""
    settings, program, progress = workload.settings, workload.program, Progress()
    run = Run(
        own_module=program.module,
        callbacks=settings.callbacks,
        recorder=Recorder(settings.log_every),
        config=config,
        run_dir=origin.run_dir,
        max_steps=schedule.total,
        epoch_length=workload.iterator.length,
        batch_size=program.phases.sizes[2],
        reader=reader,
    )
    run.forked, run.task, run.has_validation = origin.forked, workload.data.task, bool(workload.val)
    trained = [tag(name) for name in program.trained if not is_rate(name)]
    run.tags = [*numbers(workload.validated), *(name for name in trained if name.startswith("train/"))]
    run.live = live = Live(workload, run, progress)
    for callback in settings.callbacks:
        callback.reset()
    if origin.saved is not None:
        states = joined(origin.saved.meta["callbacks"], origin.saved.train)
        for part in parts(workload, run, progress):
            part.load_state({**origin.saved.meta, "callbacks": states})
    elif origin.restarted:
        run.restored_step = 0
    return run, progress, live
