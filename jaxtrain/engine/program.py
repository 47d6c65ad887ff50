"""Compiled programs of a module and a learner (train a chunk, evaluate, predict, probe), and the training state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..core.functional import Functional, traced
from ..core.metrics import Mean, Metrics, Pending
from ..core.module import Module, Objective, Phases, phases_of
from ..core.state import (
    attributes_kept,
    drop_weak_types,
    flatten,
    fold_in,
    global_norm,
    kind_of,
    long_term_states,
    parameters,
    restore_objects,
    set_key,
    signature,
    stack,
    state_objects,
    unflatten,
    with_strong_types,
)
from ..distributed import processes
from ..strategies import Strategy
from ..strategies.base import Learner, trained
from ..strategies.independence import mixed_loss
from ..strategies.padding import inert
from . import chunks
from .optimizer import Optimizer
from .report import compiled_memory, describe_parameters, flops, time_steps
from .seeds import LIVE, SeedAxis
from .sharding import Devices

NonFinite = Literal["raise", "skip", "warn"]
TRAIN, EVALUATE, PREDICT, PROBE = range(4)
"""Random streams, each derived from the same root key."""
NONFINITE_INDEX, ZERO_GRADIENT = "nonfinite", "dead"
"""Outputs of a train program beside metrics: index of the first nonfinite quantity, and flags of zero gradients.

The flags mark the parameters whose gradient was exactly zero.
"""
ALL_FINITE, FROZEN_SEED = -1, -2
"""Values of ``BAD`` that are not an index: everything is finite; the seed was frozen at an earlier step."""


class Program:
    """Compiled programs of one module under one strategy, and the state that they share.

    ``values`` maps names to device values. Parameters have their own names; the rest is under ``model/``,
    ``optimizer/`` and ``learner/``. The train program donates ``values``, so no other code may keep a reference to
    it.

    Args:
        module: The module, with its model built.
        strategy: The strategy to bind. On several devices it is bound to one device's share of a batch.
        encode: The data's encoding of the inputs of one time step.
        example: A batch on the host, time-major; programs are compiled for its shapes.
        seed: One seed, or a tuple of S seeds to train side by side. With a tuple, every leaf of ``values`` has a
            leading axis of size S. A seed that becomes nonfinite is frozen in its last finite state, unless
            ``nonfinite`` is "skip" or "warn".
        clip: Largest global norm of a gradient, or None.
        accumulate: Number of batches per update.
        nonfinite: What to do about nonfinite numbers: "raise", "skip" or "warn".
        chunk: Steps per dispatch; "auto" chooses by the work of a step.
        models: With several seeds, the module's attributes as built under each seed.
        devices: Number of devices of this process that run the program.
    """

    def __init__(self, module: Module, strategy: Strategy, encode: Callable, example: Any, *,
                 seed: int | tuple[int, ...], clip: float | None, accumulate: int, nonfinite: NonFinite,
                 chunk: int | Literal["auto"], models: Sequence[Any] = (), devices: int = 1):  # fmt: skip
        started = time.perf_counter()
        self.module, self.strategy, self._nonfinite = module, strategy, nonfinite
        self.example = example
        self._executables: dict[Any, Any] = {}
        self._bad_names: list[str] = []
        self.evaluated: list[str] = []  # the metrics of a validation
        self._packed: dict[str, tuple[int, int]] = {}
        self.seed_axis, self._seed = (SeedAxis(seed), seed[0]) if isinstance(seed, tuple) else (None, seed)
        self._width = 1 if self.seed_axis is None else len(self.seed_axis.seeds)
        self.devices = Devices(devices, None if self.seed_axis is None else self._width)
        if accumulate > 1 and strategy.config().get("update_every", "sequence") != "sequence":
            raise ValueError(
                f"Fit(accumulate={accumulate}) with update_every={strategy.config()['update_every']}: a sequence makes "
                "several updates; choose one of the two"
            )
        bind = lambda: self._bind(encode, clip, accumulate)  # noqa: E731
        if self.seed_axis is None:
            bind()
            root, values = jax.random.key(self._seed), self._now()
        else:
            root, values = self.seed_axis.root(), self._side_by_side(self.seed_axis, models, bind)
        self.root, self.values = self.devices.place(root), self.devices.place(values)
        self._objects, self.state_ids = state_objects(module.model), {id(state) for state in self._named.values()}
        self.chunk = chunks.chosen(self.flops) if chunk == "auto" else chunk
        self._train: Any = None
        self.compile_seconds = time.perf_counter() - started

    def _bind(self, encode: Callable, clip: float | None, accumulate: int) -> None:
        """Bind the rule and the optimizer to the module's current model, and collect the States that outlive a step."""
        module = self.module
        with self._environ(fit=True):
            drop_weak_types(parameters(module.model).values())
            self.objective = Objective(module, encode)
            self.phases = phases_of(module, self.example)
            self._share = self.devices.share(module, self.example)
            share = phases_of(module, self._share)
            self.learner: Learner = self.strategy.bind(self.objective, share)
            self.parameter_reports = self.learner.report(share)
            self.optimizer = self._optimizer(clip, accumulate)
            self._kept = long_term_states(module.model)
            self.parameters = list(parameters(module.model))
            self._named = {
                **parameters(module.model),
                **{f"model/{name}": state for name, state in self._kept.items()},
                **{f"optimizer/{name}": state for name, state in self.optimizer.states().items()},
                **{f"learner/{name}": state for name, state in self.learner.states().items()},
            }
            drop_weak_types([*self._named.values(), *self.learner.short_term_states()])
            self._whole: dict[str, Any] = {}
            if self.devices.splits_batch and (own := self.learner.states()):
                with attributes_kept(module.model):
                    whole = self.strategy.bind(self.objective, self.phases).states()
                    self._whole = self.devices.carried(own, whole, f"strategy {self.strategy.name!r}")

    def _now(self) -> dict[str, Any]:
        values = {name: state.value for name, state in self._named.items()}
        return {name: with_strong_types(value) for name, value in {**values, **self._whole}.items()}

    def _side_by_side(self, seed_axis: SeedAxis, models: Sequence[Any], bind: Callable[[], None]) -> dict[str, Any]:
        """Values of all seeds. Leaves the module as built under the first seed, whose step serves all seeds."""
        each: list[tuple[dict[str, Any], Any]] = []
        for built in reversed(models):
            if not each or built["model"] is not self.module.model:
                vars(self.module).clear()
                vars(self.module).update(built)
                bind()
                with self._environ(fit=True):
                    own = self._now(), traced(lambda: time_steps(self.learner, self.phases))
            each.insert(0, own)
        seed_axis.require_one_step([step for _, step in each], type(self.module).__name__)
        return seed_axis.stacked([values for values, _ in each])

    def _optimizer(self, clip: float | None, accumulate: int) -> Optimizer:
        """Create the optimizer for the parameters that the rule trains.

        A parameter without a gradient would still be moved by weight decay, so those that the rule does not train are
        left out.
        """
        chosen, untrained = (
            trained(self.objective),
            {report.name for report in self.parameter_reports if report.trains == "no"},
        )
        params = {name: state for name, state in trained(self.objective).items() if name not in untrained}
        if not params:
            raise ValueError(
                f"strategy {self.strategy.name!r} trains none of the parameters {list(chosen)}: use another strategy"
            )
        idle = {name: state for name, state in chosen.items() if name in untrained}
        return Optimizer(self.module, params, clip=clip, accumulate=accumulate, idle=idle)

    @cached_property
    def _step(self) -> Functional:
        """One train step. It is traced on first use, because data for prediction has no targets to train with."""
        with self._environ(fit=True):
            return self._functional(self._train_step, jnp.int32(0), self._share)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one train step, over all seeds and devices."""
        return flops(self._step.jaxpr) * self._width * (self.devices.count if self.devices.splits_batch else 1)

    # ------------------------------------------------------------------------------------------------- running

    def train(self, batches: list[Any], first_step: int) -> Pending:
        """Dispatch the steps ``first_step + 1 ... first_step + len(batches)`` and return their pending metrics."""
        data = self.devices.arrive(self.module, batches, lambda some: chunks.stacked(some, self.chunk))
        self.values, metrics = self._train(self.values, self.root, np.int32(first_step), np.int32(len(batches)), data)
        return Pending(metrics, self._unpack)

    def _unpack(self, arrays: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        """Unpack the array ``([seeds,] 2 x metrics)`` per step that holds all metrics: fetching costs per array."""
        numbers, bad = arrays
        means = {name: Mean(numbers[..., num], numbers[..., weight]) for name, (num, weight) in self._packed.items()}
        dead = numbers[..., 2 * len(means) :] != 0
        if self.seed_axis is None:
            return {**means, NONFINITE_INDEX: bad[:, None], ZERO_GRADIENT: dead}
        return {**self.seed_axis.merged(means), NONFINITE_INDEX: bad, ZERO_GRADIENT: dead.all(axis=1)}

    def evaluate(self, batch: Any, index: int, values: Any = None, *, first: bool = False) -> Pending:
        """Metrics of one batch, by name, as ``Mean``.

        With several seeds, metrics are merged over seeds, and each seed's own are added under ``seeds/``.
        """
        found = self.read("evaluate", self._evaluate_step, batch, index, values=values, first=first)
        return Pending(found) if self.seed_axis is None else Pending(found, self.seed_axis.merged)

    def probe(self, callback: Any, batch: Any, index: int) -> Pending:
        """Run a callback's ``probe`` on one batch.

        It runs for the first seed that is not frozen, or on the first device's share of the batch.
        """

        def step(root, index, batch):
            set_key(fold_in(root, PROBE, index))
            return callback.probe(self.module, self.learner, self.phases_of(batch, self.objective.learn))

        with self._environ(fit=True):
            batch = self.devices.share(self.module, batch)
        return Pending(self.read(("probe", id(callback)), step, batch, index, first=True, fit=True))

    def prepare(self, *, evaluate: Iterable[Any] = (), probes: Iterable[Any] = (), train: bool = True) -> None:
        """Compile what a run will need, so that nothing is compiled after step 0."""
        started = time.perf_counter()
        if train:
            self._train = self._compile_train()
            self.learner.notes += self._mixing()
        for batch in evaluate:
            self.evaluated = self.evaluate(batch, 0).names()
        for callback in probes:
            self.probe(callback, self.example, 0)
        self.compile_seconds += time.perf_counter() - started

    def _mixing(self) -> list[str]:
        with self._environ(fit=True):
            note = mixed_loss(self.objective, self.learner.network, phases_of(self.module, self._share))
        return [note] if note else []

    # --------------------------------------------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flat arrays of the parameters, and of everything else that is needed to continue training."""
        params = {name: self.values[name] for name in self.parameters}
        rest = {name: value for name, value in self.values.items() if name not in params}
        return flatten(params), flatten({**rest, "rng": self.root})

    def signature(self) -> tuple[dict[str, str], dict[str, str]]:
        params, train = self.state()
        return signature(params), signature(train)

    def load_parameters(self, flat: dict[str, Any]) -> None:
        template = {name: self.values[name] for name in self.parameters}
        self.values = self.devices.place({**self.values, **unflatten(template, flat)})

    def load(self, params: dict[str, Any], train: dict[str, Any], optimizer_settings: dict[str, Any]) -> None:
        """Load the state of a checkpoint. A learning rate that was changed since then replaces the saved one."""
        self.load_parameters(params)
        template = {name: value for name, value in self.values.items() if name not in self.parameters}
        restored = unflatten({**template, "rng": self.root}, train)
        self.root = self.devices.place(restored.pop("rng"))
        self.values = self.devices.place({**self.values, **restored})
        if optimizer_settings != self.optimizer.settings():
            each = [dict(self.values)] if self.seed_axis is None else self.seed_axis.each(self.values)
            for values in each:
                self._assign(self.devices.alone(values))
                self.optimizer.renew(optimizer_settings)
                for name, state in self.optimizer.states().items():
                    values[f"optimizer/{name}"] = with_strong_types(state.value)
            self.values = self.devices.place(each[0] if self.seed_axis is None else stack(each))

    def write_back(self, values: dict[str, Any] | None = None) -> int:
        """Copy the current values, or ``values``, into the module's model and the optimizer.

        With several seeds, the first that is not frozen is written back. If a dispatch failed after the state was
        donated to it, nothing is written.

        Returns:
            The seed whose values were written.
        """
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.values)):
            return self._seed
        held = jax.tree.map(processes.allgather, values or self.values)
        restore_objects(self._objects)
        seed, held = (self._seed, held) if self.seed_axis is None else self.seed_axis.first_live(held)
        self._assign(held)
        return seed

    def _assign(self, values: dict[str, Any]) -> None:
        for name in self._named.keys() & values.keys():
            self._named[name].value = with_strong_types(
                values[name]
            )  # through the host: copying on the device would compile

    def host_parameters(self, values: dict[str, Any] | None = None) -> dict[str, Any]:
        return jax.tree.map(np.array, jax.device_get({n: (values or self.values)[n] for n in self.parameters}))

    @property
    def auto(self) -> dict[str, Any]:
        """The resolved value of every "auto" option."""
        return {"chunk": self.chunk, **self.learner.resolved()}

    def report(self) -> dict[str, Any]:
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
            "trace_bytes": self.learner.trace_bytes() * self._width,
            "notes": self.learner.notes,
        }

    # ------------------------------------------------------------------------------------------- traced bodies

    def phases_of(self, batch: Any, step: Callable, carried: bool = False) -> Phases:
        return inert(phases_of(self.module, batch), step, self.learner.network, carried=carried)

    def _train_step(self, root, index, batch) -> tuple[dict[str, Mean], jax.Array, jax.Array]:
        set_key(self.devices.fold(fold_in(root, TRAIN, index)))
        phases = self.phases_of(batch, self.objective.learn, carried=self.learner.carried)
        with self.devices.own_random(self._kept.values()):
            metrics = self.learner.learn(phases, self._update)
        counts, live = metrics.pop(NONFINITE_INDEX).num, metrics.pop(ZERO_GRADIENT).num
        # grad_norm comes last, so that a nonfinite gradient is reported by its own name.
        means = {name: mean for name, mean in metrics.items() if name != "grad_norm"}
        finite = jnp.stack([jnp.isfinite(mean.num) for mean in means.values()])
        last = jnp.isfinite(metrics["grad_norm"].num)[None]
        self._bad_names = [
            *(f"train/{name}" for name in means),
            *(f"the gradient of {n}" for n in self.optimizer.leaves),
            "grad_norm",
            "the parameters after the update",
        ]
        norm = global_norm([self._named[name].value for name in self.parameters])
        flags = jnp.concatenate([~finite, counts > 0, ~last, ~jnp.isfinite(norm)[None]])
        bad = jnp.where(flags.any(), jnp.argmax(flags), ALL_FINITE).astype(jnp.int32)
        metrics["param_norm"] = Mean(norm, jnp.float32(1))
        return metrics, bad, (live == 0).astype(jnp.float32)

    def _update(self, grads: dict[str, Any], weight: Any, metrics: Metrics) -> Metrics:
        """Sum everything that devices must exchange in one all-reduce, then update the parameters."""
        grads = {name: grads[name] for name in self.optimizer.names}
        kept = {n: s.value for n, s in self._kept.items() if not isinstance(s, brainstate.random.RandomState)}
        known = isinstance(weight, float)
        sums, kept = self.devices.total((grads, metrics, () if known else weight), kept)
        grads, metrics, weight = *sums[:2], self.devices.weight(weight) if known else sums[2]
        for name, value in kept.items():
            self._kept[name].value = value
        leaves = flatten(grads).values()
        counts = jnp.stack([(~jnp.isfinite(leaf)).any().astype(jnp.float32) for leaf in leaves])
        whole = self.optimizer.accumulated(grads)
        parts = [jax.tree.leaves(whole[name]) for name in self.optimizer.names]
        live = jnp.stack([sum((leaf != 0).any().astype(jnp.float32) for leaf in part) for part in parts])
        said = {NONFINITE_INDEX: Mean(counts, jnp.float32(1)), ZERO_GRADIENT: Mean(live, jnp.float32(1))}
        loss = metrics["loss"].num if self.optimizer.wants_loss else 0.0
        return {**metrics, **self.optimizer.update(grads, weight, loss), **said}

    def _evaluate_step(self, root, index, batch) -> Metrics:
        set_key(self.devices.fold(fold_in(root, EVALUATE, index)))
        with self.devices.own_random(self._kept.values()):
            metrics = self.learner.evaluate(self.phases_of(batch, self.objective.evaluate))
        return self.devices.total(metrics, ())[0]

    # ----------------------------------------------------------------------------------------------- compiling

    def _environ(self, fit: bool):
        return brainstate.environ.context(**self.module.environ, fit=fit)

    def _functional(self, step: Callable, index: Any, batch: Any, *, carried: bool = True) -> Functional:
        """Trace ``step`` as a pure function.

        With ``carried=False`` the step starts from fresh hidden states, for any batch size.
        """
        named, short_term_states = self._named, self.learner.short_term_states()
        if not carried:
            hidden = list(self.learner.network.hidden.values())
            short_term_states = [*short_term_states, *hidden]
            named = {name: state for name, state in named.items() if not any(state is own for own in hidden)}
        return Functional(step, named, short_term_states, jax.random.key(0), index, batch, axes=self.devices.axis_env)

    def _compile_train(self):
        """Compile one program for every number of steps up to ``chunk``: a loop with a traced count."""
        train_step = self._step

        def step(values, root, index, batch):
            new, (metrics, bad, dead) = train_step(values, root, index, batch)
            if self.seed_axis is not None:
                bad = jnp.where(values[LIVE], bad, FROZEN_SEED)
            if self._nonfinite == "skip" or self.seed_axis is not None:
                counts = bad != FROZEN_SEED if self._nonfinite == "warn" else bad == ALL_FINITE
                new = jax.tree.map(lambda n, o: jnp.where(counts, n, o), new, values)
                metrics = jax.tree.map(lambda leaf: jnp.where(counts, leaf, 0), metrics)
                dead = jnp.where(counts, dead, 1)
            if self._nonfinite == "skip":
                metrics["skipped_fraction"] = Mean(jnp.float32(bad >= 0), jnp.float32(bad != FROZEN_SEED))
            if self.seed_axis is not None and self._nonfinite == "raise":
                new[LIVE] = bad == ALL_FINITE
            self._packed = {name: (2 * i, 2 * i + 1) for i, name in enumerate(metrics)}
            numbers = jnp.stack([leaf for mean in metrics.values() for leaf in mean])
            return new, (jnp.concatenate([numbers, dead]), bad)

        chunk = chunks.looped(step if self.seed_axis is None else self.seed_axis.map(step), self.chunk)
        with self._environ(fit=True):
            numbers = jnp.int32(0), jnp.int32(0)
            lowered = self.devices.lower(
                chunk, self.values, self.root, numbers, self.example, self.module, stacked=self.chunk, donate=True
            )
        return lowered.compile()

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
        key = (kind, first, self.objective.encode, kind_of(batch))
        with self._environ(fit=fit):
            alone = first or not self.devices.divides(self.module, batch)
        given = values or self.values, self.root
        values, root = self.devices.alone(given) if alone else given
        if key not in self._executables:
            restore_objects(self._objects)
            with self._environ(fit=fit), self.devices.only_one(alone):
                example = batch if alone else self.devices.share(self.module, batch)
                functional = self._functional(step, jnp.int32(0), example, carried=fit)
                read = lambda *args: functional(*args)[1]  # noqa: E731
                if self.seed_axis is not None:
                    read = self.seed_axis.first(read) if first else self.seed_axis.map_live(read)
                lowered = self.devices.lower(read, values, root, (jnp.int32(0),), batch, self.module)
                self._executables[key] = lowered.compile()
        arrived = batch if alone else self.devices.arrive(self.module, [batch], lambda some: some[0])
        return self._executables[key](values, root, np.int32(index), arrived)

    def bad_name(self, code: int) -> str:
        """Name of the quantity that a non-negative nonfinite index stands for."""
        return self._bad_names[code]
