"""One program on several devices: what is split over them, what each holds whole, and the one all-reduce an update."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.module import Module, Phases, phases_of
from ..core.state import State, fold_in, is_key, kind_of
from ..distributed import processes

AXIS = "devices"
"""Of the mesh."""


def start(devices: Any) -> None:
    """On CPU JAX has as many devices as it is told before it starts: ``devices``, or of "all" one a core.

    Nothing is done for one device, and where the environment or a program has said how many already.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices == 1 or forced or jax.config.jax_num_cpu_devices >= 0:  # pyright: ignore[reportAttributeAccessIssue]
        return
    with suppress(RuntimeError):  # JAX has started: as_devices says how many there are
        jax.config.update("jax_num_cpu_devices", cores() if devices == "all" else devices)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_devices(devices: Any) -> int:
    """``Fit(devices=...)``: a number of devices of this process, or "all". Raises ValueError where there are fewer."""
    if devices != "all" and (type(devices) is not int or devices < 1):
        raise ValueError(f"Fit(devices={devices!r}): expected a whole number, 1 or more, or 'all'")
    if devices == 1 and processes.count() == 1:
        return 1
    start(devices)  # and JAX, which of several processes waits in each for all the others: not later, in some alone
    there, kind = jax.local_device_count(), jax.default_backend()
    if devices == "all":
        return there
    if devices > there:
        cpu = f", or set jax_num_cpu_devices={devices} before JAX starts" if kind == "cpu" else ""
        own = "" if processes.count() == 1 else " in this process"
        raise ValueError(f"Fit(devices={devices}): JAX has {there} on {kind}{own}; ask for at most {there}{cpu}")
    return devices


class Devices:
    """What the values, batches and metrics of a program become on ``own`` devices of each process, ``count`` in all.

    The lanes of a batch are split: each device runs the step on its share, with the parameters and the optimizer whole,
    and gradients, weights and metrics are added up over devices in one all-reduce an update. Seeds side by side
    (``seeds``) are split instead where there are several; then a device has its own seeds on the whole batch, and
    nothing is sent. Of several processes each gives its devices their share of a batch, and sees that alone.
    """

    def __init__(self, own: int, seeds: int | None = None):
        self._processes = processes.count()
        count = own * self._processes
        if seeds is not None and self._processes > 1:
            raise ValueError(
                f"Fit(seeds=...) in {self._processes} processes: seeds have nothing to tell each other; start "
                "processes of their own, each with some of the seeds"
            )
        if seeds is not None and seeds % count:
            raise ValueError(
                f"Fit(devices={count}): {seeds} seeds do not divide over {count} devices; choose a multiple of {count}"
            )
        self.count, self._seeds = count, seeds is not None
        self.several = count > 1
        self.splits_batch = self.several and seeds is None
        self._divides: dict[Any, bool] = {}
        self._layouts: dict[Any, Any] = {}
        self._held: dict[str, Any] = {}
        """By name of a value, where its leaves are split; what is not named is split by seeds, or whole everywhere."""
        if self.several:
            each = [jax.local_devices(process_index=process)[:own] for process in range(self._processes)]
            for process, its in enumerate(each):
                if len(its) < own:
                    raise ValueError(
                        f"Fit(devices={own}): process {process} has {len(its)}; give all processes the same devices"
                    )
            # Automatic axes: with explicit ones, JAX's default, brainstate's loops and vmap do not run.
            self._mesh = Mesh(np.array(each).reshape(-1), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def _asked(self) -> str:
        """By whom so many devices were asked for."""
        own = f"Fit(devices={self.count // self._processes})"
        return own if self._processes == 1 else f"{own} in {self._processes} processes"

    # ----------------------------------------------------------------------------------------------- the batch

    def divides(self, module: Module, batch: Any) -> bool:
        """Whether a batch of such shapes can be split."""
        if not self.splits_batch:
            return True
        key = kind_of(batch)
        if key not in self._divides:
            self._divides[key] = _phases(module, batch)[0].sizes[2] % self.count == 0
        return self._divides[key]

    @contextmanager
    def only_one(self, alone: bool) -> Iterator[None]:
        """While a program is made that one device runs by itself."""
        before = self.several, self.splits_batch
        if alone:
            self.several = self.splits_batch = False
        try:
            yield
        finally:
            self.several, self.splits_batch = before

    def share(self, module: Module, batch: Any, number: int = 0) -> Any:
        """What a device sees of a batch."""
        return batch if not self.splits_batch else self._share(batch, self._layout(module, batch), number, self.count)

    def arrive(self, module: Module, batches: list[Any], stack: Callable[[list[Any]], Any]) -> Any:
        """Batches for a program, stacked: of one process as they are, of several as arrays of which each process holds
        its own share."""
        if not self.splits_batch or self._processes == 1:
            return stack(batches)
        specs = self._layout(module, batches[0])
        mine = stack([self._share(batch, specs, processes.index(), self._processes) for batch in batches])

        def one(spec: P, leaf: Any, local: Any) -> Any:
            lead = np.shape(local)[: np.ndim(local) - np.ndim(leaf)]
            sharding = NamedSharding(self._mesh, P(*(None for _ in lead), *spec))
            return jax.make_array_from_process_local_data(sharding, np.asarray(local), (*lead, *np.shape(leaf)))

        return jax.tree.map(one, specs, batches[0], mine, is_leaf=_is_spec)

    def _share(self, batch: Any, specs: Any, number: int, count: int) -> Any:
        def one(spec: P, leaf: Any) -> Any:
            if AXIS not in spec:
                return leaf
            axis = spec.index(AXIS)
            size = np.shape(leaf)[axis] // count
            return leaf[(slice(None),) * axis + (slice(number * size, (number + 1) * size),)]

        return jax.tree.map(one, specs, batch, is_leaf=_is_spec)

    def _layout(self, module: Module, batch: Any) -> Any:
        """How every array of a batch is split: along axis 1 where that has the lanes, or being a vector of lanes.

        What ``Module.phases`` makes of a share must be the share of what it makes of the whole, or nothing is sure.
        Raises ValueError where the lanes do not divide, and where it is not.
        """
        key = kind_of(batch)
        if key not in self._layouts:
            self._layouts[key] = self._new_layout(module, batch)
        return self._layouts[key]

    def _new_layout(self, module: Module, batch: Any) -> Any:
        whole = _phases(module, batch)[0]
        lanes = whole.sizes[2]
        if lanes % self.count:
            raise ValueError(
                f"{self._asked}: a batch of {lanes} sequences does not divide over {self.count} devices; "
                f"choose a batch size that is a multiple of {self.count}"
            )

        def spec(leaf: Any, vectors: bool) -> P:
            shape = np.shape(leaf)
            if len(shape) >= 2 and shape[1] == lanes:
                return P(None, AXIS)
            return P(AXIS) if vectors and shape == (lanes,) else P()

        reasons = []
        for vectors in (True, False):  # a vector may be of lanes, or of as many time steps
            specs = jax.tree.map(lambda leaf, vectors=vectors: spec(leaf, vectors), batch)
            reasons.append(self._wrong(module, batch, specs))
            if not reasons[-1]:
                return specs
        raise ValueError(
            f"{self._asked}: what {type(module).__name__}.phases makes of a share of the batch is not the "
            f"share of what it makes of the whole ({reasons[0]}); give arrays (T, B, ...) that hang on their own lanes"
        )

    def _wrong(self, module: Module, batch: Any, specs: Any) -> str:
        whole, _ = _phases(module, batch)
        lanes: Any = P(None, AXIS)
        shared = whole.weights is not None and np.ndim(whole.weights) == 1
        expected = Phases(lanes, lanes, lanes, P() if shared else lanes, lanes, lanes)
        for number in (0, self.count - 1):
            try:
                part, random = _phases(module, self._share(batch, specs, number, self.count))
            except (ValueError, TypeError, IndexError) as error:
                return str(error).split(";")[0]
            spread = jax.tree.map(
                lambda spec, tree: jax.tree.map(lambda _: spec, tree), expected, whole, is_leaf=_is_spec
            )
            wanted = self._share(whole, spread, number, self.count)
            if jax.tree.structure(part) != jax.tree.structure(wanted):
                return "another structure"
            for (path, ours), theirs in zip(
                jax.tree_util.tree_leaves_with_path(part), jax.tree.leaves(wanted), strict=True
            ):
                name = jax.tree_util.keystr(path).lstrip(".")
                if np.shape(ours) != np.shape(theirs):
                    return f"{name} has shape {np.shape(ours)} instead of {np.shape(theirs)}"
                if not random and not np.allclose(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True):
                    return f"{name} has other values"
        return ""

    # ------------------------------------------------------------------------------------------------ placing

    def carried(self, own: dict[str, State], whole: dict[str, State], what: str) -> dict[str, Any]:
        """What a learner carries on, ``own`` of a share and ``whole`` of the batch: the values of the whole, whose axis
        of lanes is the one in which the two differ. Raises ValueError for what all lanes of a device share."""
        for name, state in own.items():
            axes = []
            for ours, theirs in zip(jax.tree.leaves(state.value), jax.tree.leaves(whole[name].value), strict=True):
                pairs = list(zip(np.shape(ours), np.shape(theirs), strict=True))
                differ = [axis for axis, (a, b) in enumerate(pairs) if a != b]
                constant = isinstance(state, brainstate.ParamState) or not jnp.issubdtype(ours.dtype, jnp.inexact)
                if not differ and not constant:
                    raise ValueError(
                        f"{self._asked}: {what} carries {name} on for all lanes together, so devices would "
                        "part ways; use devices=1, batching='vmap' or another strategy"
                    )
                axes.append(P(*(None,) * differ[0], AXIS) if differ else P())
            self._held[f"learner/{name}"] = jax.tree.unflatten(jax.tree.structure(state.value), axes)
        return {f"learner/{name}": state.value for name, state in whole.items()}

    def _of(self, values: dict[str, Any]) -> dict[str, Any]:
        default = P(AXIS) if self._seeds else P()
        return {name: self._held.get(name, default) for name in values}

    def place(self, values: Any) -> Any:
        """Values (or a root of random numbers) where the program wants them."""
        if not self.several:
            return values
        default = P(AXIS) if self._seeds else P()
        specs = self._of(values) if isinstance(values, dict) else default
        return jax.tree.map(lambda spec, tree: jax.tree.map(lambda leaf: self._put(leaf, spec), tree), specs, values,
                            is_leaf=_is_spec)  # fmt: skip

    def _put(self, leaf: Any, spec: P) -> Any:
        sharding = NamedSharding(self._mesh, spec)
        if self._processes == 1:
            return jax.device_put(leaf, sharding)
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        if is_key(leaf):
            return jax.random.wrap_key_data(self._put(jax.random.key_data(leaf), spec), impl=jax.random.key_impl(leaf))
        held = np.asarray(processes.whole(leaf))  # every process has it whole, so nothing need be sent or compared
        return jax.make_array_from_callback(held.shape, sharding, lambda place: held[place])

    def alone(self, values: Any) -> Any:
        """The values as the first device sees them, on it alone; of seeds, of all of them."""
        if not self.several:
            return values
        if self._seeds:
            return jax.device_put(values, self._mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), values)

    def notes(self, before: int) -> list[str]:
        """For the report: what it means that a run is resumed from one on so many devices of all processes."""
        if before == self.count:
            return []
        return [
            f"devices: the run was on {before} and is now on {self.count}; from here on it equals the one that was "
            "never stopped to rounding, not bit for bit"
        ]

    # ------------------------------------------------------------------------------------------------- running

    def lower(self, function: Callable, values: Any, root: Any, numbers: tuple, batch: Any, module: Module, *,
              stacked: int | None = None, donate: bool = False) -> Any:  # fmt: skip
        """Lower ``function(values, root, *numbers, batch)`` so that each device runs it on its share.

        ``stacked``: so many batches come at once, on a leading axis; the function then returns ``(values, metrics)``,
        else metrics alone. On one device it is the function itself: a mesh of one takes the same time, but its numbers
        differ in the last bits from those of programs without, so that runs would not go on bit for bit.
        """
        lead = () if stacked is None else (None,)
        specs = self._layout(module, batch) if self.splits_batch else jax.tree.map(lambda _: P(), batch)

        def abstract(spec: P, leaf: Any) -> Any:
            shape = np.shape(leaf) if stacked is None else (stacked, *np.shape(leaf))
            sharding = NamedSharding(self._mesh, P(*lead, *spec)) if self.several else None
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

        shapes = jax.tree.map(abstract, specs, batch, is_leaf=_is_spec)
        donated = (0,) if donate else ()
        if self.several:
            specs = jax.tree.map(lambda spec: P(*lead, *spec), specs, is_leaf=_is_spec)
            seeds = P(AXIS) if self._seeds else P()
            metrics = P(*lead, *seeds) if self._seeds else P()
            given = (self._of(values), seeds, *(P() for _ in numbers), specs)
            out = metrics if stacked is None else (self._of(values), metrics)
            function = jax.shard_map(function, mesh=self._mesh, in_specs=given, out_specs=out, check_vma=False)
        return jax.jit(function, donate_argnums=donated).lower(values, root, *numbers, shapes)

    @property
    def axis_env(self) -> list[tuple[str, int]] | None:
        """Under which a step is traced."""
        return [(AXIS, self.count)] if self.splits_batch else None

    def total(self, sums: Any, kept: Any) -> tuple[Any, Any]:
        """Traced: ``sums`` added up over devices, ``kept`` averaged, or where it holds whole numbers as the first
        device has it. One all-reduce, of one vector."""
        if not self.splits_batch:
            return sums, kept
        (adds, tree), (keeps, kept_tree) = (jax.tree.flatten(jax.tree.map(jnp.asarray, t)) for t in (sums, kept))
        first = jax.lax.axis_index(AXIS) == 0
        parts = [part for leaf in adds for part in _reals(leaf)]
        parts += [
            part / self.count if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.where(first, part, 0)
            for leaf in keeps
            for part in _reals(leaf)
        ]
        wide = jnp.result_type(jnp.float32, *parts)
        vector = jax.lax.psum(jnp.concatenate([jnp.ravel(part).astype(wide) for part in parts]), AXIS)
        ends = np.cumsum([part.size for part in parts])[:-1]
        pieces = iter(jnp.split(vector, ends))
        adds, keeps = ([_from_reals(leaf, pieces) for leaf in leaves] for leaves in (adds, keeps))
        return tree.unflatten(adds), kept_tree.unflatten(keeps)

    def weight(self, weight: Any) -> Any:
        """Of all shares, where it is known beforehand."""
        return weight * self.count if self.splits_batch else weight

    def fold(self, key: jax.Array) -> jax.Array:
        """Traced: a root of random numbers for each device; on one, and for seeds, the root itself."""
        return fold_in(key, jax.lax.axis_index(AXIS)) if self.splits_batch else key

    @contextmanager
    def own_random(self, states: Iterable[State]) -> Iterator[None]:
        """Traced: random states of the model draw different numbers on each device, and end alike on all."""
        held = [(s, s.value) for s in states if isinstance(s, brainstate.random.RandomState)] if self.axis_env else []
        for state, key in held:
            state.value = self.fold(key)
        yield
        for state, key in held:
            state.value = fold_in(key, self.count)


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)


def _phases(module: Module, batch: Any) -> tuple[Phases, bool]:
    """Of a batch, from the same random numbers each time, and whether any were drawn."""
    random, before = brainstate.random.DEFAULT, brainstate.random.DEFAULT.value
    try:
        random.value = key = jax.random.key(0)
        return phases_of(module, batch), random.value is not key
    finally:
        random.value = before


def _reals(leaf: Any) -> list[Any]:
    """A leaf as real numbers: a complex one in two parts, a whole one in halves that floats hold exactly."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return [jnp.real(leaf), jnp.imag(leaf)]
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return [leaf]
    if leaf.dtype.itemsize > 4:
        return [(leaf >> shift & 0xFFFF).astype(jnp.float32) for shift in (0, 16, 32, 48)]
    wide = leaf.astype(jnp.uint32)
    return [(wide & 0xFFFF).astype(jnp.float32), (wide >> 16).astype(jnp.float32)]


def _from_reals(leaf: Any, pieces: Iterator[Any]) -> Any:
    count = len(jax.eval_shape(_reals, leaf))
    parts = [next(pieces).reshape(leaf.shape) for _ in range(count)]
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jax.lax.complex(*parts).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return parts[0].astype(leaf.dtype)
    kind = leaf.dtype if leaf.dtype.itemsize > 4 else jnp.uint32
    halves = [part.astype(kind) << 16 * i for i, part in enumerate(parts)]
    return jnp.stack(halves).sum(0, dtype=kind).astype(leaf.dtype)
