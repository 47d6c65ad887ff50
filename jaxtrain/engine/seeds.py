"""Training several seeds side by side in one program, each with its own parameters, optimizer and random numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import SEEDS, Mean, OfSeeds, Parts, is_rate
from ..core.state import is_key, stack

LIVE = "seeds/live"
"""Name of the program value ``(S,)`` that is True for each seed that is still training."""


def as_seeds(seeds: Any, first: int) -> tuple[int, ...] | None:
    """Check ``Fit(seeds=...)``.

    Args:
        seeds: A number of seeds, counted from ``first``, or a list of seeds, or None.
        first: ``Fit(seed=...)``, the first seed if ``seeds`` is a number.

    Returns:
        The seeds, or None for a run of one seed.

    Raises:
        ValueError: ``seeds`` is anything else.
    """
    if seeds is None:
        return None
    counted = type(seeds) is int and 1 <= seeds <= 2**32 - first
    each = tuple(range(first, first + seeds) if counted else seeds if isinstance(seeds, list | tuple | range) else ())
    if not each or not all(map(is_seed, each)) or len(set(each)) < len(each):
        raise ValueError(
            f"Fit(seeds={seeds!r}): expected the number of seeds, counted from seed={first}, or a list of different "
            "whole numbers, each from 0 to 2**32 - 1"
        )
    if not counted and first != 0:
        raise ValueError(f"Fit(seed={first}, seeds={seeds!r}): the list contains all seeds; do not also pass seed")
    return each


def is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _text(step: Any) -> str:
    """The jaxpr as text, for comparison."""
    return re.sub(r"0x[0-9a-f]+", "", str(step.jaxpr))  # without addresses of Python functions


def _constants(step: Any) -> list[bytes]:
    """Bytes of all array constants in a closed jaxpr and the jaxprs inside it."""
    found = [_bytes(constant) for constant in getattr(step, "consts", ())]
    for equation in getattr(step, "jaxpr", step).eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(value, "eqns"):
                found += _constants(value)
    return found


def _bytes(constant: Any) -> bytes:
    array = np.asarray(jax.random.key_data(constant) if is_key(constant) else constant)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


def require_one_step(seeds: Sequence[int], steps: Sequence[Any], module: str) -> None:
    """Check that all seeds have the same traced time step.

    Args:
        seeds: The seeds.
        steps: The closed jaxpr of the time steps of each seed's module.
        module: Name of the module's class, for the message.

    Raises:
        ValueError: The jaxprs differ in more than the values of States.
    """
    for seed, step in zip(seeds, steps, strict=True):
        if _text(step) != _text(steps[0]) or _constants(step) != _constants(steps[0]):
            raise ValueError(
                f"Fit(seeds=...): the model that {module}.build returns under seed {seed} differs from that of seed "
                f"{seeds[0]} in more than the values of the model's States: a plain attribute holds random numbers, "
                "for example a mask. Make it a brainstate.State of the model, or train one seed per run"
            )


class SeedAxis:
    """Maps the values, steps and metrics of a program over S seeds.

    Every leaf of ``values`` has a leading axis of size S. All seeds see the same batch. Metrics have the seed axis
    last until ``merged`` reduces it.

    On accelerators, which do many small products at once, the step is vectorised over seeds (``vmap``). On CPU,
    where the products of one seed already use all cores, seeds run one after another within the program.
    benchmarks/seeds.py measures both.
    """

    def __init__(self, seeds: tuple[int, ...]):
        self.seeds = seeds
        self.one_by_one = jax.default_backend() == "cpu"

    def root(self) -> jax.Array:
        return stack([jax.random.key(seed) for seed in self.seeds])

    def stacked(self, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack the values of each seed into the values of a program."""
        return {**stack(list(values)), LIVE: jnp.ones(len(self.seeds), bool)}

    def map(self, step: Callable) -> Callable:
        """Map ``step(values, root, index, batch)`` over all seeds."""
        if self.one_by_one:
            return lambda values, root, *args: jax.lax.map(lambda seed: step(*seed, *args), (values, root))
        mapped = jax.vmap(step, in_axes=(0, 0, None, None))

        def quietly(*args):
            with warnings.catch_warnings():
                # braintrace warns about compiling its graph from such a program; ours was compiled before.
                warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
                return mapped(*args)

        return quietly

    def map_live(self, read: Callable) -> Callable:
        """Map a step that returns only metrics; metrics of frozen seeds get weight 0."""

        def live(values, *args):
            return jax.tree.map(lambda leaf: jnp.where(values[LIVE], leaf, 0), read(values, *args))

        return self.map(live)

    def first(self, read: Callable) -> Callable:
        """Run a step for one seed only: the first that is not frozen."""

        def one(values, root, *args):
            index = jnp.argmax(values[LIVE])
            return read(self.select(values, index), root[index], *args)

        return one

    def select(self, values: Any, index: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], values)

    def each(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        return [self.select(values, index) for index in range(len(self.seeds))]

    def first_live(self, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Seed and values of the first seed that is not frozen."""
        index = int(np.argmax(np.asarray(values[LIVE])))
        return self.seeds[index], self.select(values, index)

    def frozen(self, values: dict[str, Any]) -> list[int]:
        """The frozen seeds."""
        return [seed for seed, live in zip(self.seeds, np.asarray(values[LIVE]), strict=True) if not live]

    def merged(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Sum metrics over seeds, and add each seed's own under ``seeds/``.

        All seeds that are not frozen have equal weight, so the quotient of the sums is the mean over them. ``Parts``
        are only returned for each seed, because their mean over seeds is that of the finished metrics.
        """
        parts = {name: found for name, found in metrics.items() if isinstance(found, Parts)}
        means = {name: mean for name, mean in metrics.items() if name not in parts}
        total = {name: Mean(mean.num.sum(-1), mean.weight.sum(-1)) for name, mean in means.items()}
        own = {name: OfSeeds(self.select(found, i) for i in range(len(self.seeds))) for name, found in parts.items()}
        rated = {name: mean for name, mean in means.items() if not is_rate(name)}
        return {**total, **{f"{SEEDS}{name}": found for name, found in {**rated, **own}.items()}}
