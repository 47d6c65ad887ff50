"""Errors that jaxtrain raises and users may catch."""


class DataError(ValueError):
    """The data cannot be used by a run.

    Attributes:
        batch: Number of the batch, counted from 0, or None if the error concerns no single batch.
    """

    def __init__(self, message: str, batch: int | None = None) -> None:
        super().__init__(message)
        self.batch = batch


class DataEnded(DataError):
    """A one-shot iterator ended before batch number ``batch``."""

    def __init__(self, batch: int, name: str = "train") -> None:
        super().__init__(
            f"{name} data: ended after {batch} batches, and another was asked for; give a list or an object with "
            "batch(step), or ask for fewer steps",
            batch,
        )


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names its origin and what was expected."""

    exit_code = 2


class CorruptCheckpoint(RuntimeError):
    """A checkpoint that does not contain what was saved.

    Attributes:
        step: Step of the checkpoint.
        why: The reason, in one line.
    """

    def __init__(self, step: int, why: str):
        super().__init__(f"the checkpoint of step {step} is unreadable: {why}")
        self.step, self.why = step, why


class NoReadableCheckpoint(RuntimeError):
    """Checkpoints exist, but none of them can be read."""


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, for another reason than a full disk."""


class NonFiniteError(FloatingPointError):
    """A loss, metric or gradient became NaN or infinite under ``Fit(nonfinite="raise")``."""


class ProcessError(RuntimeError):
    """Another process failed, so this one cannot continue."""

    exit_code = 1


class ProcessEnded(ProcessError):
    """Another process has ended without a report, so this one cannot continue. All can be started again."""

    exit_code = 75  # EX_TEMPFAIL: a temporary failure

    def __init__(self, where: str = "") -> None:
        super().__init__(f"another process has ended{where}: start all processes again with --resume last")


class InsufficientMemory(MemoryError):
    """A program or its arrays need more memory than there is. Raised before they are allocated.

    Attributes:
        needed: Bytes that would be in use at once.
        available: Bytes that can be allocated, including those of ``needed`` that already are.
    """

    def __init__(self, message: str, needed: int, available: int):
        super().__init__(message)
        self.needed, self.available = needed, available
