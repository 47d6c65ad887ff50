"""Running one program on several devices: what is split, what is replicated, and the one all-reduce per update."""

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

from ..core.module import Module, Phases
from ..core.objective import phases_of
from ..core.state import State, fold_in, is_key, kind_of
from ..distributed import processes

AXIS = "devices"
"""Name of the mesh axis."""


def start(devices: Any) -> None:
    """Set the number of CPU devices, which JAX reads only when it starts: ``devices``, or one per core for "all".

    Does nothing for one device, or if the environment or the program has already set a number.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices == 1 or forced or jax.config.jax_num_cpu_devices >= 0:  # pyright: ignore[reportAttributeAccessIssue]
        return
    with suppress(RuntimeError):  # JAX has started: as_devices reports how many devices exist
        jax.config.update("jax_num_cpu_devices", cores() if devices == "all" else devices)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_devices(devices: Any) -> int:
    """Check ``Fit(devices=...)``: a number of devices of this process, or "all".

    Returns:
        The number of devices of this process.

    Raises:
        ValueError: The value is invalid, or there are fewer devices.
    """
    if devices != "all" and (type(devices) is not int or devices < 1):
        raise ValueError(f"Fit(devices={devices!r}): expected a whole number, 1 or more, or 'all'")
    if devices == 1 and processes.count() == 1:
        return 1
    # Counting devices also starts JAX, which waits for all processes: it must happen now, in every process.
    start(devices)
    there, kind = jax.local_device_count(), jax.default_backend()
    if devices == "all":
        return there
    if devices > there:
        cpu = f", or set jax_num_cpu_devices={devices} before JAX starts" if kind == "cpu" else ""
        own = "" if processes.count() == 1 else " in this process"
        raise ValueError(f"Fit(devices={devices}): JAX has {there} on {kind}{own}; ask for at most {there}{cpu}")
    return devices


class Devices:
    """Places the values, batches and metrics of a program on ``own`` devices of each process, ``count`` in total.

    The sequences of a batch are split over devices. Each device runs the step on its share, with all parameters and
    the whole optimizer state. Gradients, weights and metrics are summed over devices in one all-reduce per update.

    With several seeds (``seeds``), the seeds are split instead. Each device trains its own seeds on the whole batch,
    and nothing is communicated.

    With several processes, each process supplies only the share of a batch that its own devices use.
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
        """How the leaves of a value are split, by name. Other values are split by seed, or replicated for one seed."""
        if self.several:
            each = [jax.local_devices(process_index=process)[:own] for process in range(self._processes)]
            for process, its in enumerate(each):
                if len(its) < own:
                    raise ValueError(
                        f"Fit(devices={own}): process {process} has {len(its)}; give all processes the same devices"
                    )
            # Automatic axes: brainstate's loops and vmap fail with explicit axes, which are JAX's default.
            self._mesh = Mesh(np.array(each).reshape(-1), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def _asked(self) -> str:
        """The option that requested this number of devices, for messages."""
        own = f"Fit(devices={self.count // self._processes})"
        return own if self._processes == 1 else f"{own} in {self._processes} processes"

    # ----------------------------------------------------------------------------------------------- the batch

    def divides(self, module: Module, batch: Any) -> bool:
        """Return True if a batch of these shapes can be split over the devices."""
        if not self.splits_batch:
            return True
        key = kind_of(batch)
        if key not in self._divides:
            self._divides[key] = _phases(module, batch)[0].sizes[2] % self.count == 0
        return self._divides[key]

    @contextmanager
    def only_one(self, alone: bool) -> Iterator[None]:
        """Context in which programs are made for a single device, if ``alone`` is True."""
        before = self.several, self.splits_batch
        if alone:
            self.several = self.splits_batch = False
        try:
            yield
        finally:
            self.several, self.splits_batch = before

    def share(self, module: Module, batch: Any, number: int = 0) -> Any:
        """The share of a batch that device ``number`` receives."""
        return batch if not self.splits_batch else self._share(batch, self._layout(module, batch), number, self.count)

    def arrive(self, module: Module, batches: list[Any], stack: Callable[[list[Any]], Any]) -> Any:
        """Stack batches for a program.

        With several processes, the result consists of global arrays of which each process holds its own share.
        """
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
        """How each array of a batch is split.

        Arrays whose axis 1 has the batch size are split along that axis, vectors ``(B,)`` along axis 0.
        ``Module.phases`` of a share must equal the share of ``Module.phases`` of the whole batch; otherwise the result
        could be wrong.

        Raises:
            ValueError: The sequences do not divide evenly, or ``Module.phases`` of a share is not that share of the
                whole.
        """
        key = kind_of(batch)
        if key not in self._layouts:
            self._layouts[key] = self._new_layout(module, batch)
        return self._layouts[key]

    def _new_layout(self, module: Module, batch: Any) -> Any:
        whole = _phases(module, batch)[0]
        sequences = whole.sizes[2]
        if sequences % self.count:
            raise ValueError(
                f"{self._asked}: a batch of {sequences} sequences does not divide over {self.count} devices; "
                f"choose a batch size that is a multiple of {self.count}"
            )

        def spec(leaf: Any, vectors: bool) -> P:
            shape = np.shape(leaf)
            if len(shape) >= 2 and shape[1] == sequences:
                return P(None, AXIS)
            return P(AXIS) if vectors and shape == (sequences,) else P()

        reasons = []
        for vectors in (True, False):  # a vector may hold one entry per sequence, or per time step
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
        split: Any = P(None, AXIS)
        shared = whole.weights is not None and np.ndim(whole.weights) == 1
        expected = Phases(split, split, split, P() if shared else split, split, split)
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
        """Values of the learner's carried States for the whole batch; records along which axis each is split.

        The split axis is the one in which the shapes for a share and for the whole batch differ.

        Args:
            own: The States as bound to a share of the batch.
            whole: The same States as bound to the whole batch.
            what: Name of the strategy, for messages.

        Raises:
            ValueError: A State is shared by all sequences of a device, so the devices would diverge.
        """
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
        """Put values (or a root key) on the devices, as the program expects them."""
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
        held = np.asarray(processes.allgather(leaf))  # every process has the whole array: no communication needed
        return jax.make_array_from_callback(held.shape, sharding, lambda place: held[place])

    def alone(self, values: Any) -> Any:
        """The values on the first device: its own view of them, or with several seeds all seeds."""
        if not self.several:
            return values
        if self._seeds:
            return jax.device_put(values, self._mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), values)

    def notes(self, before: int) -> list[str]:
        """Report notes for resuming a run that used ``before`` devices in total."""
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

        On one device the function is lowered without a mesh. A mesh of one device is as fast, but its numbers differ
        in the last bits from those of programs without a mesh, so runs could not continue bit for bit.

        Args:
            function: Returns metrics, or ``(values, metrics)`` if ``stacked`` is given.
            values: Program values.
            root: Root key, or one per seed.
            numbers: Scalar arguments, replicated.
            batch: A batch on the host, without the stacking axis.
            module: The module, whose ``phases`` determines how the batch is split.
            stacked: Number of batches on a leading axis; None: one batch without that axis.
            donate: Donate ``values``.
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
        """Mesh axes under which a step is traced, or None."""
        return [(AXIS, self.count)] if self.splits_batch else None

    def total(self, sums: Any, kept: Any) -> tuple[Any, Any]:
        """Reduce over devices, in one all-reduce of one vector. Called while tracing.

        Args:
            sums: Leaves that are summed.
            kept: Leaves that are averaged; integer leaves take the first device's values.
        """
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
        """Total weight over all devices, if it is static."""
        return weight * self.count if self.splits_batch else weight

    def fold(self, key: jax.Array) -> jax.Array:
        """Root key of this device; unchanged unless the batch is split. Called while tracing."""
        return fold_in(key, jax.lax.axis_index(AXIS)) if self.splits_batch else key

    @contextmanager
    def own_random(self, states: Iterable[State]) -> Iterator[None]:
        """Give the model's random States a different key on each device while tracing, and equal keys afterwards."""
        held = [(s, s.value) for s in states if isinstance(s, brainstate.random.RandomState)] if self.axis_env else []
        for state, key in held:
            state.value = self.fold(key)
        yield
        for state, key in held:
            state.value = fold_in(key, self.count)


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)


def _phases(module: Module, batch: Any) -> tuple[Phases, bool]:
    """Phases of a batch under a fixed key, and whether ``Module.phases`` drew random numbers."""
    random, before = brainstate.random.DEFAULT, brainstate.random.DEFAULT.value
    try:
        random.value = key = jax.random.key(0)
        return phases_of(module, batch), random.value is not key
    finally:
        random.value = before


def _reals(leaf: Any) -> list[Any]:
    """Split a leaf into real arrays: a complex one into two parts, an integer one into 16-bit parts.

    Floats hold 16-bit parts exactly.
    """
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return [jnp.real(leaf), jnp.imag(leaf)]
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return [leaf]
    if leaf.dtype.itemsize > 4:
        return [(leaf >> shift & 0xFFFF).astype(jnp.float32) for shift in (0, 16, 32, 48)]
    wide = leaf.astype(jnp.uint32)
    return [(wide & 0xFFFF).astype(jnp.float32), (wide >> 16).astype(jnp.float32)]


def _from_reals(leaf: Any, pieces: Iterator[Any]) -> Any:
    """Inverse of ``_reals``; takes its parts from the iterator."""
    count = len(jax.eval_shape(_reals, leaf))
    parts = [next(pieces).reshape(leaf.shape) for _ in range(count)]
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jax.lax.complex(*parts).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return parts[0].astype(leaf.dtype)
    kind = leaf.dtype if leaf.dtype.itemsize > 4 else jnp.uint32
    halves = [part.astype(kind) << 16 * i for i, part in enumerate(parts)]
    return jnp.stack(halves).sum(0, dtype=kind).astype(leaf.dtype)
