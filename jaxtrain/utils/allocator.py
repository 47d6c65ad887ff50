"""Keeps freed memory in the process. Recipes and commands do this; ``import jaxtrain`` changes nothing."""

from __future__ import annotations

import ctypes
import os
import sys

SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_TOP_PAD_": (-2, 1 << 26),
    # The heaps of other arenas have 64 MiB, and larger blocks are mapped whatever the threshold.
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""Environment variables of glibc, each with the parameter of ``mallopt`` that it sets, and a value (sizes in bytes)."""


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that is freed, for the next allocation.

    XLA allocates the temporary arrays of a program at every execution and frees them at its end. By default glibc
    returns large blocks to the kernel, which clears and maps every page again in the next execution.

    A parameter that the user has set in the environment keeps its value. With another C library, nothing happens.

    Returns:
        Whether a parameter was set.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    given = {name for name in SETTINGS if name in os.environ or f"malloc.{name[7:].strip('_').lower()}=" in tunables}
    accepted = [libc.mallopt(*SETTINGS[name]) == 1 for name in SETTINGS.keys() - given]
    return any(accepted)
