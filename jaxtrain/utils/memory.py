"""Memory that a program can still allocate, and the error if it needs more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InsufficientMemory

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
FILES = {  # of a control group: limit, use, and the entry of memory.stat that counts file pages the kernel can drop
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By controller: version 2 of control groups has none."""


def available() -> int | None:
    """Bytes that this process can still allocate on one device, or None if unknown.

    On CPU, this is what the machine has available, swap included, or what the limits of its control groups leave if
    that is less. All devices of a CPU share it.
    """
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    return min([*_of_machine(), *_of_control_groups()], default=None)


def shared_by_devices() -> bool:
    """Whether the devices of this process allocate from the same memory."""
    import jax

    return jax.default_backend() == "cpu"


def require(needed: int, what: str, advice: str, *, held: int = 0) -> None:
    """Raise InsufficientMemory if less is available than needed.

    Args:
        needed: Bytes that will be in use at once.
        what: Subject of the message, what needs them.
        advice: What to do about it.
        held: Bytes of ``needed`` that are already allocated.
    """
    free = available()
    if free is not None and needed > free + held:
        place = "machine" if shared_by_devices() else "device"
        raise InsufficientMemory(
            f"{what} needs {shown(needed)} at once, and this {place} has {shown(free + held)}: {advice}",
            needed,
            free + held,
        )


def shown(n: float) -> str:
    """A number of bytes for people: ``"1.5 MiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


def allocated(values: Any) -> int:
    """Bytes of arrays in the memory that a program allocates from: all devices of a CPU, or one other device."""
    import jax

    shards = [shard for leaf in jax.tree.leaves(values) for shard in leaf.addressable_shards]
    first = jax.local_devices()[0]
    return sum(shard.data.nbytes for shard in shards if shared_by_devices() or shard.device == first)


def _of_machine() -> Iterator[int]:
    with suppress(OSError):  # not Linux
        text = (PROC / "meminfo").read_text()
        sizes = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s*(\d+) kB", text, re.MULTILINE)}
        if "MemAvailable" in sizes:
            yield sizes["MemAvailable"] + sizes.get("SwapFree", 0)


def _of_control_groups() -> Iterator[int]:
    """What the limit of each control group leaves; those of a parent apply to its children, too."""
    with suppress(OSError):  # not Linux
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controller, path = line.split(":", 2)
            if controller not in FILES:
                continue
            limit, used, droppable = FILES[controller]
            # In a container the path may be that of the host, of which only the parent at the root exists.
            for group in [Path(path), *Path(path).parents]:
                place = CGROUPS / controller / group.relative_to("/")
                with suppress(OSError, ValueError):  # no such file, or "max": no limit
                    left = int((place / limit).read_text()) - int((place / used).read_text())
                    stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                    yield left + int(stat.get(droppable, 0))
