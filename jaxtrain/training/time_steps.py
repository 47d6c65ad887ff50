"""Time steps that arrive one by one: how they become batches, and a stream that predicts and learns from them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..checkpoint.reading import Saved
from ..core.module import Phases
from ..core.state import flatten, unflatten
from ..data.batch import host
from ..engine.program import Program
from ..engine.steps import Packed

WAITING, HIDDEN = "online/waiting", "online/hidden/"
"""Names in a checkpoint of the time steps since the last update, and of the hidden states after them."""


class TimeSteps:
    """Makes batches of one time step of inputs, targets and resets that look like the example.

    Args:
        example: ``(x, target)`` or ``(x, target, reset)`` of one time step, all ``(B, ...)``; reset is a bool ``(B,)``.

    Raises:
        TypeError: The example is something else.
        ValueError: An array has no axis of sequences, or another number of them.
    """

    def __init__(self, example: Any):
        if not isinstance(example, tuple) or len(example) not in (2, 3) or any(part is None for part in example):
            raise TypeError(
                f"Fit.online: the example is {_kind(example)}; expected (x, target) of one time step, or (x, target, "
                "reset) if sequences will be reset: arrays (B, ...)"
            )
        arrays = host(tuple(example), "example", 0)
        self._parts = {name: _Like(array, name) for name, array in zip(("x", "target"), arrays, strict=False)}
        sizes = {shape[0] for part in self._parts.values() for shape, _ in part.leaves}
        if len(sizes) > 1:
            raise ValueError(f"Fit.online: arrays of the example have {sorted(sizes)} sequences; axis 0 is the batch")
        self.sequences, self.resets = sizes.pop(), len(example) == 3
        self._missing = self._parts["target"].zeros()
        self.example = self.batch(arrays[0], arrays[1], arrays[2] if self.resets else None)
        self.identity = {name: part.shapes for name, part in self._parts.items()} | {"resets": self.resets}

    def batch(self, x: Any, target: Any = None, reset: Any = None) -> Phases:
        """A batch of one time step, with weight 0 if there is no target."""
        inputs = self._parts["x"].convert(x)
        targets = self._missing if target is None else self._parts["target"].convert(target)
        weights = np.full(1, target is not None, np.float32)
        return Phases(None, inputs, targets, weights, self._reset(reset))

    def _reset(self, reset: Any) -> np.ndarray | None:
        if not self.resets:
            if reset is not None:
                raise ValueError(
                    "live.step(reset=...): the session was opened without resets: "
                    f"Fit.online(module, (x, target, numpy.zeros({self.sequences}, bool)))"
                )
            return None
        mask = np.zeros(self.sequences, bool) if reset is None else np.array(reset)
        if mask.dtype != np.bool_ or mask.shape != (self.sequences,):
            raise ValueError(
                f"live.step(reset=...): got {mask.dtype} of shape {mask.shape}; expected bool ({self.sequences},)"
            )
        return mask[None]


class _Like:
    """Tree, shapes and dtypes of the inputs or the targets of a time step."""

    def __init__(self, example: Any, name: str):
        leaves, self._tree = jax.tree.flatten(example)
        self.leaves, self._name = [(leaf.shape, leaf.dtype) for leaf in leaves], name
        self._single = jax.tree_util.treedef_is_leaf(self._tree)
        if not leaves or any(not shape or not shape[0] for shape, _ in self.leaves):
            raise ValueError(
                f"Fit.online: {name} of the example is {self.shapes}; expected (B, ...): of one sequence, (1, ...)"
            )

    @property
    def shapes(self) -> str:
        return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in self.leaves)

    def zeros(self) -> Any:
        return self._tree.unflatten([np.zeros((1, *shape), dtype) for shape, dtype in self.leaves])

    def convert(self, value: Any) -> Any:
        """A copy of the value of one time step, with a leading axis of time."""
        leaves, tree = ([value], self._tree) if self._single else jax.tree.flatten(value)
        if tree != self._tree:
            raise ValueError(f"live.step: {self._name} is a tree {tree}; expected {self._tree}, as in the example")
        return tree.unflatten([self._leaf(leaf, *like) for leaf, like in zip(leaves, self.leaves, strict=True)])

    def _leaf(self, leaf: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        array = np.asarray(leaf)
        if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
            raise ValueError(
                f"live.step: {self._name} is {array.dtype}{list(array.shape)}; expected {dtype}{list(shape)}, as in "
                "the example"
            )
        return np.array(array, dtype)[None]


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


class Stream:
    """A program that predicts each time step when it arrives, and learns from every ``every`` of them.

    The time steps since the last update wait, because the rule learns from all of an interval at once. Meanwhile,
    predictions advance a copy of the hidden states.

    Args:
        program: The program, for batches of ``every`` time steps.
        time_step: An example of a time step.
        every: Time steps per update.
        saved: The checkpoint whose values the program has, or None.
    """

    def __init__(self, program: Program, time_step: Phases, every: int, saved: Saved | None = None):
        self.program, self.every, self.steps = program, every, 0
        self._programs, self._example = program.stepping(time_step), time_step
        self._root = jax.random.key_data(program.root)
        self._waiting: list[Phases] = []
        self._hidden: dict[str, Any] | None = None
        """Hidden states after the time steps that wait, if there are any."""
        if saved is not None:
            self._load(saved)

    def advance(self, time_step: Phases) -> tuple[Any, Packed | None, Phases]:
        """Predict, and learn if an interval is complete.

        Returns:
            The outputs, on the device; what the train step returned, if there was one; and the batch of it.
        """
        program, batch, packed = self.program, time_step, None
        if self.every == 1:
            program.values, packed, y = self._programs.learn(program.values, self._root, self.steps, batch)
        else:
            self._hidden, y = self._predict(time_step)
            self._waiting.append(time_step)
            if len(self._waiting) == self.every:
                batch, number = self._batch(), self.steps // self.every
                program.values, packed, _ = self._programs.learn(program.values, self._root, number, batch)
                self._waiting, self._hidden = [], None
        self.steps += 1
        return y, packed, batch

    def predict(self, time_step: Phases) -> Any:
        """The outputs that this time step would have, on the device. Nothing advances."""
        return self._predict(time_step)[1]

    def _predict(self, time_step: Phases) -> tuple[dict[str, Any], Any]:
        values, programs = self.program.values, self._programs
        hidden = programs.hidden(values) if self._hidden is None else self._hidden
        return programs.predict(values, hidden, self._root, self.steps, time_step)

    def _batch(self) -> Phases:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *self._waiting)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flat arrays of the parameters, and of everything else that is needed to continue."""
        params, train = self.program.state()
        if self._hidden is None:
            return params, train
        hidden = {f"{HIDDEN}{name}": value for name, value in self._hidden.items()}
        return params, {**train, **flatten({WAITING: self._batch(), **hidden})}

    def _load(self, saved: Saved) -> None:
        self.steps = saved.step
        count = self.steps % self.every
        if not count:
            return
        values = self._programs.hidden(self.program.values)
        template = {WAITING: self._example, **{f"{HIDDEN}{name}": value for name, value in values.items()}}
        restored = unflatten(template, saved.train)
        waiting = jax.tree.map(np.asarray, restored.pop(WAITING))
        self._waiting = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], waiting) for i in range(count)]
        self._hidden = {name.removeprefix(HIDDEN): value for name, value in restored.items()}
