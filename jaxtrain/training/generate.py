"""Generated sequences: the program of a prompt and of what follows it."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from ..callbacks.arguments import COUNT, expect, is_count
from ..core.arrays import ArrayBatch
from ..core.snapshots import snapshot
from ..core.state import fold_in
from ..engine.seeds import is_seed
from ..engine.steps import GENERATE
from ..errors import DataError
from ..strategies.generation import generate
from .reader import What


def generating(steps: int, sample: Callable[[Any, Any], Any] | None, seed: int | None) -> What:
    """What is read to generate ``steps`` inputs.

    Raises:
        ValueError: ``steps`` is not a whole number, 1 or more, or ``seed`` is no seed.
        TypeError: ``sample`` is not a function of an output and a key.
    """
    expect(is_count(steps), "Fit.generate", "steps", steps, COUNT)
    expect(seed is None or is_seed(seed), "Fit.generate", "seed", seed, "a whole number from 0 to 2**32 - 1")
    if not (sample is None or callable(sample)):
        raise TypeError(f"Fit.generate(sample={sample!r}): expected a function sample(output, key)")
    if isinstance(sample, FunctionType):
        try:
            inspect.signature(sample).bind(None, None)
        except TypeError as error:
            raise TypeError(f"Fit.generate: expected a function sample(output, key); got one with {error}") from None
    chosen = sample or (lambda output, key: output)

    def compute(learner: Any, phases: Any, root: Any, index: Any) -> Any:
        return generate(learner, phases, steps, chosen, fold_in(root, GENERATE, index))

    return What("predict", compute, ("generate", steps, None if sample is None else SameFunction(sample)))


def unpadded(batch: Any) -> Any:
    """The batch, unless its sequences differ in length: what follows padding does not continue a sequence."""
    if isinstance(batch, ArrayBatch) and batch.ragged:
        raise DataError("Fit.generate: the prompts differ in length; give prompts of one length in each call")
    return batch


class SameFunction:
    """Equals another wrapper if both functions have the same code, and all values that the code names are unchanged.

    So a ``lambda`` that is evaluated again is the same function.
    """

    def __init__(self, function: Callable):
        self._function = function  # keeps alive what is compared by identity
        if isinstance(function, FunctionType):
            names = _global_names(function.__code__) & function.__globals__.keys()
            held = [cell.cell_contents for cell in function.__closure__ or ()]
            held += [function.__globals__[name] for name in sorted(names)]
            self._code, self._held = function.__code__, snapshot([held, function.__defaults__, function.__kwdefaults__])
        else:
            self._code, self._held = type(function), snapshot(function)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameFunction) and (self._code, self._held) == (other._code, other._held)

    def __hash__(self) -> int:
        return hash(self._code)


def _global_names(code: CodeType) -> set[str]:
    """The global names that a function reads, and the functions in it."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return own.union(*(_global_names(const) for const in code.co_consts if isinstance(const, CodeType)))
