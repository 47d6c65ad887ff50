"""Decides where a run starts: at step 0, at its own last checkpoint, or as a fork of another run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..callbacks.dispatch import Callbacks
from ..core.state import flatten, signature
from ..data.eval_loader import EvalLoader
from ..data.iterator import DataIterator, DataModule, identity_of
from ..distributed import processes
from ..engine.program import Program
from ..strategies import Strategy
from ..utils.diff import first_difference, require_equal
from ..utils.digests import digest, json_digest
from ..utils.files import RunLock, as_json, read_json
from ..utils.logging import log
from .migration import READABLE, SCHEMA, upgrade_config, upgrade_metadata
from .store import Saved, Store

CHECKPOINTS = "checkpoints"
FOLDERS = (CHECKPOINTS, "tensorboard", "figures")
"""Subdirectories of a run directory."""


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


def absolute(path: str | Path) -> Path:
    """The absolute path. Raises ValueError if symbolic links form a loop."""
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: cannot be followed ({error}); give another path") from None


@contextmanager
def opened(run_dir: str | Path | None, resume: str | int | Path, *, write: bool) -> Iterator[Origin]:
    """Call ``locate`` with the run directory locked before it is read.

    ``write=False`` neither locks nor creates anything. If the run is forked, only the fork stays locked: the original
    run is only read, and may be in progress. With several processes, the first one locks, after the others have read
    the directory.

    Raises:
        ValueError: The directory cannot be used, or the processes disagree.
        FileExistsError: The directory already holds a run, or a file or folder is in the way.
        RuntimeError: Another process uses the directory.
    """
    if not processes.is_first():
        origin = locate(run_dir, resume)
        processes.barrier()
        _refuse_other(origin, write)
        yield origin
        return
    processes.barrier()
    with ExitStack() as locks:
        home = _home(run_dir, resume)
        if write:
            _refuse_inside(home)
            locks.enter_context(RunLock(home))
            _refuse_in_the_way(home)
        origin = locate(run_dir, resume)
        if write and origin.run_dir != home:
            locks.close()
            _refuse_inside(origin.run_dir)
            locks.enter_context(RunLock(origin.run_dir))
            if origin.run_dir is not None and _holds_run(origin.run_dir):  # another process forked it first
                raise FileExistsError(f"run directory {origin.run_dir} holds a run by now: start again")
        _refuse_other(origin, write)
        yield origin


def _refuse_other(origin: Origin, write: bool) -> None:
    """Raise ValueError if the processes would continue from different places."""
    kept = {"restarted": origin.restarted, "explicit": origin.explicit, "forked": origin.forked}
    step = None if origin.saved is None else origin.saved.step
    own = {"run directory": origin.run_dir, "checkpoint": step, "dry run": not write, **kept}
    require_equal(own, "all need the same options, and one disk for the run directory")


def _refuse_inside(run_dir: Path | None) -> None:
    """Raise ValueError for a directory inside the checkpoints of a run, which would be deleted with them."""
    for path in () if run_dir is None else (run_dir, *run_dir.parents):
        if path.name == CHECKPOINTS and (path.parent / "config.json").exists() and (path.parent / ".lock").exists():
            raise ValueError(
                f"run directory {run_dir} lies among the checkpoints of the run {path.parent}; choose another"
            )


def _refuse_in_the_way(run_dir: Path | None) -> None:
    """Raise FileExistsError, before anything is changed, if a file is in the place of a folder or vice versa."""
    if run_dir is None:
        return
    for name in ("config.json", "result.json", "metrics.jsonl", *FOLDERS):
        path = run_dir / name
        if path.exists() and path.is_dir() != (name in FOLDERS):
            is_a, wanted = ("file", "folder") if name in FOLDERS else ("folder", "file")
            raise FileExistsError(f"{path} is a {is_a}, and a run keeps a {wanted} there: move it away")


def require_same_run(
    record: dict[str, Any], callbacks: Callbacks, program: Program, iterator: DataIterator, val: EvalLoader | None
) -> None:
    """Raise ValueError if several processes would not train the same run.

    Compared are the recorded configuration, the data, and the initial values. A callback of rank "record", such as a
    logger or a progress bar, may exist in the first process only.
    """
    if processes.count() == 1:
        return
    watching = [name for name, callback in callbacks.keys().items() if callback.rank != "record"]
    params, train = program.signature()
    first, examples = flatten({"batch": program.example}), [] if val is None else val.examples
    require_equal(
        {
            **{key: value for key, value in record.items() if key != "command"},
            "fit": {**record["fit"], "callbacks": watching},
            "model": params,
            "optimizer": train,
            "data": {**record["data"], "epoch": iterator.length, "first batch": digest(first)},
            "val data": {
                "batches": None if val is None else val.length,
                "shapes": [signature(flatten({"batch": batch})) for batch in examples],
            },
        }
    )
    params, train = program.state()  # may gather from all processes, so shapes must agree first
    require_equal({"initial values": digest({**params, **train})})


def _home(run_dir: str | Path | None, resume: str | int | Path) -> Path | None:
    """The directory in which the run continues unless it is forked."""
    if run_dir is not None:
        return absolute(run_dir)
    path = absolute(str(resume))
    there = _is_checkpoint(path) and path.with_name(f"{int(path.name):08d}").is_dir()
    return path.parent.parent if there else None


def _is_checkpoint(path: Path) -> bool:
    """Return True if the path ends in checkpoints/STEP. On disk, STEP is padded with zeros."""
    return path.name.isdecimal() and path.parent.name == CHECKPOINTS


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
    word = str(resume)
    if resume is None or isinstance(resume, bool):
        meant = "last" if resume else "never"
        raise ValueError(
            f"resume={resume}: expected 'never', 'last', 'best', a step, or a path; did you mean {meant!r}?"
        )
    if word == "never":
        if own is not None and _holds_run(own):
            raise FileExistsError(
                f"run directory {own} holds a run: resume='last' continues it, or choose another run_dir"
            )
        return Origin(own)
    if word == "last":
        return _last(_required(own, word))
    if word == "best" or word.isdecimal():
        return _from_step(_required(own, word), word, None)
    path = absolute(word)
    if not _is_checkpoint(path):
        raise ValueError(
            f"resume={word!r}: expected 'never', 'last', 'best', a step, or a path that ends in {CHECKPOINTS}/<step>"
        )
    source = path.parent.parent
    return _from_step(source, path.name, None if own in (None, source) else own)


def read_checkpoint(where: str | Path, word: str = "last") -> Saved:
    """Read a checkpoint.

    Args:
        where: ``<run>/checkpoints/<step>``, or a run directory.
        word: For a run directory: "last" (newest readable checkpoint), "best", or a step.

    Raises:
        FileNotFoundError: There is no such checkpoint.
    """
    path = absolute(where)
    if _is_checkpoint(path):
        path, word = path.parent.parent, path.name
    config = _config(path)
    if word != "last":
        return _choose(path, word, config)[0]
    saved = _newest(path, config)
    if saved is None:
        raise FileNotFoundError(f"no checkpoint in {path}: expected a run directory or <run>/{CHECKPOINTS}/<step>")
    return saved


def chosen(checkpoint: str | int | Path, run_dir: Path | None) -> Saved:
    """Read the checkpoint that ``Fit.validate`` and similar methods ask for.

    Args:
        checkpoint: "last", "best" or a step of the run in ``run_dir``, or a path.
        run_dir: Run directory, or None.

    Raises:
        ValueError: ``run_dir`` is needed and None.
    """
    word = str(checkpoint)
    if word not in ("last", "best") and not word.isdecimal():
        return read_checkpoint(word)
    if run_dir is None:
        raise ValueError(f"checkpoint={checkpoint!r} needs a run directory: Fit(run_dir=...)")
    return read_checkpoint(run_dir, word)


def _required(run_dir: Path | None, word: str) -> Path:
    if run_dir is None:
        raise ValueError(f"resume={word!r} needs a run directory: Fit(run_dir=...)")
    return run_dir


def _holds_run(run_dir: Path) -> bool:
    return (run_dir / "config.json").exists() or (run_dir / CHECKPOINTS).exists()


@contextmanager
def _store(run_dir: Path, config: dict[str, Any] | None = None) -> Iterator[Store]:
    """Open the checkpoints of a run read-only, so that the run may be in progress."""
    kept = ((config or {}).get("fit") or {}).get("checkpoint") or {}
    store = Store(run_dir / CHECKPOINTS, mode=kept.get("mode", "min"), read_only=True)
    try:
        yield store
    finally:
        store.close()


def _config(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    missing = [key for key in ("fit", "strategy", "data") if not isinstance(config.get(key), dict)]
    if missing:
        raise RuntimeError(f"{path} is damaged: it has no table {missing[0]!r}; restore it, or start another run")
    return config


def run_key(config: dict[str, Any], schema: int = SCHEMA) -> str:
    """Digest of the parts of config.json that cannot change on resume; it identifies the run of a checkpoint."""
    config, fit = config if schema == 1 else upgrade_config(config) or {}, config["fit"]
    return json_digest({"seeds": [fit["seed"], fit.get("seeds")], **{key: config[key] for key in ("strategy", "data")}})


def _newest(run_dir: Path, config: dict[str, Any] | None) -> Saved | None:
    if not (run_dir / CHECKPOINTS).is_dir():
        return None
    with _store(run_dir) as store:
        saved = store.latest_readable()
        return None if saved is None else _understood(saved, run_dir, config)


def _understood(saved: Saved, run_dir: Path, config: dict[str, Any] | None) -> Saved:
    """Return ``saved`` with the metadata of this release.

    Raises ValueError if its schema is unknown to this release or if it belongs to another run.
    """
    if (schema := saved.meta.get("schema")) not in READABLE:
        wrote = (saved.meta.get("versions") or {}).get("jaxtrain", "another release")
        raise ValueError(
            f"the checkpoint of step {saved.step} has schema {schema!r}, and this jaxtrain reads {SCHEMA}: it was "
            f"written by jaxtrain {wrote}; install that one, or start another run"
        )
    if config is not None and saved.meta.get("run") not in (None, run_key(config, schema)):
        raise ValueError(
            f"the checkpoint of step {saved.step} in {run_dir} is of another run than config.json there (another seed, "
            "strategy or data): put its own back, or remove it"
        )
    return replace(saved, meta=upgrade_metadata(saved.meta))


def _last(run_dir: Path) -> Origin:
    if not _holds_run(run_dir):
        log.info("resume: %s holds no run yet, starting fresh", run_dir)
        return Origin(run_dir)
    config = _config(run_dir)
    saved = _newest(run_dir, config)
    if saved is None:
        _refuse_lost(run_dir)
        log.info("resume: %s has no checkpoint yet, starting again at step 0; its log rows are cut", run_dir)
    else:
        log.info("resume: step %d of %s", saved.step, run_dir)
    return Origin(
        run_dir, saved, restarted=saved is None, config=upgrade_config(config), parent=(config or {}).get("parent")
    )


def _refuse_lost(run_dir: Path) -> None:
    """Raise FileNotFoundError if there is no checkpoint although result.json reports one."""
    path = run_dir / "result.json"
    result = read_json(path) if path.exists() else {}
    if result.get("saved") is True:
        raise FileNotFoundError(
            f"{run_dir} has no checkpoint, and its result.json says that step {result.get('step')} was saved: put the "
            "checkpoints back, or choose another run_dir (without result.json it starts again at step 0)"
        )


def _choose(source: Path, word: str, config: dict[str, Any] | None) -> tuple[Saved, bool]:
    """The checkpoint of a run that ``word`` names, and whether it is the run's last."""
    if not (source / CHECKPOINTS).is_dir():
        raise FileNotFoundError(f"{word!r}: {source} holds no checkpoints")
    with _store(source, config) as store:
        steps = store.steps()
        step = store.best_step() if word == "best" else int(word)
        if step is None:
            raise FileNotFoundError(f"'best': no checkpoint of {source} carries a score; there are steps {steps}")
        if step not in steps:
            raise FileNotFoundError(f"{word!r}: {source} holds no checkpoint of step {step}; there are {steps}")
        return _understood(store.restore(step), source, config), step == steps[-1]


def _from_step(source: Path, word: str, target: Path | None) -> Origin:
    """Continue a run from its last checkpoint, or fork it from an earlier one, so that nothing is overwritten."""
    config = _config(source)
    saved, is_last = _choose(source, word, config)
    if is_last and target is None:
        log.info("resume: step %d of %s, its last: the run goes on there", saved.step, source)
        return Origin(source, saved, config=upgrade_config(config), parent=(config or {}).get("parent"), explicit=True)
    target = target or _free(source.with_name(f"{source.name}-from-{saved.step}"))
    if _holds_run(target):
        raise FileExistsError(f"run directory {target} holds a run: a fork of {source} needs an empty one")
    log.info("resume: step %d of %s goes on as a fork in %s", saved.step, source, target)
    parent = {"run_dir": source.name, "step": saved.step}
    return Origin(target, saved, config=upgrade_config(config), parent=parent, explicit=True, forked=True)


def _free(path: Path) -> Path:
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_name(f"{path.name}-{n}")
    return candidate


# ------------------------------------------------------------------------------------------------- comparisons


def describe(strategy: Strategy, data: DataModule, callbacks: Callbacks) -> dict[str, Any]:
    """Description of strategy and data for the metadata of checkpoints, as it reads back from JSON.

    Raises:
        TypeError: The description, the data's task or the state of a callback is not JSON and could not be saved.
    """
    as_json(data.task, f"{type(data).__name__}.task")
    for key, callback in callbacks.keys().items():
        with suppress(AttributeError):  # its on_fit_start has not created the state yet
            as_json(callback.state(), f"the state of callback {key}")
    return {
        "strategy": as_json(strategy.config(), f"the configuration of {type(strategy).__name__}"),
        "data": as_json(identity_of(data), f"{type(data).__name__}.identity()"),
    }


def refuse_differences(
    saved: dict[str, Any], live: dict[str, Any], keys: Iterable[str],
    advice: str = "resume with what the run was made with, or start another run",
) -> None:  # fmt: skip
    """Raise ValueError if the checkpoint belongs to another model, optimizer or strategy, or to other data."""
    for key in keys:
        difference = first_difference(saved[key], live[key])
        if difference:
            other = "other data" if key == "data" else f"another {key}"
            raise ValueError(f"the checkpoint of step {saved['step']} is of {other}: {difference}; {advice}")


def log_changes(saved: dict[str, Any] | None, live: dict[str, Any]) -> None:
    """Log which settings were changed since the run was saved, among those that may change."""
    for part in ("fit", "config", "optimizer"):
        before, now = (saved or {}).get(part) or {}, live.get(part) or {}
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                name = f"{part}.{key}" if key else part  # a single optimizer has no label
                log.info("resume: %s changes from %r to %r", name, before.get(key), now.get(key))
