"""Where a run starts: fresh, at its own last checkpoint, or as a fork of another run; and whether that may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import Saved, Store
from .console import log
from .run import read_json

CHECKPOINTS = "checkpoints"


@dataclass
class Origin:
    """``run_dir``: where the run writes. ``saved``: the checkpoint it goes on from. ``restarted``: it begins at step 0
    in a directory that holds an earlier attempt. ``parent``: the run it is a fork of. ``config``: the saved config."""

    run_dir: Path | None
    saved: Saved | None = None
    restarted: bool = False
    parent: dict[str, Any] | None = None
    config: dict[str, Any] | None = None


def absolute(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def locate(run_dir: str | Path | None, resume: str | int | Path) -> Origin:
    """Resolve ``resume``: "never", "last", "best", a step, or a path ``<run>/checkpoints/<step>``."""
    own = None if run_dir is None else absolute(run_dir)
    word = str(resume)
    if word == "never":
        if own is not None and _holds_run(own):
            raise FileExistsError(
                f"run directory {own} holds a run: resume='last' continues it, or choose another run_dir"
            )
        return Origin(own)
    if word == "last":
        return _last(_required(own, word))
    if word == "best" or word.isdigit():
        return _from_step(_required(own, word), word, None)
    path = absolute(word)
    if not (path.name.isdigit() and path.parent.name == CHECKPOINTS):
        raise ValueError(
            f"resume={word!r}: expected 'never', 'last', 'best', a step, or a path that ends in {CHECKPOINTS}/<step>"
        )
    source = path.parent.parent
    return _from_step(source, path.name, None if own in (None, source) else own)


def read_checkpoint(where: str | Path) -> Saved:
    """The checkpoint at a path: a run directory (its newest readable one) or ``<run>/checkpoints/<step>``."""
    path = absolute(where)
    if path.name.isdigit() and path.parent.name == CHECKPOINTS:
        return _read(path.parent.parent, int(path.name))
    saved = _store(path).latest_readable() if (path / CHECKPOINTS).is_dir() else None
    if saved is None:
        raise FileNotFoundError(f"no checkpoint in {path}: expected a run directory or <run>/{CHECKPOINTS}/<step>")
    return saved


def _required(run_dir: Path | None, word: str) -> Path:
    if run_dir is None:
        raise ValueError(f"resume={word!r} needs a run directory: Fit(run_dir=...)")
    return run_dir


def _holds_run(run_dir: Path) -> bool:
    return (run_dir / "config.json").exists() or (run_dir / CHECKPOINTS).exists()


def _store(run_dir: Path, config: dict[str, Any] | None = None) -> Store:
    kept = ((config or {}).get("fit") or {}).get("checkpoint") or {}
    return Store(run_dir / CHECKPOINTS, mode=kept.get("mode", "min"), read_only=True)


def _last(run_dir: Path) -> Origin:
    if not _holds_run(run_dir):
        log.info("resume: %s holds no run yet, starting fresh", run_dir)
        return Origin(run_dir)
    saved = _store(run_dir).latest_readable() if (run_dir / CHECKPOINTS).is_dir() else None
    config = read_json(run_dir / "config.json") if (run_dir / "config.json").exists() else None
    if saved is None:
        log.info("resume: %s has no checkpoint yet, starting again at step 0; its log rows are cut", run_dir)
        return Origin(run_dir, restarted=True, config=config, parent=(config or {}).get("parent"))
    log.info("resume: step %d of %s", saved.step, run_dir)
    return Origin(run_dir, saved, config=config, parent=(config or {}).get("parent"))


def _from_step(source: Path, word: str, target: Path | None) -> Origin:
    """A checkpoint that is the run's last continues it; any other is forked, so that nothing is overwritten."""
    config = read_json(source / "config.json") if (source / "config.json").exists() else None
    store = _store(source, config) if (source / CHECKPOINTS).is_dir() else None
    steps = store.steps() if store else []
    if store is None or not steps:
        raise FileNotFoundError(f"resume={word!r}: {source} holds no checkpoint")
    step = store.best_step() if word == "best" else int(word)
    if step is None:
        raise FileNotFoundError(f"resume='best': no checkpoint of {source} carries a score; there are steps {steps}")
    if step not in steps:
        raise FileNotFoundError(f"resume={word!r}: {source} holds no step {step}; there are {steps}")
    saved = store.restore(step)
    if step == steps[-1] and target is None:
        log.info("resume: step %d of %s", step, source)
        return Origin(source, saved, config=config, parent=(config or {}).get("parent"))
    target = target or _free(source.with_name(f"{source.name}-from-{step}"))
    if _holds_run(target):
        raise FileExistsError(f"run directory {target} holds a run: a fork of {source} needs an empty one")
    log.info("resume: step %d of %s goes on as a fork in %s", step, source, target)
    return Origin(target, saved, config=config, parent={"run_dir": source.name, "step": step})


def _read(run_dir: Path, step: int) -> Saved:
    store = _store(run_dir)
    if step not in store.steps():
        raise FileNotFoundError(f"{run_dir} holds no checkpoint of step {step}; there are {store.steps()}")
    return store.restore(step)


def _free(path: Path) -> Path:
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


# ------------------------------------------------------------------------------------------------- comparisons


def first_difference(saved: Any, live: Any, where: str = "") -> str | None:
    """The first entry in which two JSON values differ, as ``name: saved ..., now ...``."""
    if isinstance(saved, dict) and isinstance(live, dict):
        for key in sorted({*saved, *live}):
            difference = first_difference(saved.get(key), live.get(key), f"{where}.{key}" if where else str(key))
            if difference:
                return difference
        return None
    return None if saved == live else f"{where}: {saved!r} in the checkpoint, {live!r} now"


def refuse_differences(saved: dict[str, Any], live: dict[str, Any], keys: Iterable[str]) -> None:
    """Raise where the checkpoint belongs to another model, optimizer, strategy or data set."""
    for key in keys:
        difference = first_difference(saved[key], live[key])
        if difference:
            raise ValueError(
                f"the checkpoint of step {saved['step']} is of another {key}: {difference}; "
                "resume with what the run was made with, or start another run"
            )


def log_changes(saved: dict[str, Any] | None, live: dict[str, Any]) -> None:
    """Print what was changed since the run was saved, where a change is allowed."""
    for part in ("fit", "config"):
        before, now = (saved or {}).get(part) or {}, live.get(part) or {}
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                log.info("resume: %s.%s changes from %r to %r", part, key, before.get(key), now.get(key))
