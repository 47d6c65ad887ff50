"""The copying task in a few lengths: sequences are padded, so that a curriculum compiles few programs."""

from collections.abc import Sequence
from typing import Any

from ..core.module import Phases
from .copy import CopyDataModule, CopyDataset
from .sequences import fitting, pad


class _Padded:
    """Batches of a CopyDataset with padding in front, as ``Phases``."""

    def __init__(self, source: CopyDataset, module: "PaddedCopyDataModule"):
        self._source, self._module = source, module

    def batch(self, step: int) -> Phases:
        module = self._module
        inputs, targets = self._source.batch(step)
        time = fitting(len(inputs), module.lengths, "copying task: time steps")
        scored = fitting(len(targets), module.digits, "copying task: digits")
        return pad(list(inputs.T), list(targets.T), time=time, scored=scored, side="start")

    def __len__(self) -> int:
        return len(self._source)


class PaddedCopyDataModule(CopyDataModule):
    """A CopyDataModule that pads sequences to a few lengths, so that a curriculum compiles once per length.

    Without padding, it would compile once per stage. The padding comes first and has weight 0, and ``Phases.reset``
    clears hidden states and traces after it. Losses, metrics and gradients therefore equal those of the unpadded
    sequences (with windows of one time step; longer windows may begin before the recall). A batch is a
    ``jaxtrain.Phases``.

    Args:
        time_lag: Number of blanks of the first task.
        num_digits: Number of symbols of the first task.
        batch_size: Sequences per batch.
        seed: Seed of the data.
        val_batches: Batches of a validation.
        test_batches: Batches of a test.
        lengths: Allowed lengths of a sequence, in time steps.
        digits: Allowed lengths of the recall, in time steps.

    Raises:
        ValueError: As CopyDataModule. Also raised when a batch is created for a task that does not fit any size.

    >>> data = PaddedCopyDataModule(1, 3, batch_size=8, lengths=(12, 56), digits=(3,))
    >>> data.train_data().batch(0).sizes
    (9, 3, 8)
    """

    def __init__(self, time_lag: int, num_digits: int, batch_size: int = 64, seed: int = 0, val_batches: int = 8,
                 test_batches: int = 32, *, lengths: Sequence[int], digits: Sequence[int]) -> None:  # fmt: skip
        super().__init__(time_lag, num_digits, batch_size, seed, val_batches, test_batches)
        self.lengths, self.digits = tuple(lengths), tuple(digits)
        self._identity |= {"lengths": list(self.lengths), "digits": list(self.digits)}

    def train_data(self) -> Any:
        return _Padded(super().train_data(), self)

    def val_data(self) -> Any:
        return _Padded(super().val_data(), self)

    def test_data(self) -> Any:
        return _Padded(super().test_data(), self)
