"""The copying task in a few lengths: sequences are padded, so that a curriculum compiles few programs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.module import Phases
from .copy import CopyDataModule, CopyDataset


def padded(size: int, sizes: Sequence[int], what: str) -> int:
    """The smallest of ``sizes`` that is at least ``size``.

    >>> padded(3, (2, 5, 10), "digits")
    5

    Raises ValueError if there is none.
    """
    fitting = [other for other in sizes if other >= size]
    if not fitting:
        raise ValueError(f"copying task: {size} {what} do not fit into the sizes {list(sizes)}; give a larger one")
    return min(fitting)


class _Padded:
    """Batches of a CopyDataset with padding in front, as ``Phases``."""

    def __init__(self, source: CopyDataset, module: "PaddedCopyDataModule"):
        self._source, self._module = source, module

    def batch(self, step: int) -> Phases:
        module = self._module
        inputs, targets = self._source.batch(step)
        time, digits = len(inputs), len(targets)
        total, scored = padded(time, module.lengths, "time steps"), padded(digits, module.digits, "digits")
        scored = min(scored, total)
        blank = lambda n, like: np.zeros((n, like.shape[1]), like.dtype)  # noqa: E731
        reset = np.zeros((total, inputs.shape[1]), bool)
        reset[total - time] = True  # the sequence starts from fresh states after the padding
        weights = np.zeros(scored, np.float32)
        weights[-digits:] = 1.0
        ids = np.concatenate([blank(total - time, inputs), inputs])
        warm = total - scored
        return Phases(
            warmup=ids[:warm] if warm else None,
            inputs=ids[warm:],
            targets=np.concatenate([blank(scored - digits, targets), targets]),
            weights=weights,
            reset=reset,
        )

    def __len__(self) -> int:
        return len(self._source)


class PaddedCopyDataModule(CopyDataModule):
    """A CopyDataModule that pads sequences to a few lengths, so that a curriculum compiles once per length.

    Without padding, it would compile once per stage. The padding comes first and has weight 0, and ``Phases.reset``
    clears hidden states and traces after it. Losses, metrics and gradients therefore equal those of the unpadded
    sequences (with windows of one time step; longer windows may begin before the recall). A batch is a
    ``jaxtrain.Phases``.

    Args:
        time_lag, num_digits, batch_size, seed, val_batches, test_batches: As in CopyDataModule.
        lengths: Allowed lengths of a sequence, in time steps.
        digits: Allowed lengths of the recall, in time steps.

    Raises:
        ValueError: As CopyDataModule. Also raised when a batch is created for a task that does not fit any size.
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
