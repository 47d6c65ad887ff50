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

from ..core.functional import Functional
from ..core.metrics import Pending, empty
from ..core.module import Module
from ..core.objective import phases_of
from ..core.state import fold_in, kind_of, parameters, restore_objects, set_key, stack
from ..strategies import Strategy
from ..strategies.independence import mixed_loss
from ..utils.memory import allocated
from . import chunks
from .bind_seeds import bind_each
from .binding import bind, environ
from .compilation import Compilation, Reading
from .report import compiled_memory, describe_parameters, flops
from .room import require_room_for_reading, require_room_for_training
from .sharding import make_devices
from .stepping import Stepping
from .steps import PROBE, NonFinite, Packed, Steps, guarded
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
        binding, initial = bind_each(seeds, models or [module] * len(seeds), bind_to)
        super().__init__(binding, replace(placed, specs=binding.specs), seed, initial)
        self.example = example
        self._nonfinite: NonFinite = nonfinite
        self._executables: dict[Any, Compilation] = {}
        self._train: Any = None
        self._trains: dict[Any, Any] = {}
        """Train programs by the kind of their batches, if there are several kinds; each runs one step per dispatch."""
        self.evaluated: dict[str, Any] = {}
        """For each metric of a validation, a value of its shape."""
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
        return self._trace(self.example)

    def _trace(self, example: Any) -> Functional:
        steps = Steps(self.binding, self.devices.collectives)
        with environ(self.module, fit=True):
            return steps.functional(steps.train, jnp.int32(0), self.devices.split.share(example))

    @property
    def trained(self) -> list[str]:
        """Names of the metrics of a train step."""
        return list(self._step.result.metrics)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one train step, over all seeds and devices."""
        return flops(self._step.jaxpr) * self._seeds * self.devices.split.count

    @property
    def _seeds(self) -> int:
        return 1 if self.seed_axis is None else len(self.seed_axis.seeds)

    @property
    def _trace_bytes(self) -> int:
        return self.learner.trace_bytes() * self._seeds

    # ------------------------------------------------------------------------------------------------- running

    def train(self, batches: list[Any], first_step: int) -> Pending:
        """Dispatch the steps ``first_step + 1 ... first_step + len(batches)`` and return their pending metrics."""
        if self._trains:
            each = [self._dispatch(self._trains[kind_of(b)], [b], i, 1) for i, b in enumerate(batches, first_step)]
            return Pending(each, lambda each: Packed.joined(each).unpack(self.seed_axis))
        packed = self._dispatch(self._train, batches, first_step, self.chunk)
        return Pending(packed, lambda packed: packed.unpack(self.seed_axis))

    def _dispatch(self, program: Any, batches: list[Any], first_step: int, length: int) -> Packed:
        data = self.devices.to_global_batch(batches, lambda some: chunks.stacked(some, length))
        self.values, packed = program(self.values, self.root, np.int32(first_step), np.int32(len(batches)), data)
        return packed

    def evaluate(self, batch: Any, index: int, values: Any = None, *, first: bool = False) -> Pending:
        """Metrics of one batch, by name, as ``Mean``.

        With several seeds, metrics are merged over seeds, and each seed's own are added under ``seeds/``.
        """
        metrics = self._evaluation(batch, values, first).run(batch, index)
        return Pending(metrics) if self.seed_axis is None else Pending(metrics, self.seed_axis.merged)

    def probe(self, callback: Any, batch: Any, index: int) -> Pending:
        """Run a callback's ``probe`` on one batch.

        It runs for the first seed that is not frozen, or on the first device's share of the batch.
        """
        probing, share = self._probing(callback, batch)
        return Pending(probing.run(share, index))

    def read(self, kind: Any, step: Callable, batch: Any, index: int, *, values: Any = None, root: Any = None,
             first: bool = False, fit: bool = False) -> Any:  # fmt: skip
        """Run a program that reads the state and changes nothing. It is compiled once per batch shape.

        Args:
            kind: Identifies the program in the cache.
            step: ``step(root, index, batch)``, traced.
            batch: A batch on the host, time-major.
            index: Batch number, from which random numbers derive.
            values: Values to read instead of the program's own.
            root: A root key to use instead of the program's own.
            first: Run for the whole batch on the first device, and for the first seed that is not frozen.
            fit: Value of ``fit`` in ``brainstate.environ``; if False, the step starts from fresh hidden states.
        """
        reading = self._reading(kind, lambda steps: step, batch, values, root, first=first, fit=fit)
        return reading.run(batch, index)

    def _evaluation(self, batch: Any, values: Any = None, first: bool = False) -> Reading:
        return self._reading("evaluate", lambda steps: steps.evaluate, batch, values, first=first, fit=False)

    def _probing(self, callback: Any, batch: Any) -> tuple[Reading, Any]:
        """A callback's probe, and the share of the batch that it reads."""

        def step(root, index, batch):
            set_key(fold_in(root, PROBE, index))
            return callback.probe(self.module, self.learner, self.binding.phases_of(batch, self.objective.learn))

        with environ(self.module, fit=True):
            share = self.devices.split.share(batch)
        return self._reading(("probe", id(callback)), lambda steps: step, share, None, first=True, fit=True), share

    def _reading(self, kind: Any, choose: Callable[[Steps], Callable], batch: Any, values: Any, root: Any = None, *,
                 first: bool, fit: bool) -> Reading:  # fmt: skip
        """A program that reads the state. Its compilation starts now, unless it has been compiled before."""
        key = (kind, first, self.objective.encode, kind_of(batch))
        if root is not None and self.seed_axis is not None:
            root = stack([root] * self._seeds)
        devices, values, root = self.devices, values or self.values, self.root if root is None else root
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
                lowered = devices.lower(read, values, root, (jnp.int32(0),), batch)
            held = allocated(values)
            check = lambda compiled: require_room_for_reading(compiled, held, devices.own, kind)  # noqa: E731
            self._executables[key] = Compilation(lowered, check, functional.result)
        return Reading(self._executables[key], devices, values, root)

    # ----------------------------------------------------------------------------------------------- compiling

    def prepare(self, *, evaluate: Iterable[Any] = (), probes: Iterable[Any] = (), train: bool = True,
                must_fit: bool = True, shapes: Sequence[Any] = ()) -> None:  # fmt: skip
        """Compile what a run will need, so that nothing is compiled after step 0.

        Args:
            evaluate: Batches of a validation, one of each shape.
            probes: Callbacks whose ``probe`` will run.
            train: Whether to compile the train program.
            must_fit: Whether the train program will run.
            shapes: Train batches, one of each shape, the first of the shape of ``example``; empty if all batches have
                its shape.

        Raises:
            InsufficientMemory: A program needs more memory than there is.
        """
        started = time.perf_counter()
        check, first = self._check_train if must_fit else None, 1 if shapes[1:] else self.chunk
        training = Compilation(self._lower_train(self.example, first), check) if train else None
        others = {kind_of(batch): Compilation(self._lower_train(batch, 1), check) for batch in shapes[1:] if train}
        validations = [self._evaluation(batch) for batch in evaluate]
        probing = [self._probing(callback, self.example)[0] for callback in probes]
        if training is not None:
            with environ(self.module, fit=True):
                share = phases_of(self.module, self.binding.share)
                note = mixed_loss(self.objective, self.learner.network, share)
            self.learner.notes += [note] if note else []
            self._train = training.program
            compiled = {kind: each.program for kind, each in others.items()}
            self._trains = {kind_of(self.example): self._train, **compiled} if others else {}
        for reading in [*validations, *probing]:
            reading.compilation.program  # noqa: B018 - waits, and raises an error of the compiler
        results = [reading.compilation.result for reading in validations]
        self.evaluated = {name: empty(sums) for result in results for name, sums in result.items()}
        self.compile_seconds += time.perf_counter() - started

    def stepping(self, time_step: Any) -> Stepping:
        """The programs of a session that predicts and learns one time step at a time.

        Args:
            time_step: A batch of one time step, in the form of ``example``.
        """
        return Stepping(self.binding, guarded(self._step, self._nonfinite, False), self.example, time_step, self.values)

    def _lower_train(self, example: Any, length: int) -> Any:
        """Lower one program for every number of steps up to ``length``: a loop with a traced count."""
        step = self._step if example is self.example else self._trace(example)
        step = guarded(step, self._nonfinite, self.seed_axis is not None)
        chunk = chunks.looped(step if self.seed_axis is None else self.seed_axis.map(step), length)
        lower = partial(self.devices.lower, stacked=length, donate=True)
        with environ(self.module, fit=True):
            return lower(chunk, self.values, self.root, (jnp.int32(0), jnp.int32(0)), example)

    def _check_train(self, compiled: Any) -> None:
        require_room_for_training(
            compiled, allocated(self.values), self.devices.own, self.strategy, self._trace_bytes, self._seeds
        )

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
            "trace_bytes": self._trace_bytes,
            "notes": self.learner.notes,
        }
