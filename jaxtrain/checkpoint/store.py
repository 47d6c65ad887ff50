"""Saves, restores and deletes the checkpoints of a directory with Orbax. Knows only flat dicts of arrays, and JSON.

With several processes, all save together, each its own part. Only the first process deletes files. Each process reads
independently.
"""

import errno
import logging
import operator
import os
import re
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..distributed import processes
from ..errors import CorruptCheckpoint, NoReadableCheckpoint, SaveFailed
from ..utils.digests import describe, host
from ..utils.logging import one_line
from . import orbax_noise
from .orbax_io import open_manager, start_save
from .reading import ITEMS, Saved, read
from .retention import Mode, Retention
from .step_folders import clean_up, current_path, final_path, list_steps, readable, set_aside

Arrays = Mapping[str, Any]  # by name, on the host or on a device
JSON = Mapping[str, Any]
_log = logging.getLogger("jaxtrain")
_DISK_FULL = ("No space left", "Disk quota exceeded", "RESOURCE_EXHAUSTED")  # TensorStore reports these only as text


class Store:
    """The checkpoints of one directory: saved asynchronously, verified when read.

    The newest and the best checkpoints are kept; older ones are deleted when a save completes.

    Args:
        directory: Created if missing; `~` and relative paths are resolved here.
        last: Number of newest checkpoints to keep, at least 1.
        best: Number of best checkpoints to keep in addition, by score. With equal scores the earlier one is better.
        mode: "min" or "max": whether a low or a high score is better. A nonfinite score is always the worst.
        read_only: Changes nothing and refuses save(), so the directory may belong to a run in progress.

    Raises:
        OSError: The directory cannot be written.
        ValueError: ``last`` or ``best`` is too small, or Orbax cannot read from such a path.
    """

    def __init__(
        self, directory: str | Path, *, last: int = 1, best: int = 0, mode: Mode = "min", read_only: bool = False
    ):
        self._retention = Retention(last, best, mode)
        self.directory = readable(Path(directory).expanduser().resolve())
        self.read_only = read_only
        self._manager: Any = None  # created by the first save
        self._saved = True  # the newest save is on disk
        if not read_only and processes.is_first():
            self._require_writable()
            clean_up(self.directory)

    def steps(self) -> list[int]:
        """Steps on disk, ascending. A step that is being saved is listed once it is committed."""
        return list_steps(self.directory)

    def best_step(self) -> int | None:
        """The step with the best recorded score, or None if no readable checkpoint has one."""
        self._settle()
        self._read_scores()
        return next(iter(self._retention.ranked(self.steps())), None)

    def save(
        self, step: int, params: Arrays, train: Arrays, meta: JSON, score: float | None = None, replace: bool = False
    ) -> bool:
        """Start to save a step.

        Returns when all arrays are copied to the host, so buffers may then be donated or overwritten. A step that is
        already on disk is written again only if it is unreadable, or if `replace` is True. The old checkpoint then
        stays until the new one is on disk.

        Args:
            step: The step, at least 0.
            params: Parameters: a flat dict of arrays (a PRNG key as uint32 key data).
            train: The rest of the training state, likewise.
            meta: JSON metadata.
            score: Score for the choice of the best checkpoints, or None.
            replace: Overwrite what an interrupted run left of this step.

        Returns:
            False if the save failed immediately because the disk is full, which is logged; else True.

        Raises:
            TypeError: A leaf is not a numeric array, or the metadata is not JSON.
            SaveFailed: This save or the previous one failed for a reason other than a full disk.
            RuntimeError: The store is read-only.
            ValueError: ``step`` is negative, or the metadata uses a reserved key.
        """
        if self.read_only:
            raise RuntimeError(f"step {step} is not saved: the checkpoints in {self.directory} were opened read-only")
        if (step := operator.index(step)) < 0:
            raise ValueError(f"a checkpoint belongs to a step >= 0, not {step}")
        self._settle()
        items = {"params": host("params", params), "train": host("train", train)}
        record = describe(step, items, meta, None if score is None else float(score))
        if processes.broadcast(step in self.steps()):
            if processes.broadcast(not replace and self._try_to_read(step) is not None):
                self._saved = True
                return True
            if not self._set_aside(step, replace):
                return False
        if self._retention.best:
            self._read_scores()
        self._retention.unreadable.pop(step, None)
        self._retention.saving, self._retention.scores[step] = step, record["store"]["score"]
        try:
            orbax_noise.suppress_while_used(self)
            if self._manager is None:
                self._manager = open_manager(self.directory, self._retention)
            orbax_noise.begin(final_path(self.directory, step))
            start_save(self._manager, step, record, {"params": params, "train": train}, items)
        except Exception as error:
            self._handle_failure(step, error)
            return self._saved
        return True

    def wait(self) -> bool:
        """Wait for the newest save.

        Returns:
            True if it is on disk, False if it failed because the disk is full.

        Raises:
            SaveFailed: It failed for another reason. Raised once.
        """
        self._settle()
        return self._saved

    def read_meta(self, step: int) -> dict[str, Any]:
        """Read and verify the metadata of a step.

        Raises:
            CorruptCheckpoint: The metadata is damaged.
            FileNotFoundError: There is no such step; the message lists the steps.
        """
        return self._read(step, ()).meta

    def restore(self, step: int, *, params: bool = True, train: bool = True) -> Saved:
        """Read a step. Every leaf is verified.

        Args:
            step: The step.
            params: Read the parameters.
            train: Read the rest of the training state.

        Returns:
            Numpy arrays with the saved dtypes and shapes.

        Raises:
            CorruptCheckpoint: The checkpoint is damaged.
            FileNotFoundError: There is no such step; the message lists the steps.
        """
        return self._read(step, ("params",) * params + ("train",) * train)

    def latest_readable(self) -> Saved | None:
        """Read the newest readable checkpoint. A warning names each newer one that is unreadable.

        Returns:
            The checkpoint, or None if the directory holds none.

        Raises:
            NoReadableCheckpoint: There are checkpoints, but all are unreadable.
        """
        self._settle()
        for step in reversed(steps := self.steps()):
            if saved := self._try_to_read(step):
                return saved
        if steps:
            why = "; ".join(f"step {step}: {self._retention.unreadable[step]}" for step in reversed(steps))
            raise NoReadableCheckpoint(f"no checkpoint in {self.directory} can be read: {why}")
        return None

    def close(self) -> None:
        """Wait for the save in progress and free its threads. Raises SaveFailed if that save failed."""
        try:
            self._settle()
        finally:
            self._close_manager()
            orbax_noise.release(self)

    def _require_writable(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            why = f"checkpoints cannot be written here ({error.strerror}), give another directory"
            raise OSError(error.errno, why, str(self.directory)) from None

    def _set_aside(self, step: int, replace: bool) -> bool:
        """Rename the old checkpoint of a step that is saved again. Return False if the disk is full."""
        if not replace:
            _log.warning("the unreadable checkpoint of step %d in %s is replaced", step, self.directory)
        self._close_manager()  # it would still list the step
        try:
            if processes.is_first():
                set_aside(self.directory, step)
            processes.barrier()
        except OSError as error:  # the old checkpoint is unchanged
            self._saved = False
            self._report(step, error)
            return False
        return True

    def _settle(self) -> None:
        """Wait for the save in progress and handle its outcome."""
        if (step := self._retention.saving) is None:
            return
        path = final_path(self.directory, step)
        try:
            self._manager.wait_until_finished()
            if processes.is_first() and not path.is_dir():
                raise RuntimeError(f"the checkpoint of step {step} vanished from {self.directory} while it was saved")
        except Exception as error:
            self._handle_failure(step, error)
        else:
            self._retention.saving, self._saved = None, True
            orbax_noise.succeeded(path)
            if processes.is_first():
                clean_up(self.directory)

    def _handle_failure(self, step: int, error: Exception) -> None:
        """Delete the remains of a failed save, and report it."""
        # Orbax keeps listing the failed step and forgets the steps it was to delete, so start over with a new manager.
        self._retention.saving = None
        path = final_path(self.directory, step)
        self._close_manager()
        # The step is complete if only the deletion of older ones failed.
        self._saved = path.is_dir() and self._try_to_read(step) is not None
        if not self._saved:
            self._retention.scores.pop(step, None)
        if processes.is_first():
            clean_up(self.directory, failed=None if self._saved else step)
        self._report(step, error)

    def _report(self, step: int, error: Exception) -> None:
        """Log what became of a save. Raises SaveFailed unless the disk was full or the step is on disk."""
        # No stack frames, but the whole chain of causes.
        text = "".join(traceback.format_exception(error, limit=0))
        full, code = any(words in text for words in _DISK_FULL), re.search(r"os_error_code='(\d+)'", text)
        why = "no space left" if full else os.strerror(int(code[1])) if code else one_line(error)[:200]
        outcome = "is saved, but older ones were not removed" if self._saved else "is not saved"
        # Several processes cannot continue: the others wait in Orbax for what this one did not write.
        if processes.count() > 1 or not (self._saved or full):
            raise SaveFailed(f"the checkpoint of step {step} {outcome} in {self.directory}: {why}") from error
        outcome += "" if self._saved else "; the next one is tried"
        _log.warning("%s in %s: the checkpoint of step %d %s", why, self.directory, step, outcome)

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is None:
            return None
        for _ in range(5):  # each part of Orbax raises the failure again, which is already handled
            with suppress(Exception):
                return manager.close()

    def _try_to_read(self, step: int, items: tuple[str, ...] = ITEMS) -> Saved | None:
        try:
            return self._read(step, items)
        except CorruptCheckpoint as error:
            _log.warning("%s (in %s)", error, self.directory)
            return None

    def _read_scores(self) -> None:
        for step in self.steps():
            if step not in self._retention.scores and step not in self._retention.unreadable:
                self._try_to_read(step, ())

    def _read(self, step: int, items: tuple[str, ...]) -> Saved:
        self._settle()
        if (step := operator.index(step)) not in (steps := self.steps()):
            listed = ", ".join(map(str, steps)) or "none"
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.directory} (there are: {listed})")
        orbax_noise.suppress_while_used(self)
        try:
            saved = read(current_path(self.directory, step), step, items)
        except CorruptCheckpoint as error:
            self._retention.unreadable[step] = error.why
            raise
        self._retention.scores[step] = saved.meta["store"]["score"]
        if items == ITEMS:
            self._retention.unreadable.pop(step, None)
        return saved
