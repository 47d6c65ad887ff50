"""The number of devices that ``devices="auto"`` stands for."""

from __future__ import annotations

import math
from typing import Any

import jax

from ..core.module import Module
from ..core.state import parameters
from ..distributed import processes
from .batch_split import BatchSplit
from .binding import environ
from .sharding import cores

LEAST_WORK = 1_000_000
"""Multiply-adds of a time step on one device below which another device does not pay (benchmarks/devices.py)."""


def choose(module: Module, example: Any, seeds: int | None) -> tuple[int, str]:
    """Choose one device per core if the sequences (or seeds) divide and the work of a time step is worth it.

    Args:
        module: The module, with its model built.
        example: A batch on the host, time-major.
        seeds: Number of seeds that are trained side by side, or None.

    Returns:
        The number of devices, and the reason in a few words.
    """
    kind = jax.default_backend()
    if kind != "cpu":
        return 1, f"one {kind}; --devices all uses each"
    if processes.count() > 1:
        return 1, "one per process"
    most = min(cores(), jax.local_device_count())
    if most == 1:
        return 1, "there is one"
    with environ(module, fit=True):
        sequences = BatchSplit(module, 1, "").sequences(example)
    parts, what = (sequences, "sequences") if seeds is None else (seeds, "seeds")
    work = work_of(module, sequences) * (seeds or 1)
    dividing = [count for count in range(1, most + 1) if parts % count == 0]
    count = max(count for count in dividing if count == 1 or work / count >= LEAST_WORK)
    if count == most:
        return count, "one per core"
    if count == dividing[-1]:
        return count, f"{parts} {what} do not divide over {most} cores"
    share = work / dividing[dividing.index(count) + 1]
    return count, (
        f"a share of {share:,.0f} multiply-adds per time step is too small; {LEAST_WORK:,} are worth a device"
    )


def work_of(module: Module, sequences: int) -> int:
    """Estimate of the multiply-adds of a time step: one per parameter and sequence."""
    values = [state.value for state in parameters(module.model).values()]
    return sequences * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(values))


def again(recorded: int) -> tuple[int, str]:
    """The number of devices with which an earlier part of the run was trained.

    Args:
        recorded: The number in config.json.

    Returns:
        The number of devices, and the reason in a few words.

    Raises:
        ValueError: JAX has fewer CPU devices.
    """
    there, kind = jax.local_device_count(), jax.default_backend()
    if recorded > there and kind == "cpu" and processes.count() == 1:
        raise ValueError(
            f"Fit(devices='auto'): the run was started on {recorded} devices and JAX has {there} on cpu; set "
            f"jax_num_cpu_devices={recorded} before JAX starts, or pass devices={there}"
        )
    return min(recorded, there), "as at the start of the run"
