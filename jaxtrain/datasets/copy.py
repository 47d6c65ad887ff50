"""The copying task: repeat some symbols after a long blank (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016)."""

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data.datamodule import DataModule

DEPTH = 10  # blank 0, symbols 1 to 8, trigger 9
TRIGGER = 9
SPLITS = ("train", "val", "test")


def as_integer(name: str, value: Any, least: int, task: str = "copying task") -> int:
    """Return ``value`` as an int. Raises ValueError if it is not an integer or is less than ``least``."""
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
    """Batches of the copying task. Each is a pure function of (seed, split, step).

    The inputs are `num_digits` random symbols 1..8, then `time_lag` blanks (0), then the trigger (9) `num_digits`
    times: `T = time_lag + 2 * num_digits` time steps. The targets are the symbols, for the last `num_digits` time
    steps. Batches may be read in any order, and there is no last one.

    >>> inputs, targets = CopyDataset(time_lag=3, num_digits=2, batch_size=4).batch(0)
    >>> inputs.shape, targets.shape, inputs[2:, 0].tolist()
    ((7, 4), (2, 4), [0, 0, 0, 9, 9])

    Args:
        time_lag: Number of blanks, in time steps.
        num_digits: Number of symbols.
        batch_size: Sequences per batch.
        seed: Seed of the data.
        split: "train", "val" or "test"; splits differ.
        length: Number of batches, which `len()` reports and after which iteration ends; `batch(step)` ignores it.

    Raises:
        ValueError: A size is not a positive integer (`time_lag` may be 0), the seed is negative, or the split is
            unknown.
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
        """Batch number `step`.

        Args:
            step: Number of the batch, starting at 0.

        Returns:
            Inputs (T, B) and targets (num_digits, B): int8 ids, time-major.

        Raises:
            ValueError: `step` is negative.
        """
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), as_integer("step", step, 0)))
        symbols = rng.integers(1, TRIGGER, (self.num_digits, self.batch_size), dtype=np.int8)
        inputs = np.zeros((self.time_lag + 2 * self.num_digits, self.batch_size), np.int8)
        inputs[: self.num_digits] = symbols
        inputs[-self.num_digits :] = TRIGGER
        return inputs, symbols

    def encode(self, ids: Any) -> Any:
        """Return the ids ``ids`` (B,) of one time step one-hot encoded, float32 (B, 10). Called while tracing."""
        return _one_hot(ids)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("copying task: a CopyDataset without length= is endless and has no len()")
        return self.length

    def __bool__(self) -> bool:
        return True  # not from __len__, which raises for endless data

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
    """A CopyDataset that reads its sizes from the data module's `task` for every batch."""

    def __init__(self, module: "CopyDataModule", split: str, length: int | None) -> None:
        sizes = _sizes(module.task)
        super().__init__(*sizes, module.batch_size, module.seed, split, length)
        self._module = module

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        self.time_lag, self.num_digits = _sizes(self._module.task)
        return super().batch(step)


class CopyDataModule(DataModule):
    """The copying task with endless train data and fixed batches for validation, test and prediction.

    `task` is {"time_lag", "num_digits"}. A curriculum may change it; all splits follow with their next batch.

    Args:
        time_lag: Number of blanks, in time steps.
        num_digits: Number of symbols.
        batch_size: Sequences per batch.
        seed: Seed of the data.
        val_batches: Number of validation batches.
        test_batches: Number of test batches, which are also those of prediction.

    Raises:
        ValueError: A size is not a positive integer (`time_lag` may be 0), or the seed is negative.

    >>> data = CopyDataModule(time_lag=20, num_digits=5, batch_size=8)
    >>> [part.shape for part in data.train_data().batch(0)]
    [(30, 8), (5, 8)]
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
        # The initial task: changes made by a curriculum do not make this different data.
        sizes = {name: getattr(self, name) for name in ("batch_size", "seed", "val_batches", "test_batches")}
        self._identity = {"class": type(self).__qualname__, **self.task, **sizes}

    def train_data(self) -> CopyDataset:
        return _TaskDataset(self, "train", None)

    def val_data(self) -> CopyDataset:
        return _TaskDataset(self, "val", self.val_batches)

    def test_data(self) -> CopyDataset:
        return _TaskDataset(self, "test", self.test_batches)

    def predict_data(self) -> CopyDataset:
        return self.test_data()

    def encode(self, x: Any, /) -> Any:
        """Return the ids ``x`` (B,) of one time step one-hot encoded, float32 (B, 10). Called while tracing."""
        return _one_hot(x)

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)
