"""The copying task: repeat some symbols after a long blank (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016)."""

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data.iterator import DataModule

DEPTH = 10  # blank 0, symbols 1 to 8, trigger 9
TRIGGER = 9
SPLITS = ("train", "val", "test")


def as_integer(name: str, value: Any, least: int, task: str = "copying task") -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{task}: {name}={value!r} is not an integer; expected one >= {least}") from None
    if number < least:
        raise ValueError(f"{task}: {name}={value!r} is too small; expected an integer >= {least}")
    return number


def _one_hot(ids: Any) -> Any:
    import jax

    return jax.nn.one_hot(ids, DEPTH, dtype=np.float32)


class CopyDataset:
    """Batches of the copying task, each a pure function of (seed, split, step), in any order and without end.

    The inputs are `num_digits` random symbols 1..8, `time_lag` blanks (0), then `num_digits` times the trigger (9): in
    all `T = time_lag + 2 * num_digits` time steps. The target is the symbols, for the last `num_digits` time steps.
    `length` (batches) makes `len()` known and iteration finite; `batch(step)` goes on for ever.

    >>> inputs, targets = CopyDataset(time_lag=3, num_digits=2, batch_size=4).batch(0)
    >>> inputs.shape, targets.shape, inputs[2:, 0].tolist()
    ((7, 4), (2, 4), [0, 0, 0, 9, 9])

    Raises ValueError for a size that is not a positive integer, a negative seed, and an unknown split.
    """

    batch_first = False

    def __init__(
        self,
        time_lag: int = 50,
        num_digits: int = 10,
        batch_size: int = 64,
        seed: int = 0,
        split: str = "train",
        length: int | None = None,
    ) -> None:
        self.time_lag = as_integer("time_lag", time_lag, 0)
        self.num_digits = as_integer("num_digits", num_digits, 1)
        self.batch_size = as_integer("batch_size", batch_size, 1)
        self.seed = as_integer("seed", seed, 0)
        if split not in SPLITS:
            raise ValueError(f"copying task: split={split!r} is unknown; expected one of {', '.join(SPLITS)}")
        self.split = split
        self.length = None if length is None else as_integer("length", length, 1)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (T, B) and targets (num_digits, B): int8 ids, time-major. Raises ValueError for a negative step."""
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), as_integer("step", step, 0)))
        symbols = rng.integers(1, TRIGGER, (self.num_digits, self.batch_size), dtype=np.int8)
        inputs = np.zeros((self.time_lag + 2 * self.num_digits, self.batch_size), np.int8)
        inputs[: self.num_digits] = symbols
        inputs[-self.num_digits :] = TRIGGER
        return inputs, symbols

    def encode(self, ids: Any) -> Any:
        """Ids (B,) of one time step as one-hot float32 (B, 10); traced."""
        return _one_hot(ids)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("copying task: a CopyDataset without length= is endless and has no len()")
        return self.length

    def __bool__(self) -> bool:
        return True  # not asked of __len__, which an endless one refuses

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same batches as plain arrays, batch-major: x one-hot float32 (B, T, 10), y int32 (B, num_digits)."""
        step = 0
        while self.length is None or step < self.length:
            ids, symbols = self.batch(step)
            yield np.eye(DEPTH, dtype=np.float32)[ids.T], symbols.T.astype(np.int32)
            step += 1


def _sizes(task: dict[str, Any]) -> tuple[int, int]:
    if set(task) != {"time_lag", "num_digits"}:
        raise ValueError(f"copying task: task={task!r} is not understood; expected time_lag and num_digits")
    return as_integer("time_lag", task["time_lag"], 0), as_integer("num_digits", task["num_digits"], 1)


class _TaskDataset(CopyDataset):
    """A CopyDataset that reads its sizes from the module's `task` anew for every batch."""

    def __init__(self, module: "CopyDataModule", split: str, length: int | None) -> None:
        sizes = _sizes(module.task)
        super().__init__(*sizes, module.batch_size, module.seed, split, length)
        self._module = module

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        self.time_lag, self.num_digits = _sizes(self._module.task)
        return super().batch(step)


class CopyDataModule(DataModule):
    """The copying task: endless train data, and fixed batches of their own to validate, test and predict.

    `task` is {"time_lag", "num_digits"}: a curriculum changes it, and all splits follow with the next batch.

    Raises ValueError as CopyDataset does.
    """

    batch_first = False

    def __init__(
        self,
        time_lag: int = 50,
        num_digits: int = 10,
        batch_size: int = 64,
        seed: int = 0,
        val_batches: int = 8,
        test_batches: int = 32,
    ) -> None:
        super().__init__()
        task = {"time_lag": time_lag, "num_digits": num_digits}
        self.task = dict(zip(task, _sizes(task), strict=True))
        self.batch_size = as_integer("batch_size", batch_size, 1)
        self.seed = as_integer("seed", seed, 0)
        self.val_batches = as_integer("val_batches", val_batches, 1)
        self.test_batches = as_integer("test_batches", test_batches, 1)
        # As it was made: what a curriculum has changed since does not make it other data.
        self._identity = {
            "class": type(self).__qualname__,
            **self.task,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "val_batches": self.val_batches,
            "test_batches": self.test_batches,
        }

    def train_data(self) -> CopyDataset:
        return _TaskDataset(self, "train", None)

    def val_data(self) -> CopyDataset:
        return _TaskDataset(self, "val", self.val_batches)

    def test_data(self) -> CopyDataset:
        return _TaskDataset(self, "test", self.test_batches)

    def predict_data(self) -> CopyDataset:
        return self.test_data()

    def encode(self, x: Any) -> Any:
        """Ids (B,) of one time step as one-hot float32 (B, 10); traced."""
        return _one_hot(x)

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)
