"""Seeds trained side by side: lanes of one program, each with parameters, optimizer and random numbers of its own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import LANES, Mean, Metrics, is_rate
from ..core.state import is_key, stack

LIVE = "lanes/live"
"""Among a program's values: whether each lane goes on, ``(S,)``."""


def as_seeds(seeds: Any, first: int) -> tuple[int, ...] | None:
    """``Fit(seeds=...)``: how many, counted from ``first``, or a list of them. Raises ValueError for anything else."""
    if seeds is None:
        return None
    counted = type(seeds) is int and 1 <= seeds <= 2**32 - first
    each = tuple(range(first, first + seeds) if counted else seeds if isinstance(seeds, list | tuple | range) else ())
    if not each or not all(map(is_seed, each)) or len(set(each)) < len(each):
        raise ValueError(
            f"Fit(seeds={seeds!r}): expected how many, counted from seed={first}, or a list of different whole "
            "numbers, each from 0 to 2**32 - 1"
        )
    if not counted and first != 0:
        raise ValueError(f"Fit(seed={first}, seeds={seeds!r}): a list says all the seeds; leave seed out")
    return each


def is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _text(step: Any) -> str:
    return re.sub(r"0x[0-9a-f]+", "", str(step.jaxpr))  # addresses of Python's functions


def _constants(step: Any) -> list[bytes]:
    """The arrays that a closed jaxpr, and those inside it, have as constants."""
    found = [_bytes(constant) for constant in getattr(step, "consts", ())]
    for equation in getattr(step, "jaxpr", step).eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(value, "eqns"):
                found += _constants(value)
    return found


def _bytes(constant: Any) -> bytes:
    array = np.asarray(jax.random.key_data(constant) if is_key(constant) else constant)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


class Lanes:
    """What the values, steps and metrics of a program become where it trains S seeds.

    Every leaf of ``values`` has an axis of lanes first. All lanes see the same batch. Metrics have lanes on their last
    axis until ``merged`` makes one number of them.

    Where a device does many small products at once, lanes are one more axis of each (``vmap``); on CPU, whose cores one
    lane's products fill, they follow one another within the program: benchmarks/seeds.py measures both.
    """

    def __init__(self, seeds: tuple[int, ...]):
        self.seeds = seeds
        self.one_by_one = jax.default_backend() == "cpu"

    def root(self) -> jax.Array:
        return stack([jax.random.key(seed) for seed in self.seeds])

    def stacked(self, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One value a seed -> the values of a program."""
        return {**stack(list(values)), LIVE: jnp.ones(len(self.seeds), bool)}

    def require_one_step(self, steps: Sequence[Any], name: str) -> None:
        """``steps``: of what was built under each seed, its time steps as a closed jaxpr. Raise ValueError where they
        differ in more than the values of States."""
        for seed, step in zip(self.seeds, steps, strict=True):
            if _text(step) != _text(steps[0]) or _constants(step) != _constants(steps[0]):
                raise ValueError(
                    f"Fit(seeds=...): what {name}.build makes under seed {seed} differs from that of seed "
                    f"{self.seeds[0]} in more than the values of the model's States: something drawn at random, as a "
                    "mask, is a plain attribute. Make it a brainstate.State of the model, or train one seed a run"
                )

    def map(self, step: Callable) -> Callable:
        """Of ``step(values, root, index, batch)``: the step of all lanes."""
        if self.one_by_one:
            return lambda values, root, *args: jax.lax.map(lambda lane: step(*lane, *args), (values, root))
        mapped = jax.vmap(step, in_axes=(0, 0, None, None))

        def quietly(*args):
            with warnings.catch_warnings():
                # braintrace warns for those who compile its graph of such a program: ours was compiled before.
                warnings.filterwarnings("ignore", "ETP primitive .* was decomposed")
                return mapped(*args)

        return quietly

    def map_live(self, read: Callable) -> Callable:
        """The same of a step that returns metrics alone; those of a frozen lane weigh nothing."""

        def live(values, *args):
            return jax.tree.map(lambda leaf: jnp.where(values[LIVE], leaf, 0), read(values, *args))

        return self.map(live)

    def first(self, read: Callable) -> Callable:
        """The same step for one lane, the first that is not frozen."""

        def one(values, root, *args):
            lane = jnp.argmax(values[LIVE])
            return read(self.lane(values, lane), root[lane], *args)

        return one

    def lane(self, values: dict[str, Any], lane: Any) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: leaf[lane], values)

    def each(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        return [self.lane(values, lane) for lane in range(len(self.seeds))]

    def first_live(self, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Seed and values of the first lane that goes on."""
        lane = int(np.argmax(np.asarray(values[LIVE])))
        return self.seeds[lane], self.lane(values, lane)

    def frozen(self, values: dict[str, Any]) -> list[int]:
        """The seeds of the lanes that go on no more."""
        return [seed for seed, live in zip(self.seeds, np.asarray(values[LIVE]), strict=True) if not live]

    def merged(self, means: Metrics) -> Metrics:
        """Sums over lanes, and under ``lanes/`` each lane by itself. Lanes that are not frozen weigh alike, so the
        quotient of the sums is the mean over them."""
        total = {name: Mean(mean.num.sum(-1), mean.weight.sum(-1)) for name, mean in means.items()}
        return {**total, **{f"{LANES}{name}": mean for name, mean in means.items() if not is_rate(name)}}
