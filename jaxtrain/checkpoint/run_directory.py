"""Reads run directories: their configuration and their checkpoints. Changes nothing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..utils.digests import json_digest
from ..utils.files import read_json
from .migration import READABLE, SCHEMA, as_written, upgrade_config, upgrade_metadata, upgrade_names
from .reading import Saved
from .store import Store

CHECKPOINTS = "checkpoints"


def absolute(path: str | Path) -> Path:
    """The absolute path. Raises ValueError if symbolic links form a loop."""
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: cannot be followed ({error}); give another path") from None


def is_checkpoint(path: Path) -> bool:
    """Return True if the path ends in checkpoints/STEP. On disk, STEP is padded with zeros."""
    return path.name.isdecimal() and path.parent.name == CHECKPOINTS


def holds_run(run_dir: Path) -> bool:
    return (run_dir / "config.json").exists() or (run_dir / CHECKPOINTS).exists()


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """Read config.json as its release wrote it; None if there is none. Raises RuntimeError if it is damaged."""
    path = run_dir / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    missing = [key for key in ("fit", "strategy", "data") if not isinstance(config.get(key), dict)]
    if missing:
        raise RuntimeError(f"{path} is damaged: it has no table {missing[0]!r}; restore it, or start another run")
    return config


def read_checkpoint(path: str | Path, which: str = "last") -> Saved:
    """Read a checkpoint.

    Args:
        path: ``<run>/checkpoints/<step>``, or a run directory.
        which: For a run directory: "last" (newest readable checkpoint), "best", or a step.

    Raises:
        FileNotFoundError: There is no such checkpoint.
    """
    run_dir = absolute(path)
    if is_checkpoint(run_dir):
        run_dir, which = run_dir.parent.parent, run_dir.name
    saved, _ = read_step(run_dir, which, read_config(run_dir))
    if saved is None:
        raise FileNotFoundError(f"no checkpoint in {run_dir}: expected a run directory or <run>/{CHECKPOINTS}/<step>")
    return saved


def read_chosen(checkpoint: str | int | Path, run_dir: Path | None) -> Saved:
    """Read the checkpoint that ``Fit.validate`` and similar methods ask for.

    Args:
        checkpoint: "last", "best" or a step of the run in ``run_dir``, or a path.
        run_dir: Run directory, or None.

    Raises:
        ValueError: ``run_dir`` is needed and None.
    """
    which = str(checkpoint)
    if which not in ("last", "best") and not which.isdecimal():
        return read_checkpoint(which)
    if run_dir is None:
        raise ValueError(f"checkpoint={checkpoint!r} needs a run directory: Fit(run_dir=...)")
    return read_checkpoint(run_dir, which)


def read_step(run_dir: Path, which: str, config: dict[str, Any] | None) -> tuple[Saved | None, bool]:
    """Read a checkpoint of a run, which may be in progress.

    Args:
        run_dir: Run directory.
        which: "last" (newest readable checkpoint), "best", or a step.
        config: The config.json of the run.

    Returns:
        The checkpoint, or None if ``which`` is "last" and there is none; and whether it is the last one.

    Raises:
        FileNotFoundError: There is no such checkpoint.
    """
    mode = (((config or {}).get("fit") or {}).get("checkpoint") or {}).get("mode", "min")
    with closing(Store(run_dir / CHECKPOINTS, mode=mode, read_only=True)) as store:
        if which == "last":
            saved = store.latest_readable()
            return (None if saved is None else _check_schema(saved, run_dir, config)), True
        step = store.best_step() if which == "best" else int(which)
        if step is None:
            raise FileNotFoundError(f"'best': no checkpoint in {store.directory} has a score (of {store.steps()})")
        return _check_schema(store.restore(step), run_dir, config), step == store.steps()[-1]


def run_key(config: dict[str, Any], schema: int = SCHEMA) -> str:
    """Digest of the parts of config.json that cannot change on resume; it identifies the run of a checkpoint."""
    config, fit = as_written(config) if schema == 1 else upgrade_config(config) or {}, config["fit"]
    return json_digest({"seeds": [fit["seed"], fit.get("seeds")], **{key: config[key] for key in ("strategy", "data")}})


def _check_schema(saved: Saved, run_dir: Path, config: dict[str, Any] | None) -> Saved:
    """Return ``saved`` with the metadata of this release.

    Raises ValueError if its schema is unknown to this release or if it belongs to another run.
    """
    if (schema := saved.meta.get("schema")) not in READABLE:
        author = (saved.meta.get("versions") or {}).get("jaxtrain", "another release")
        raise ValueError(
            f"the checkpoint of step {saved.step} has schema {schema!r}, and this jaxtrain reads {SCHEMA}: it was "
            f"written by jaxtrain {author}; install that one, or start another run"
        )
    if config is not None and saved.meta.get("run") not in (None, run_key(config, schema)):
        raise ValueError(
            f"the checkpoint of step {saved.step} in {run_dir} is of another run than config.json there (another seed, "
            "strategy or data): restore the run's own checkpoint, or remove this one"
        )
    train = saved.train if schema == SCHEMA else upgrade_names(saved.train)
    return replace(saved, meta=upgrade_metadata(saved.meta), train=train)
