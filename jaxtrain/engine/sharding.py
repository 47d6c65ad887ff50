"""The devices of a program: how many, where its values and batches are placed, and programs that run on all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.module import Module
from ..core.state import is_key
from ..distributed import processes
from .batch_split import BatchSplit, is_spec, take_share
from .collectives import AXIS, Collectives


def start(devices: Any) -> None:
    """Set the number of CPU devices, which JAX reads only when it starts; "all" and "auto": one per core.

    Does nothing for one device, or if the environment or the program has already set a number.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices == 1 or forced or jax.config.jax_num_cpu_devices >= 0:  # pyright: ignore[reportAttributeAccessIssue]
        return
    with suppress(RuntimeError):  # JAX has started: as_devices reports how many devices exist
        jax.config.update("jax_num_cpu_devices", devices if type(devices) is int else cores())


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_devices(devices: Any) -> int | Literal["auto"]:
    """Check ``Fit(devices=...)``: a number of devices of this process, "all" or "auto".

    Returns:
        The number of devices of this process, or "auto".

    Raises:
        ValueError: The value is invalid, or there are fewer devices.
    """
    if devices not in ("all", "auto") and (type(devices) is not int or devices < 1):
        raise ValueError(f"Fit(devices={devices!r}): expected a whole number, 1 or more, 'all' or 'auto'")
    if devices == 1 and processes.count() == 1:
        return 1
    # Counting devices also starts JAX, which waits for all processes: it must happen now, in every process.
    start(devices)
    there, kind = jax.local_device_count(), jax.default_backend()
    if type(devices) is not int:
        return there if devices == "all" else "auto"
    if devices > there:
        cpu = f", or set jax_num_cpu_devices={devices} before JAX starts" if kind == "cpu" else ""
        own = "" if processes.count() == 1 else " in this process"
        raise ValueError(f"Fit(devices={devices}): JAX has {there} on {kind}{own}; ask for at most {there}{cpu}")
    return devices


def make_devices(module: Module, own: int, seeds: int | None) -> Devices:
    """Take the first ``own`` devices of each process.

    Args:
        module: The module whose batches are split.
        own: Number of devices of each process.
        seeds: Number of seeds that are trained side by side, or None. Seeds are split over devices, not batches.

    Raises:
        ValueError: A process has fewer devices, seeds do not divide over them, or several processes train several
            seeds.
    """
    in_all = processes.count()
    count = own * in_all
    if seeds is not None and in_all > 1:
        raise ValueError(
            f"Fit(seeds=...) in {in_all} processes: seeds exchange nothing, so several processes do not help; start "
            "separate runs, each with some of the seeds"
        )
    if seeds is not None and seeds % count:
        raise ValueError(
            f"Fit(devices={count}): {seeds} seeds do not divide over {count} devices; choose a multiple of {count}"
        )
    option = f"Fit(devices={own})" + (f" in {in_all} processes" if in_all > 1 else "")
    split = BatchSplit(module, 1 if seeds is not None else count, option)
    if count == 1:
        return Devices(None, split, seeds is not None)
    local = [jax.local_devices(process_index=process)[:own] for process in range(in_all)]
    for process, devices in enumerate(local):
        if len(devices) < own:
            raise ValueError(
                f"Fit(devices={own}): process {process} has {len(devices)}; give all processes the same devices"
            )
    # Automatic axes: brainstate's loops and vmap fail with explicit axes, which are JAX's default.
    mesh = Mesh(np.array(local).reshape(-1), (AXIS,), axis_types=(AxisType.Auto,))
    return Devices(mesh, split, seeds is not None)


@dataclass(frozen=True)
class Devices:
    """Places the values, batches and metrics of a program on the devices of all processes.

    The sequences of a batch are split over devices. Each device runs the step on its share, with all parameters and
    the whole optimizer state. Gradients, weights and metrics are summed over devices in one all-reduce per update.

    With several seeds, the seeds are split instead. Each device trains its own seeds on the whole batch, and nothing
    is communicated.

    With several processes, each process supplies only the share of a batch that its own devices use.
    """

    mesh: Mesh | None
    """The devices; None for a single device, whose programs have no mesh."""
    split: BatchSplit
    by_seed: bool
    """Whether values have a leading axis of seeds, which is split over devices."""
    specs: dict[str, Any] = field(default_factory=dict)
    """How values are split, by name. Other values are split by seed, or replicated for one seed."""

    @property
    def count(self) -> int:
        """Number of devices of all processes."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return processes.count()

    @property
    def own(self) -> int:
        """Number of devices of this process."""
        return self.count // processes.count() if self.mesh is not None else 1

    @property
    def collectives(self) -> Collectives:
        return Collectives(self.split.count)

    def single_device(self) -> Devices:
        """The first device alone, for programs that read a whole batch there."""
        return Devices(None, replace(self.split, count=1), self.by_seed)

    def to_global_batch(self, batches: list[Any], stack: Callable[[list[Any]], Any]) -> Any:
        """Stack batches for a program.

        With several processes, the result consists of global arrays of which each process holds its own share.
        """
        if self.split.count == 1 or processes.count() == 1:
            return stack(batches)
        specs = self.split.specs(batches[0])
        own = stack([take_share(batch, specs, processes.index(), processes.count()) for batch in batches])

        def one(spec: P, leaf: Any, local: Any) -> Any:
            lead = np.shape(local)[: np.ndim(local) - np.ndim(leaf)]
            sharding = self._sharding(P(*(None for _ in lead), *spec))
            return jax.make_array_from_process_local_data(sharding, np.asarray(local), (*lead, *np.shape(leaf)))

        return jax.tree.map(one, specs, batches[0], own, is_leaf=is_spec)

    @property
    def _default(self) -> P:
        return P(AXIS) if self.by_seed else P()

    def _specs_of(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self.specs.get(name, self._default) for name in values}

    def place(self, values: Any) -> Any:
        """Put values (or a root key) on the devices, as the program expects them."""
        if self.mesh is None:
            return values
        specs = self._specs_of(values) if isinstance(values, dict) else self._default
        put = lambda spec, tree: jax.tree.map(lambda leaf: self._put(leaf, spec), tree)  # noqa: E731
        return jax.tree.map(put, specs, values, is_leaf=is_spec)

    def _sharding(self, spec: P) -> Any:
        return None if self.mesh is None else NamedSharding(self.mesh, spec)

    def _put(self, leaf: Any, spec: P) -> Any:
        sharding = self._sharding(spec)
        if processes.count() == 1:
            return jax.device_put(leaf, sharding)
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        if is_key(leaf):
            return jax.random.wrap_key_data(self._put(jax.random.key_data(leaf), spec), impl=jax.random.key_impl(leaf))
        held = np.asarray(processes.allgather(leaf))  # every process has the whole array: no communication needed
        return jax.make_array_from_callback(held.shape, sharding, lambda place: held[place])

    def on_first_device(self, values: Any) -> Any:
        """The values on the first device: its own view of them, or with several seeds all seeds."""
        if self.mesh is None:
            return values
        if self.by_seed:
            return jax.device_put(values, self.mesh.devices.flat[0])
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), values)

    def notes(self, before: int) -> list[str]:
        """Report notes for resuming a run that used ``before`` devices in total."""
        if before == self.count:
            return []
        return [
            f"devices: the run used {before} before and now uses {self.count}; from here on it equals an uninterrupted "
            "run to rounding, not bit for bit"
        ]

    def lower(self, function: Callable, values: Any, root: Any, numbers: tuple, batch: Any, *,
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
            stacked: Number of batches on a leading axis; None: one batch without that axis.
            donate: Donate ``values``.
        """
        lead = () if stacked is None else (None,)
        specs = jax.tree.map(lambda spec: P(*lead, *spec), self.split.specs(batch), is_leaf=is_spec)

        def abstract(spec: P, leaf: Any) -> Any:
            shape = np.shape(leaf) if stacked is None else (stacked, *np.shape(leaf))
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=self._sharding(spec))

        shapes = jax.tree.map(abstract, specs, batch, is_leaf=is_spec)
        if self.mesh is not None:
            metrics = P(*lead, AXIS) if self.by_seed else P()
            given = (self._specs_of(values), self._default, *(P() for _ in numbers), specs)
            out = metrics if stacked is None else (self._specs_of(values), metrics)
            function = jax.shard_map(function, mesh=self.mesh, in_specs=given, out_specs=out, check_vma=False)
        return jax.jit(function, donate_argnums=(0,) if donate else ()).lower(values, root, *numbers, shapes)
