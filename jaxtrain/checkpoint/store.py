"""Saves, verifies, restores and deletes checkpoints with Orbax. Knows only flat dicts of arrays, and JSON.

With several processes, all save together, each its own part. Only the first process deletes files. Each process reads
independently.

Orbax guarantees that a listed step was once complete, but not that its content is unchanged: it reads most flipped bits
back as numbers. Therefore every leaf has a sha256, the metadata has its own, and both are checked when they are read.
"""

import errno
import logging
import math
import operator
import os
import re
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from ..distributed import processes
from ..errors import CorruptCheckpoint, NoReadableCheckpoint, SaveFailed
from ..utils.digests import RESERVED, describe, host, json_digest, leaf_digest
from ..utils.logging import one_line
from . import orbax_noise as quiet
from .orbax_io import manager, reader, to_save

Mode = Literal["min", "max"]
Arrays = Mapping[str, Any]  # arrays by name, on the host or on a device
_log = logging.getLogger("jaxtrain")
_STEP = re.compile(r"[0-9]{8}|[1-9][0-9]{8,}")
_ASIDE = ".replaced"  # suffix of a step that another save is about to replace
_UNFINISHED = re.compile(r"[0-9]{8,}\.orbax-checkpoint-tmp.*")
_PROBE = ".probe"
_GONE = ".deleted"  # steps being deleted: one rename unlists a step, so no step is ever listed in part
_SPACE = ("No space left", "Disk quota exceeded", "RESOURCE_EXHAUSTED")  # TensorStore reports these only as text


def readable(path: Path) -> Path:
    """Return the path. Raises ValueError if Orbax could write checkpoints below it but would never find them again."""
    if wrong := [mark for mark in "[\\" if mark in str(path)]:
        raise ValueError(
            f"{path}: Orbax cannot read checkpoints back from a path that holds {' or '.join(wrong)}; choose another"
        )
    return path


@dataclass(frozen=True)
class Saved:
    """Content of a checkpoint: numpy arrays by name, and JSON metadata. Items that were not requested are empty."""

    step: int
    params: dict[str, np.ndarray]
    train: dict[str, np.ndarray]
    meta: dict[str, Any]


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
        if last < 1 or best < 0:
            raise ValueError(f"a store keeps last >= 1 and best >= 0 checkpoints, not last={last}, best={best}")
        self.directory = readable(Path(directory).expanduser().resolve())
        self.last, self.best, self.mode, self.read_only = last, best, mode, read_only
        self._manager: Any = None  # created by the first save
        self._pending: int | None = None  # the step that is being saved
        self._saved = True  # the newest save is on disk
        self._scores: dict[int, float | None] = {}
        self._bad: dict[int, str] = {}  # steps known to be unreadable, and why
        if not read_only and processes.is_first():
            self._probe()
            self._tidy()

    def steps(self) -> list[int]:
        """Steps on disk, ascending. A step that is being saved is listed once it is committed."""
        names = {path.name.removesuffix(_ASIDE) for path in self.directory.glob("[0-9]*") if path.is_dir()}
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def best_step(self) -> int | None:
        """The step with the best recorded score, or None if no readable checkpoint has one."""
        self._settle()
        self._learn_scores()
        return next(iter(self._ranked(self.steps())), None)

    def save(
        self, step: int, params: Arrays, train: Arrays, meta: Mapping[str, Any], score: float | None = None,
        replace: bool = False,
    ) -> bool:  # fmt: skip
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
            if processes.broadcast(not replace and self._attempt(step) is not None):
                self._saved = True
                return True
            if not replace:
                _log.warning("the unreadable checkpoint of step %d in %s is replaced", step, self.directory)
            self._drop_manager()  # it would still list the step
            try:
                if processes.is_first():
                    self._whole(step).rename(self._whole(step, _ASIDE))
                processes.barrier()
            except OSError as error:  # the old checkpoint is unchanged
                self._saved = False
                self._report(step, error)
                return False
        if self.best:
            self._learn_scores()
        self._bad.pop(step, None)
        self._pending, self._scores[step] = step, record["store"]["score"]
        try:
            ocp = self._orbax()
            args: dict[str, Any] = {"meta": ocp.args.JsonSave(record)}
            for item, leaves in items.items():  # Orbax refuses empty arrays and trees; the metadata suffices
                given = params if item == "params" else train
                if stored := {name: to_save(given[name], leaf) for name, leaf in leaves.items() if leaf.size}:
                    args[item] = ocp.args.StandardSave(stored)
            if self._manager is None:
                self._manager = manager(self.directory, self, _GONE)
            quiet.begin(self._whole(step))
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        except Exception as error:
            self._failed(step, error)
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
        for step in reversed(self.steps()):
            if saved := self._attempt(step):
                return saved
        if steps := self.steps():
            why = "; ".join(f"step {step}: {self._bad[step]}" for step in reversed(steps))
            raise NoReadableCheckpoint(f"no checkpoint in {self.directory} can be read: {why}")
        return None

    def close(self) -> None:
        """Wait for the save in progress and free its threads. Raises SaveFailed if that save failed."""
        try:
            self._settle()
        finally:
            self._drop_manager()
            quiet.release(self)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Called by Orbax during a save: which steps to keep. The others are deleted when the new step is on disk."""
        # Orbax's own LatestN | BestN keeps steps without a score while there are few, counts unreadable steps, and
        # trusts a metrics file that has no digest. The scores used here come from verified metadata.
        assert self._pending is not None
        readable = sorted(c.step for c in checkpoints if c.step not in self._bad)
        kept = {self._pending, *readable[-self.last :], *self._ranked(readable)[: self.best]}
        kept.update(step for step in self._bad if step > self._pending)  # older unreadable steps are deleted
        return [c.step in kept for c in checkpoints]

    def _probe(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / _PROBE
            probe.touch()
            probe.unlink()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and self.directory.is_dir():
                return  # each save handles a full disk itself
            why = f"checkpoints cannot be written here ({error.strerror}), give another directory"
            raise OSError(error.errno, why, str(self.directory)) from None

    def _tidy(self, step: int | None = None) -> None:
        """Delete the remains of unfinished saves, and ``step`` if given.

        A step whose replacement was not completed is renamed back.
        """
        if not processes.is_first():
            return
        try:
            for path in self.directory.iterdir():
                if path.name == _PROBE:
                    path.unlink()
                mine = path.name == _GONE or (step is not None and path == self._whole(step))
                if mine or _UNFINISHED.fullmatch(path.name):
                    shutil.rmtree(path)
            for aside in self.directory.glob(f"[0-9]*{_ASIDE}"):
                if aside.with_suffix("").exists():
                    shutil.rmtree(aside)
                else:
                    aside.rename(aside.with_suffix(""))
        except OSError as error:  # no reason to end a run: retried after the next save
            _log.warning("%s: what is left of older saves cannot be removed: %s", self.directory, error)

    def _orbax(self) -> Any:
        quiet.hold(self)
        import orbax.checkpoint as ocp  # takes a second to import, so not before the first use

        return ocp

    def _settle(self) -> None:
        """Wait for the save in progress and handle its outcome."""
        if (step := self._pending) is None:
            return
        try:
            self._manager.wait_until_finished()
            if processes.is_first() and not self._whole(step).is_dir():
                raise RuntimeError(f"the checkpoint of step {step} vanished from {self.directory} while it was saved")
        except Exception as error:
            self._failed(step, error)
        else:
            self._pending, self._saved = None, True
            quiet.end(self._whole(step), well=True)
            self._tidy()
            there = {*self.steps()}
            self._scores = {step: score for step, score in self._scores.items() if step in there}

    def _failed(self, step: int, error: Exception) -> None:
        """Delete the remains of a failed save, and report it."""
        # Orbax keeps listing the failed step and forgets the steps it was to delete, so start over with a new manager.
        self._pending = None
        quiet.end(self._whole(step), well=False)
        self._drop_manager()
        # The step is complete if only the deletion of older ones failed.
        self._saved = self._whole(step).is_dir() and self._attempt(step) is not None
        if not self._saved:
            self._scores.pop(step, None)
        self._tidy(None if self._saved else step)
        self._report(step, error)

    def _report(self, step: int, error: Exception) -> None:
        """Log what became of a save. Raises SaveFailed unless the disk was full or the step is on disk."""
        # No stack frames, but the whole chain of causes.
        text = "".join(traceback.format_exception(error, limit=0))
        # Several processes cannot continue: the others wait in Orbax for what this one did not write.
        several = processes.count() > 1
        space, code = any(words in text for words in _SPACE), re.search(r"os_error_code='(\d+)'", text)  # TensorStore's
        why = "no space left" if space else os.strerror(int(code[1])) if code else one_line(error)[:200]
        if self._saved and not several:
            outcome = "is saved, but older ones were not removed"
        elif space and not several:
            outcome = "is not saved; the next one is tried"
        else:
            what = "is saved, but older ones were not removed" if self._saved else "is not saved"
            raise SaveFailed(f"the checkpoint of step {step} {what} in {self.directory}: {why}") from error
        _log.warning("%s in %s: the checkpoint of step %d %s", why, self.directory, step, outcome)

    def _drop_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            for _ in range(4):  # each part of Orbax raises the failure again, which is already handled
                with suppress(Exception):
                    return manager.close()
            manager.close()

    def _attempt(self, step: int, names: tuple[str, ...] = ("params", "train")) -> Saved | None:
        try:
            return self._read(step, names)
        except CorruptCheckpoint as error:
            _log.warning("%s (in %s)", error, self.directory)
            return None

    def _learn_scores(self) -> None:
        for step in self.steps():
            if step not in self._scores and step not in self._bad:
                self._attempt(step, ())

    def _ranked(self, steps: list[int]) -> list[int]:
        """The readable steps that have a score, best first."""
        scores = {step: self._scores.get(step) for step in steps if step not in self._bad}
        sign = 1 if self.mode == "min" else -1
        # NaN is unordered: it would scramble the sort, and the best checkpoint could be deleted.
        keys = {s: sign * x if math.isfinite(x) else math.inf for s, x in scores.items() if x is not None}
        return sorted(keys, key=lambda step: (keys[step], step))

    def _whole(self, step: int, ending: str = "") -> Path:
        return self.directory / f"{step:08d}{ending}"

    def _path(self, step: int) -> Path:
        whole = self._whole(step)
        return whole if whole.is_dir() else self._whole(step, _ASIDE)

    def _read(self, step: int, names: tuple[str, ...] = ("params", "train")) -> Saved:
        self._settle()
        if (step := operator.index(step)) not in (steps := self.steps()):
            there = ", ".join(map(str, steps)) or "none"
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.directory} (there are: {there})")
        try:
            meta = self._fetch(step, "meta", self._orbax().args.JsonRestore())
            if not isinstance(meta, dict) or not meta.keys() >= RESERVED:
                raise CorruptCheckpoint(step, "its metadata was not written by jaxtrain")
            if meta["digest"] != json_digest({key: value for key, value in meta.items() if key != "digest"}):
                raise CorruptCheckpoint(step, "its metadata differs from its digest")
            if meta["store"]["step"] != step:
                raise CorruptCheckpoint(step, f"its metadata belongs to step {meta['store']['step']}")
            items = {item: self._read_item(step, item, meta) for item in names}
        except CorruptCheckpoint as error:
            self._bad[step] = error.why
            raise
        self._scores[step] = meta["store"]["score"]
        if len(names) == 2:
            self._bad.pop(step, None)
        return Saved(step, items.get("params", {}), items.get("train", {}), meta)

    def _read_item(self, step: int, item: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
        # A template with the recorded dtypes and shapes: without one, Orbax needs the devices of the save.
        recorded = meta["store"][item].items()
        leaves = {name: np.empty(shape, getattr(ml_dtypes, dtype, dtype)) for name, (dtype, shape) in recorded}
        if stored := {name: leaf for name, leaf in leaves.items() if leaf.size}:
            leaves |= self._fetch(step, item, self._orbax().args.StandardRestore(stored))
        elif (self._path(step) / item).exists():
            raise CorruptCheckpoint(step, f"it has {item} that its metadata does not name")
        for name, leaf in leaves.items():
            if leaf_digest(leaf) != meta["digests"][item].get(name):
                raise CorruptCheckpoint(step, f"leaf {name!r} of {item} differs from its digest")
        return leaves

    def _fetch(self, step: int, item: str, args: Any) -> Any:
        ocp = self._orbax()
        path = self._path(step)
        quiet.begin(path)
        well = False
        try:
            with reader() as opened:
                found = opened.restore(path, args=ocp.args.Composite(**{item: args}))[item]
            well = True
            return found
        except MemoryError:
            raise
        except Exception as error:  # anything from a KeyError to a bare Exception with 40 lines of text
            text = (str(error).strip().splitlines() or [""])[0]
            raise CorruptCheckpoint(step, f"{type(error).__name__}: {text[:160]}") from None
        finally:
            quiet.end(path, well)
