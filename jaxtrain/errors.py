"""Errors that jaxtrain raises for its users to catch."""


class DataError(ValueError):
    """The data is not what a run can use. `batch` is the number of the batch, counted from 0, where there is one."""

    def __init__(self, message: str, batch: int | None = None) -> None:
        super().__init__(message)
        self.batch = batch


class DataEnded(DataError):
    """A one-shot iterator ended where batch number `batch` (counted from 0) was asked for."""

    def __init__(self, batch: int, name: str = "train") -> None:
        super().__init__(
            f"{name} data: ended after {batch} batches, and another was asked for; give a list or an object with "
            "batch(step), or ask for fewer steps",
            batch,
        )


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where it comes from and what was expected."""


class CorruptCheckpoint(RuntimeError):
    """A checkpoint that does not hold what was saved. Attributes: step, why (one line)."""

    def __init__(self, step: int, why: str):
        super().__init__(f"the checkpoint of step {step} is unreadable: {why}")
        self.step, self.why = step, why


class NoReadableCheckpoint(RuntimeError):
    """There are checkpoints, and none of them can be read."""


class SaveFailed(RuntimeError):
    """A checkpoint that could not be written, for another reason than want of space."""


class NonFiniteError(FloatingPointError):
    """A loss, metric or gradient became NaN or infinite under ``Fit(nonfinite="raise")``."""


class ProcessError(RuntimeError):
    """Another process failed, so this one cannot go on."""
