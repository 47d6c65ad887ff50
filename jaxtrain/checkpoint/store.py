"""Orbax behind one class: save, restore, the latest readable, retention, digests. Knows flat dicts and JSON only.

Of several processes all save together, each what it holds; the first one alone tidies up, and each reads by itself.
Orbax promises that a listed step was complete once, not that its content is unchanged: most flipped bits it reads back
as numbers. So every leaf carries a sha256, the metadata carries its own, and both are checked on the way back.
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
_ASIDE = ".replaced"  # ending of a step that another save is about to replace
_UNFINISHED = re.compile(r"[0-9]{8,}\.orbax-checkpoint-tmp.*")
_PROBE = ".probe"
_GONE = ".deleted"  # steps on their way out: one rename takes a step off the list, so none is ever listed in part
_SPACE = ("No space left", "Disk quota exceeded", "RESOURCE_EXHAUSTED")  # TensorStore says it in words only


def readable(path: Path) -> Path:
    """The path. Raises ValueError where Orbax could write checkpoints below it and would never find them again."""
    if wrong := [mark for mark in "[\\" if mark in str(path)]:
        raise ValueError(
            f"{path}: Orbax cannot read checkpoints back from a path that holds {' or '.join(wrong)}; choose another"
        )
    return path


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: numpy arrays by name, JSON metadata. An item that was not asked for is empty."""

    step: int
    params: dict[str, np.ndarray]
    train: dict[str, np.ndarray]
    meta: dict[str, Any]


class Store:
    """The checkpoints of one directory: saved asynchronously, verified when read, the `last` and the `best` kept.

    Args:
        directory: made if it is missing; `~` and relative paths are resolved here.
        last: how many of the newest are kept (at least 1).
        best: how many of the best by score are kept beside them; of equal scores the earlier is the better.
        mode: whether a low ("min") or a high ("max") score is good; a non-finite one is the worst either way.
        read_only: touches nothing (save() is refused), so it may read the directory of a run that is alive.

    Raises OSError if the directory cannot be written.
    """

    def __init__(
        self, directory: str | Path, *, last: int = 1, best: int = 0, mode: Mode = "min", read_only: bool = False
    ):
        if last < 1 or best < 0:
            raise ValueError(f"a store keeps last >= 1 and best >= 0 checkpoints, not last={last}, best={best}")
        self.directory = readable(Path(directory).expanduser().resolve())
        self.last, self.best, self.mode, self.read_only = last, best, mode, read_only
        self._manager: Any = None  # made by the first save
        self._pending: int | None = None  # the step whose save is in flight
        self._saved = True  # the newest save is on disk
        self._scores: dict[int, float | None] = {}
        self._bad: dict[int, str] = {}  # steps known to be unreadable, and why
        if not read_only and processes.is_first():
            self._probe()
            self._tidy()

    def steps(self) -> list[int]:
        """The steps on disk, ascending. A save in flight is listed once it is committed."""
        names = {path.name.removesuffix(_ASIDE) for path in self.directory.glob("[0-9]*") if path.is_dir()}
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def best_step(self) -> int | None:
        """The step with the best recorded score; None when no readable checkpoint carries one."""
        self._settle()
        self._learn_scores()
        return next(iter(self._ranked(self.steps())), None)

    def save(
        self, step: int, params: Arrays, train: Arrays, meta: Mapping[str, Any], score: float | None = None,
        replace: bool = False,
    ) -> bool:  # fmt: skip
        """Starts to save a step; returns when all is copied to the host, so buffers may be donated or overwritten.

        `params` and `train` are flat dicts of arrays (a PRNG key as uint32 key data), `meta` is JSON. A step that is on
        disk already is not written again, unless it is unreadable or to `replace` what an interrupted run left of it;
        then the old one stays until the new one is on disk. False: failed at once for want of disk space, which is
        logged. Raises TypeError for a leaf that is no numeric array or metadata that is not JSON, and SaveFailed, also
        for the save before this one, if anything but want of space was in the way.
        """
        if self.read_only:
            raise RuntimeError(f"step {step} is not saved: the checkpoints in {self.directory} were opened read-only")
        if (step := operator.index(step)) < 0:
            raise ValueError(f"a checkpoint belongs to a step >= 0, not {step}")
        self._settle()
        items = {"params": host("params", params), "train": host("train", train)}
        record = describe(step, items, meta, None if score is None else float(score))
        if processes.from_first(step in self.steps()):
            if processes.from_first(not replace and self._attempt(step) is not None):
                self._saved = True
                return True
            if not replace:
                _log.warning("the unreadable checkpoint of step %d in %s is replaced", step, self.directory)
            self._drop_manager()  # which would go on listing it
            try:
                if processes.is_first():
                    self._whole(step).rename(self._whole(step, _ASIDE))
                processes.meet()
            except OSError as error:  # the old one stays as it is
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
            for item, leaves in items.items():  # Orbax refuses empty arrays and trees; the metadata says enough of them
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
        """True: the newest save is on disk; False: it failed for want of space. Else it raises SaveFailed, once."""
        self._settle()
        return self._saved

    def read_meta(self, step: int) -> dict[str, Any]:
        """The verified metadata of a step. Raises CorruptCheckpoint; FileNotFoundError names the steps there are."""
        return self._read(step, ()).meta

    def restore(self, step: int, *, params: bool = True, train: bool = True) -> Saved:
        """Numpy arrays of the saved dtypes and shapes, every leaf verified. Raises what read_meta does."""
        return self._read(step, ("params",) * params + ("train",) * train)

    def latest_readable(self) -> Saved | None:
        """The newest checkpoint that reads back whole, each unreadable one before it named in a warning; None if empty.

        Raises NoReadableCheckpoint if there are some and all are unreadable.
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
        """Waits for the save in flight and frees its threads. Raises SaveFailed if that save failed."""
        try:
            self._settle()
        finally:
            self._drop_manager()
            quiet.release(self)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax asks which steps stay, while one is being saved; the others go when that one is on disk."""
        # Orbax' own LatestN | BestN keeps steps without a score while there are few, counts unreadable ones, and
        # trusts a metrics file that nothing protects. The scores used here come from verified metadata.
        assert self._pending is not None
        readable = sorted(c.step for c in checkpoints if c.step not in self._bad)
        kept = {self._pending, *readable[-self.last :], *self._ranked(readable)[: self.best]}
        kept.update(step for step in self._bad if step > self._pending)  # others go: an unreadable one does not count
        return [c.step in kept for c in checkpoints]

    def _probe(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / _PROBE
            probe.touch()
            probe.unlink()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and self.directory.is_dir():
                return  # a full disk is dealt with save by save
            why = f"checkpoints cannot be written here ({error.strerror}), give another directory"
            raise OSError(error.errno, why, str(self.directory)) from None

    def _tidy(self, step: int | None = None) -> None:
        """Removes what unfinished saves left, and the given step; a step whose replacement is missing comes back."""
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
        except OSError as error:  # no reason to lose a run: it is tried again after the next save
            _log.warning("%s: what is left of older saves cannot be removed: %s", self.directory, error)

    def _orbax(self) -> Any:
        quiet.hold(self)
        import orbax.checkpoint as ocp  # costs a second, so not before the first use

        return ocp

    def _settle(self) -> None:
        """Waits for the save in flight and deals with its outcome."""
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
        """Removes what a failed save left, and reports it."""
        # Orbax goes on listing a step that failed, and forgets those it meant to delete: start over with a new manager.
        self._pending = None
        quiet.end(self._whole(step), well=False)
        self._drop_manager()
        # The step is whole if only the removal of older ones failed.
        self._saved = self._whole(step).is_dir() and self._attempt(step) is not None
        if not self._saved:
            self._scores.pop(step, None)
        self._tidy(None if self._saved else step)
        self._report(step, error)

    def _report(self, step: int, error: Exception) -> None:
        """Says what became of a step. Raises SaveFailed unless there was no space for it, or it is on disk."""
        # Without frames, but with all that the error was raised from.
        text = "".join(traceback.format_exception(error, limit=0))
        # Several processes cannot go on after it: the others wait in Orbax for what this one did not write.
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
            for _ in range(4):  # each part of Orbax raises once more the failure of the save, which is in hand by now
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
        """Those of the readable steps that carry a score, the best first."""
        scores = {step: self._scores.get(step) for step in steps if step not in self._bad}
        sign = 1 if self.mode == "min" else -1
        # A NaN compares with nothing: left in, it would scramble the order and the best would be deleted.
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
        # A template of exactly the recorded dtypes and shapes: without one, Orbax wants the devices of the save.
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
        except Exception as error:  # anything from a KeyError to a bare Exception of 40 lines
            text = (str(error).strip().splitlines() or [""])[0]
            raise CorruptCheckpoint(step, f"{type(error).__name__}: {text[:160]}") from None
        finally:
            quiet.end(path, well)
