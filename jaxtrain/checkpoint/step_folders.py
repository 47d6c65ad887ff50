"""Folders of a checkpoint directory: how steps are named, listed and replaced, and how leftovers are removed."""

import logging
import re
import shutil
from pathlib import Path

DELETED = ".deleted"
"""Folder for steps that are being deleted. One rename unlists a step, so no step is ever listed in part."""
_REPLACED = ".replaced"  # suffix of a step that another save is about to replace
_STEP = re.compile(r"[0-9]{8}|[1-9][0-9]{8,}")
_UNFINISHED = re.compile(r"[0-9]{8,}\.orbax-checkpoint-tmp.*")
_log = logging.getLogger("jaxtrain")


def readable(path: Path) -> Path:
    """Return the path. Raises ValueError if Orbax could write checkpoints below it but would never find them again."""
    if wrong := [mark for mark in "[\\" if mark in str(path)]:
        raise ValueError(
            f"{path}: Orbax cannot read checkpoints back from a path that contains {' or '.join(wrong)}; choose another"
        )
    return path


def list_steps(directory: Path) -> list[int]:
    """Steps on disk, ascending. A step is listed once it is complete."""
    names = {path.name.removesuffix(_REPLACED) for path in directory.glob("[0-9]*") if path.is_dir()}
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def final_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is once it is complete."""
    return directory / f"{step:08d}"


def current_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is now. While it is being replaced, it has another name."""
    path = final_path(directory, step)
    return path if path.is_dir() else path.with_suffix(_REPLACED)


def set_aside(directory: Path, step: int) -> None:
    """Rename a step that is about to be replaced. ``clean_up`` deletes it, or renames it back if the save failed."""
    final_path(directory, step).rename(final_path(directory, step).with_suffix(_REPLACED))


def clean_up(directory: Path, failed: int | None = None) -> None:
    """Delete what interrupted saves and deletions left, and the step ``failed`` if given."""
    try:
        for path in directory.iterdir():
            delete = path.name == DELETED or (failed is not None and path == final_path(directory, failed))
            if delete or _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)
        for aside in directory.glob(f"[0-9]*{_REPLACED}"):
            if aside.with_suffix("").exists():
                shutil.rmtree(aside)
            else:
                aside.rename(aside.with_suffix(""))
    except OSError as error:  # no reason to end a run: retried after the next save
        _log.warning("%s: remains of earlier saves cannot be removed: %s", directory, error)
