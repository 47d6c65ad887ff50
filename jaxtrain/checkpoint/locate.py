"""Decides where a run starts: at step 0, at its own last checkpoint, or as a fork of another run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ..distributed import processes
from ..utils.diff import require_equal
from ..utils.files import RunLock, read_json
from ..utils.logging import log
from .migration import upgrade_config
from .reading import Saved
from .run_directory import CHECKPOINTS, absolute, holds_run, is_checkpoint, read_config, read_step


@dataclass
class Origin:
    """Where a run starts.

    Attributes:
        run_dir: Directory that the run writes to, or None.
        saved: Checkpoint that the run continues from, or None.
        restarted: The run starts at step 0 in a directory that holds an earlier attempt.
        parent: The run that this run is a fork of, or None.
        config: The saved config.json, or None.
        explicit: The user asked for a step, so a run that a callback stopped at that step continues training.
        forked: The run continues in a directory other than the checkpoint's.
    """

    run_dir: Path | None
    saved: Saved | None = None
    restarted: bool = False
    parent: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    explicit: bool = False
    forked: bool = False


@contextmanager
def open_run(run_dir: str | Path | None, resume: str | int | Path, *, write: bool) -> Iterator[Origin]:
    """Call ``locate`` with the run directory locked before it is read.

    ``write=False`` neither locks nor creates anything. If the run is forked, only the fork stays locked: the original
    run is only read, and may be in progress. With several processes, the first one locks, after the others have read
    the directory.

    Raises:
        ValueError: The directory cannot be used, or the processes disagree.
        FileExistsError: The directory already holds a run, or a file or folder is in the way.
        RuntimeError: Another process uses the directory.
    """
    origin = None if processes.is_first() else locate(run_dir, resume)
    processes.barrier()
    with ExitStack() as locks:
        if origin is None:
            origin = _lock_and_locate(run_dir, resume, locks) if write else locate(run_dir, resume)
        own = {"run directory": origin.run_dir, "checkpoint": origin.saved and origin.saved.step, "dry run": not write}
        own |= {"resume": str(resume), "restarted": origin.restarted}
        require_equal(own, "all need the same options, and a run directory on a disk that all share")
        yield origin


def _lock_and_locate(run_dir: str | Path | None, resume: str | int | Path, locks: ExitStack) -> Origin:
    own = _directory_to_lock(run_dir, resume)
    _require_usable(own)
    locks.enter_context(RunLock(own))
    origin = locate(run_dir, resume)
    if origin.run_dir is not None and origin.run_dir != own:
        locks.close()
        _require_usable(origin.run_dir)
        locks.enter_context(RunLock(origin.run_dir))
        if holds_run(origin.run_dir):  # another process forked it first
            raise FileExistsError(f"run directory {origin.run_dir} was just taken by another run: start again")
    return origin


def _directory_to_lock(run_dir: str | Path | None, resume: str | int | Path) -> Path | None:
    """The directory in which the run continues unless it is forked."""
    if run_dir is not None:
        return absolute(run_dir)
    path = absolute(str(resume))
    exists = is_checkpoint(path) and path.with_name(f"{int(path.name):08d}").is_dir()
    return path.parent.parent if exists else None


def _require_usable(run_dir: Path | None) -> None:
    """Refuse a run directory before anything is changed.

    Raises:
        ValueError: It lies inside the checkpoints of a run, and would be deleted with them.
        FileExistsError: A file is in the place of a folder, or vice versa.
    """
    if run_dir is None:
        return
    for path in (run_dir, *run_dir.parents):
        if path.name == CHECKPOINTS and (path.parent / "config.json").exists() and (path.parent / ".lock").exists():
            raise ValueError(
                f"run directory {run_dir} lies among the checkpoints of the run {path.parent}; choose another"
            )
    for name in ("config.json", "result.json", "metrics.jsonl", CHECKPOINTS, "tensorboard", "figures"):
        path, expected = run_dir / name, "file" if "." in name else "folder"
        if os.path.exists(path) and path.is_dir() != (expected == "folder"):
            kind = "folder" if path.is_dir() else "file"
            raise FileExistsError(f"{path} is a {kind}, and a run keeps a {expected} there: move it away")


def locate(run_dir: str | Path | None, resume: str | int | Path) -> Origin:
    """Resolve ``resume``.

    Args:
        run_dir: Run directory, or None.
        resume: "never", "last", "best", a step, or a path ``<run>/checkpoints/<step>``.

    Raises:
        ValueError: ``resume`` is invalid or needs a run directory.
        FileExistsError: The directory already holds a run.
        FileNotFoundError: There is no such checkpoint.
    """
    own = None if run_dir is None else absolute(run_dir)
    which = str(resume)
    if resume is None or isinstance(resume, bool):
        raise ValueError(
            f"resume={resume}: expected 'never', 'last', 'best', a step, or a path; did you mean "
            f"{'last' if resume else 'never'!r}?"
        )
    if which == "never":
        if own is not None and holds_run(own):
            raise FileExistsError(
                f"run directory {own} holds a run: resume='last' continues it, or choose another run_dir"
            )
        return Origin(own)
    if which in ("last", "best") or which.isdecimal():
        if own is None:
            raise ValueError(f"resume={which!r} needs a run directory: Fit(run_dir=...)")
        return _resume(own, which)
    path = absolute(which)
    if not is_checkpoint(path):
        raise ValueError(
            f"resume={resume!r}: expected 'never', 'last', 'best', a step, or a path that ends in {CHECKPOINTS}/<step>"
        )
    source = path.parent.parent
    return _resume(source, path.name, target=None if own == source else own)


def _resume(source: Path, which: str, target: Path | None = None) -> Origin:
    """Continue a run from its last checkpoint, or fork it from an earlier one, so that nothing is overwritten.

    With "last", a run without a checkpoint starts at step 0.

    Args:
        source: Run directory.
        which: "last", "best" or a step.
        target: The directory of the fork if the user chose it.
    """
    if which == "last" and not holds_run(source):
        log.info("resume: %s holds no run yet, starting fresh with the options given now", source)
        return Origin(source)
    config = read_config(source)
    saved, is_last = read_step(source, which, config)
    origin = Origin(source, saved, config=upgrade_config(config), parent=(config or {}).get("parent"))
    origin.explicit = which != "last"
    if saved is None:
        _refuse_lost(source)
        log.info("resume: %s has no checkpoint yet; restarting at step 0, metrics.jsonl is truncated", source)
        origin.restarted = True
    elif is_last and target is None:
        log.info("resume: step %d of %s%s", saved.step, source, ", its last; continuing there" * origin.explicit)
    else:
        origin.run_dir = target = target or _free(source.with_name(f"{source.name}-from-{saved.step}"))
        if holds_run(target):
            raise FileExistsError(f"run directory {target} holds a run: a fork of {source} needs an empty one")
        log.info("resume: step %d of %s, continuing as a fork in %s", saved.step, source, target)
        origin.parent, origin.forked = {"run_dir": source.name, "step": saved.step}, True
    return origin


def _refuse_lost(run_dir: Path) -> None:
    """Raise FileNotFoundError if there is no checkpoint although result.json reports one."""
    path = run_dir / "result.json"
    result = read_json(path) if path.exists() else {}
    if result.get("saved") is True:
        raise FileNotFoundError(
            f"{run_dir} has no checkpoint, and its result.json says that step {result.get('step')} was saved: put the "
            "checkpoints back, or choose another run_dir (without result.json it starts again at step 0)"
        )


def _free(path: Path) -> Path:
    """The path, with "-2", "-3", ... appended if it exists."""
    candidates = (path.with_name(f"{path.name}-{n}") if n > 1 else path for n in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())
