"""Workload: the compiled programs of a run and the data that they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..callbacks.checkpoint import require_metrics
from ..callbacks.run import Run
from ..core.module import Module
from ..data.batch import Spec, stated_layout
from ..data.datamodule import DataModule, change_task, identity_of
from ..data.eval_loader import EvalLoader, loaders_of
from ..data.iterator import DataIterator
from ..engine.batch_split import NotDivisible
from ..engine.program import Program
from ..utils.diff import first_difference
from ..utils.files import as_json
from ..utils.logging import log
from .schedule import Schedule
from .settings import FitSettings

OTHER_DATA = (
    "%s data: batch %d is not the one that the run had before step %d, because the source returns other batches each "
    "time it starts. The run continues, but not exactly as without the interruption: in this epoch, some samples may "
    "come twice and others never. Seed the source's shuffle, or give it state_dict() and load_state_dict()"
)


def make_program(
    settings: FitSettings, module: Module, data: DataModule, example: Any, models: Sequence[Module] = ()
) -> Program:
    """The programs of a module that is built, for batches like ``example``. Nothing is compiled yet.

    If "auto" chose the number of devices and this strategy or batch cannot be split, one device is used.

    Args:
        settings: The settings of the ``Fit``.
        module: A module whose model is built.
        data: The data that encodes the inputs.
        example: A batch on the host.
        models: A module built under each seed, the first of which is ``module``; default: ``module`` for all seeds.
    """
    build = partial(
        Program,
        module,
        settings.strategy,
        data.encode,
        example,
        seed=settings.seeds or settings.seed,
        clip=settings.clip,
        accumulate=settings.accumulate,
        nonfinite=settings.nonfinite,
        chunk=settings.chunk,
        models=models,
    )
    try:
        return build(devices=1 if settings.devices == "auto" else settings.devices)  # "auto": not a run, a measurement
    except NotDivisible as error:
        if not settings.why_devices:
            raise
        program = build(devices=1)
        program.learner.notes.append(f"devices: auto uses one. {error}")
        return program


@dataclass
class Workload:
    """The programs of a run, and the data that fits them. ``change_task`` changes both."""

    settings: FitSettings
    data: DataModule
    iterator: DataIterator
    val: list[EvalLoader]
    """The sets of validation data."""
    test: list[EvalLoader]
    """The sets of test data, if the run ends with a test."""
    program: Program
    inexact: list[int] = field(default_factory=list)
    """Steps at which the run was resumed with data that differs from the data before them."""

    @property
    def batch_first(self) -> bool | None:
        """Layout of the train data, or None if it is not stated."""
        return stated_layout(self.program.example, self.iterator.name, self.iterator.batch_first)

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self.program.devices.processes

    def compile(self, *, must_fit: bool = True) -> None:
        """Compile everything that the run needs, so that nothing is compiled after step 0.

        Args:
            must_fit: Whether to refuse a train program that needs more memory than there is.
        """
        probes = [callback for callback in self.settings.callbacks if callback.probe_every is not None]
        shapes = self.iterator.examples()
        self.program.prepare(evaluate=self._examples, probes=probes, must_fit=must_fit, shapes=shapes)
        if self.val:
            require_metrics(self.settings.callbacks, self.validated)

    @property
    def validated(self) -> dict[str, Any]:
        """For each tag of a validation, a value of its shape."""
        return {f"{loader.name}/{name}": value for loader in self.val for name, value in self.program.evaluated.items()}

    @property
    def _examples(self) -> list[Any]:
        """Batches of validations and of the test, one of each shape."""
        return [batch for loader in [*self.val, *self.test] for batch in loader.examples]

    def change_task(self, task: dict[str, Any], run: Run, schedule: Schedule) -> None:
        """Change the task of the data. Afterwards the run is as if it had been resumed under this task.

        If the shapes of batches change, the programs are compiled again.

        Args:
            task: Entries of the data module's ``task`` to change.
            run: The run, whose ``max_steps``, ``epoch_length`` and ``batch_size`` are updated.
            schedule: The schedule, which is updated too.

        Raises:
            ValueError: The training state does not fit the new task.
        """
        change_task(self.data, as_json(task, f"run.set_task at step {run.step}"))
        self.iterator.clear()
        example, length = self.iterator.first(), self.iterator.length
        self.settings.schedule(1, length)  # raises if a period counts epochs and the new length is unknown
        run.max_steps = schedule.total = self.settings.total(length)
        run.epoch_length = schedule.epoch_length = length
        self.val = loaders_of(self.data, "val")
        self.test = loaders_of(self.data, "test") if self.test else []
        if Spec(example).mismatch(self.program.example) is None:
            self.program.example = example
            self.program.prepare(evaluate=self._examples, train=False)
            log.info("task %s from step %d on", self.data.task, run.step)
            return
        self._replace_program(example, run.step)
        run.batch_size = self.program.phases.sizes[2]

    def _replace_program(self, example: Any, step: int) -> None:
        old = self.program
        params, train = old.state()
        rates, before = old.optimizer.settings(), {"optimizer": old.signature()[1]}
        old.write_back()
        settings = replace(self.settings, strategy=old.strategy, chunk=old.chunk)
        self.program = make_program(settings, old.module, self.data, example)
        if difference := first_difference(before, {"optimizer": self.program.signature()[1]}):
            raise ValueError(f"run.set_task at step {step}: the training state does not fit the new task: {difference}")
        self.program.load(params, train, rates)
        self.compile()
        log.info("task %s from step %d on: compiled in %.1f s", self.data.task, step, self.program.compile_seconds)
        self.program.compile_seconds += old.compile_seconds

    def state(self) -> dict[str, Any]:
        """Signatures of model and optimizer, and identity, position and task of the data, as checkpoint metadata."""
        params, train = self.program.signature()
        return {
            "model": params,
            "optimizer": train,
            "optimizer_settings": self.program.optimizer.settings(),
            "data": identity_of(self.data),
            "position": self.iterator.mark(),
            "inexact": self.inexact,
            "task": self.data.task,
        }

    def load_state(self, meta: dict[str, Any]) -> None:
        """Record whether the data repeats itself. Its position and the arrays were restored before compilation."""
        self.inexact = list(meta.get("inexact", ()))
        if self.iterator.differs:
            self.inexact.append(meta["step"])
            log.warning(OTHER_DATA, self.iterator.name, self.iterator.taken - 1, meta["step"])
            self.program.learner.notes.append(f"inexact: the data differs from that before step {meta['step']}")
