"""Compiled programs of a module under a strategy: train a chunk, evaluate, predict, probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ..core.functional import Functional, traced
from ..core.metrics import Pending
from ..core.module import Module
from ..core.objective import phases_of
from ..core.state import fold_in, kind_of, parameters, restore_objects, set_key
from ..strategies import Strategy
from ..strategies.independence import mixed_loss
from . import chunks
from .binding import Binding, bind, environ
from .report import compiled_memory, describe_parameters, flops, time_steps
from .seeds import require_one_step
from .sharding import make_devices
from .steps import PROBE, NonFinite, Steps, guarded
from .train_state import TrainState


class Program(TrainState):
    """The training state of one module under one strategy, and the compiled programs that read and update it.

    The train program donates ``values``, so no other code may keep a reference to it.

    Args:
        module: The module, with its model built.
        strategy: The strategy to bind.
        encode: The data's encoding of the inputs of one time step.
        example: A batch on the host, time-major; programs are compiled for its shapes.
        seed: One seed, or a tuple of S seeds to train side by side. With a tuple, every leaf of ``values`` has a
            leading axis of size S. A seed that becomes nonfinite is frozen in its last finite state, unless
            ``nonfinite`` is "skip" or "warn".
        clip: Largest global norm of a gradient, or None.
        accumulate: Number of batches per update.
        nonfinite: What to do about nonfinite numbers: "raise", "skip" or "warn".
        chunk: Steps per dispatch; "auto" chooses by the work of a step.
        models: With several seeds, for each seed a module built under it, the first of which is ``module``. By default
            all seeds start from the values of ``module``.
        devices: Number of devices of this process that run the program.

    Raises:
        ValueError: The options do not fit the strategy, the module, the batch or the devices.
    """

    def __init__(self, module: Module, strategy: Strategy, encode: Callable, example: Any, *,
                 seed: int | tuple[int, ...], clip: float | None, accumulate: int, nonfinite: NonFinite,
                 chunk: int | Literal["auto"], models: Sequence[Module] = (), devices: int = 1):  # fmt: skip
        started = time.perf_counter()
        update_every = strategy.config().get("update_every", "sequence")
        if accumulate > 1 and update_every != "sequence":
            raise ValueError(
                f"Fit(accumulate={accumulate}) with update_every={update_every}: a sequence makes several updates; "
                "choose one of the two"
            )
        several, seeds = isinstance(seed, tuple), seed if isinstance(seed, tuple) else (seed,)
        placed = make_devices(module, devices, len(seeds) if several else None)
        options = {"encode": encode, "example": example, "clip": clip, "accumulate": accumulate}
        bind_to = partial(bind, strategy=strategy, split=placed.split, **options)
        binding, initial = _bind_each(seeds, models or [module] * len(seeds), bind_to)
        super().__init__(binding, replace(placed, specs=binding.specs), seed, initial)
        self.example = example
        self._nonfinite: NonFinite = nonfinite
        self._executables: dict[Any, Any] = {}
        self._train: Any = None
        self.evaluated: list[str] = []
        """Names of the metrics of a validation."""
        self.chunk = chunks.chosen(self.flops) if chunk == "auto" else chunk
        self.compile_seconds = time.perf_counter() - started

    @property
    def module(self) -> Module:
        return self.binding.module

    strategy = property(attrgetter("binding.strategy"))
    objective = property(attrgetter("binding.objective"))
    phases = property(attrgetter("binding.phases"))
    learner = property(attrgetter("binding.learner"))
    parameter_reports = property(attrgetter("binding.parameter_reports"))
    optimizer = property(attrgetter("binding.optimizer"))
    parameters = property(attrgetter("binding.parameters"))

    @cached_property
    def _step(self) -> Functional:
        """One train step. It is traced on first use, because data for prediction has no targets to train with."""
        steps = Steps(self.binding, self.devices.collectives)
        with environ(self.module, fit=True):
            return steps.functional(steps.train, jnp.int32(0), self.binding.share)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one train step, over all seeds and devices."""
        return flops(self._step.jaxpr) * self._seeds * self.devices.split.count

    @property
    def _seeds(self) -> int:
        return 1 if self.seed_axis is None else len(self.seed_axis.seeds)

    # ------------------------------------------------------------------------------------------------- running

    def train(self, batches: list[Any], first_step: int) -> Pending:
        """Dispatch the steps ``first_step + 1 ... first_step + len(batches)`` and return their pending metrics."""
        data = self.devices.to_global_batch(batches, lambda some: chunks.stacked(some, self.chunk))
        self.values, packed = self._train(self.values, self.root, np.int32(first_step), np.int32(len(batches)), data)
        return Pending(packed, lambda packed: packed.unpack(self.seed_axis))

    def evaluate(self, batch: Any, index: int, values: Any = None, *, first: bool = False) -> Pending:
        """Metrics of one batch, by name, as ``Mean``.

        With several seeds, metrics are merged over seeds, and each seed's own are added under ``seeds/``.
        """
        metrics = self._read("evaluate", lambda steps: steps.evaluate, batch, index, values=values, first=first)
        return Pending(metrics) if self.seed_axis is None else Pending(metrics, self.seed_axis.merged)

    def probe(self, callback: Any, batch: Any, index: int) -> Pending:
        """Run a callback's ``probe`` on one batch.

        It runs for the first seed that is not frozen, or on the first device's share of the batch.
        """

        def step(root, index, batch):
            set_key(fold_in(root, PROBE, index))
            return callback.probe(self.module, self.learner, self.binding.phases_of(batch, self.objective.learn))

        with environ(self.module, fit=True):
            share = self.devices.split.share(batch)
        return Pending(self.read(("probe", id(callback)), step, share, index, first=True, fit=True))

    def read(self, kind: Any, step: Callable, batch: Any, index: int, *, values: Any = None, first: bool = False,
             fit: bool = False) -> Any:  # fmt: skip
        """Run a program that reads the state and changes nothing. It is compiled once per batch shape.

        Args:
            kind: Identifies the program in the cache.
            step: ``step(root, index, batch)``, traced.
            batch: A batch on the host, time-major.
            index: Batch number, from which random numbers derive.
            values: Values to read instead of the program's own.
            first: Run for the whole batch on the first device, and for the first seed that is not frozen.
            fit: Value of ``fit`` in ``brainstate.environ``; if False, the step starts from fresh hidden states.
        """
        return self._read(kind, lambda steps: step, batch, index, values=values, first=first, fit=fit)

    def _read(self, kind: Any, choose: Callable[[Steps], Callable], batch: Any, index: int, *, values: Any, first: bool,
              fit: bool = False) -> Any:  # fmt: skip
        key = (kind, first, self.objective.encode, kind_of(batch))
        devices, values, root = self.devices, values or self.values, self.root
        with environ(self.module, fit=fit):
            if first or not devices.split.divides(batch):
                (values, root), devices = devices.on_first_device((values, root)), devices.single_device()
        if key not in self._executables:
            restore_objects(self.binding.objects)
            with environ(self.module, fit=fit):
                steps = Steps(self.binding, devices.collectives)
                functional = steps.functional(choose(steps), jnp.int32(0), devices.split.share(batch), fresh=not fit)
                read: Callable = lambda *args: functional(*args)[1]  # noqa: E731
                if self.seed_axis is not None:
                    read = self.seed_axis.first(read) if first else self.seed_axis.map_live(read)
                self._executables[key] = devices.lower(read, values, root, (jnp.int32(0),), batch).compile()
        data = devices.to_global_batch([batch], lambda some: some[0])
        return self._executables[key](values, root, np.int32(index), data)

    # ----------------------------------------------------------------------------------------------- compiling

    def prepare(self, *, evaluate: Iterable[Any] = (), probes: Iterable[Any] = (), train: bool = True) -> None:
        """Compile what a run will need, so that nothing is compiled after step 0.

        Args:
            evaluate: Batches of a validation, one of each shape.
            probes: Callbacks whose ``probe`` will run.
            train: Whether to compile the train program.
        """
        started = time.perf_counter()
        if train:
            self._train = self._compile_train()
            with environ(self.module, fit=True):
                share = phases_of(self.module, self.binding.share)
                note = mixed_loss(self.objective, self.learner.network, share)
            self.learner.notes += [note] if note else []
        for batch in evaluate:
            self.evaluated = self.evaluate(batch, 0).names()
        for callback in probes:
            self.probe(callback, self.example, 0)
        self.compile_seconds += time.perf_counter() - started

    def _compile_train(self):
        """Compile one program for every number of steps up to ``chunk``: a loop with a traced count."""
        step = guarded(self._step, self._nonfinite, self.seed_axis is not None)
        chunk = chunks.looped(step if self.seed_axis is None else self.seed_axis.map(step), self.chunk)
        lower = partial(self.devices.lower, stacked=self.chunk, donate=True)
        with environ(self.module, fit=True):
            return lower(chunk, self.values, self.root, (jnp.int32(0), jnp.int32(0)), self.example).compile()

    # ----------------------------------------------------------------------------------------------- reporting

    def bad_name(self, index: int) -> str:
        """Name of the quantity that a nonfinite index stands for."""
        return self._step.result.checked[index]

    @property
    def auto(self) -> dict[str, Any]:
        """The resolved value of every "auto" option."""
        return {"chunk": self.chunk, **self.learner.resolved()}

    def report(self) -> dict[str, Any]:
        """What is known before step 0, for ``report.lines`` and ``Result.report``."""
        warm, learn, batch = self.phases.sizes
        return {
            "strategy": self.strategy.config(),
            "warmup": warm,
            "learning": learn,
            "batch": batch,
            "parameters": describe_parameters(parameters(self.module.model), self.parameter_reports),
            "memory": compiled_memory(self._train),
            "flops": self.flops,
            "seeds": None if self.seed_axis is None else list(self.seed_axis.seeds),
            "devices": self.devices.count,
            "auto": self.auto,
            "compile_seconds": self.compile_seconds,
            "trace_bytes": self.learner.trace_bytes() * self._seeds,
            "notes": self.learner.notes,
        }


def _bind_each(
    seeds: Sequence[int], modules: Sequence[Module], bind_to: Callable
) -> tuple[Binding, list[dict[str, Any]]]:
    """Bind each seed's module, and check that all seeds have the same traced time step and projection.

    A module that serves several seeds is bound once. The first is bound last: models may share parts, and programs are
    traced with the States of the first.

    Returns:
        The binding of the first module, and the initial values of each seed.
    """
    bound: dict[int, tuple[Binding, dict[str, Any]]] = {}
    steps: dict[int, Any] = {}
    for module in reversed(modules):
        if id(module) not in bound:
            binding, values = bound[id(module)] = bind_to(module)
            if modules[0] is not modules[-1]:
                with environ(module, fit=True):
                    steps[id(module)] = traced(
                        lambda b=binding: (time_steps(b.learner, b.phases), b.optimizer.project())
                    )
    if steps:
        require_one_step(seeds, [steps[id(module)] for module in modules], type(modules[0]).__name__)
    return bound[id(modules[0])][0], [bound[id(module)][1] for module in modules]
