"""Compilation in a thread, while Python traces the next program."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .sharding import Devices


class Compilation:
    """A program that is being compiled.

    Args:
        lowered: The lowered program.
        check: Called with the compiled program before it is used; it may raise an error.
        result: Shapes of what the traced step returns.
    """

    def __init__(self, lowered: Any, check: Callable[[Any], None] | None = None, result: Any = None):
        self.result = result
        self._check, pool = check, ThreadPoolExecutor(1, "compile")
        self._compiling = pool.submit(lowered.compile)
        pool.shutdown(wait=False)  # the thread ends with the compilation

    @cached_property
    def program(self) -> Any:
        """The compiled program. Waits for it."""
        compiled = self._compiling.result()
        if self._check is not None:
            self._check(compiled)
        return compiled


@dataclass(frozen=True)
class Reading:
    """A program that reads the state and changes nothing, and the values that it reads."""

    compilation: Compilation
    devices: Devices
    values: Any
    root: Any

    def run(self, batch: Any, index: int) -> Any:
        """Read a batch. Random numbers derive from its number."""
        data = self.devices.to_global_batch([batch], lambda some: some[0])
        return self.compilation.program(self.values, self.root, np.int32(index), data)
