"""``jaxtrain verify-resume RECIPE``: compares a run that is killed and resumed repeatedly with an uninterrupted one."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cli.run_dirs import saved_steps
from ..errors import ConfigError
from ..utils.diff import first_difference
from ..utils.files import read_json
from .output import last_words

TIMED = ("time/", "throughput/", "memory/")
"""Tags that measure time or memory: they differ between any two runs."""
OWN = ("run-dir", "resume", "dry-run", "progress", "no-progress")
"""Options of a recipe that this command sets."""
KINDS = ("clock", "step", "save")
POLL = 0.003  # seconds between two checks of a running process


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments, verify, and print the verdict. Returns 1 if resume is not exact."""
    parser.epilog = (
        "All other options are passed to the recipe, e.g. --max-steps 500. Options that depend on the clock (max_time, "
        "a period in minutes) cannot be verified."
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="e.g. recipes/copy_gru.py")
    add("--kills", type=int, default=10, help="number of kills (default: %(default)s)")
    add("--kill-seed", type=int, default=0, help="seed of the moments; --seed is the recipe's (default: %(default)s)")
    add("--keep", type=Path, metavar="DIR", help="empty or new directory for the runs (default: a temporary one)")
    args, flags = parser.parse_known_args(argv)
    if not args.recipe.is_file():
        raise ConfigError(f"{args.recipe}: no such file; expected a recipe, e.g. recipes/copy_gru.py")
    if args.kills < 1:
        raise ConfigError(f"verify-resume --kills {args.kills}: expected a positive number")
    for flag in flags:
        name = flag.partition("=")[0]
        if name.startswith("--") and name[2:].replace("_", "-") in OWN:
            raise ConfigError(f"verify-resume has its own runs and directories: leave {name} out")
    if args.keep is None:
        folder = Path(tempfile.mkdtemp(prefix="verify-resume-"))
    else:
        folder = args.keep.expanduser().resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"verify-resume --keep {args.keep}: expected an empty or new directory")
    differences = verify(args.recipe, flags, args.kills, args.kill_seed, folder)
    for part, difference in differences.items():
        print(f"  {part:<18}" + (f"DIFFERS: {difference}" if difference else "equal"))
    if "TensorBoard" not in differences and (folder / "whole" / "tensorboard").is_dir():
        print("  TensorBoard: not compared (tensorboard is not installed)")
    exact = not any(differences.values())
    print("resume is exact" if exact else "resume is NOT exact")
    if args.keep is None and exact:
        shutil.rmtree(folder)
    else:
        print(f"the runs are in {folder}")
    return 0 if exact else 1


def verify(recipe: Path, flags: Sequence[str], kills: int, seed: int, folder: Path) -> dict[str, str | None]:
    """Train once without interruption, then with ``kills`` SIGKILLs at moments drawn from ``seed``, and compare.

    The kinds of moments alternate: a time, which may fall into the start-up; after a step has been logged; and while a
    checkpoint is being saved. If no run has continued from a checkpoint, the last kill comes after one. A run that
    finishes before all kills have happened is compared, and another one starts.
    All files are written below ``folder``.

    Returns:
        The first difference in each part of the outcome, or None.

    Raises:
        RuntimeError: A run failed, or no run could continue from a checkpoint.
    """
    rng = random.Random(seed)
    run_dir = folder / "whole"
    started = time.monotonic()
    with _started(recipe, flags, run_dir) as process:
        _require_success(process, run_dir, "the run without kills")
    seconds = time.monotonic() - started
    expected = outcome(run_dir)
    total = int(expected["result"]["step"])
    print(f"without kills: {total} steps in {seconds:.0f} s")
    seconds -= float(read_json(run_dir / "result.json")["seconds"]["compile"])  # later runs use the compilation cache
    differences: dict[str, str | None] = dict.fromkeys(expected)
    killed = runs = attempts = 0
    resumed = False
    while killed < kills:
        runs += 1
        run_dir = folder / f"killed-{runs}"
        finished = False
        while not finished:
            start = max(saved_steps(run_dir), default=0)
            resumed = resumed or 0 < start < total
            kind = KINDS[attempts % len(KINDS)] if resumed or killed != kills - 1 else "checkpoint"
            moment, due = _moment(kind, rng, seconds, last_step(run_dir), total)
            attempts += 1
            with _started(recipe, flags, run_dir) as process:
                if killed < kills and _wait(process, run_dir, due, rng.uniform(0.0, 0.05)):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed += 1
                    print(f"kill {killed}: {moment}, started at step {start}, logged to step {last_step(run_dir)}")
                else:
                    _require_success(process, run_dir, f"a run started at step {start}")
                    finished = True
        if not resumed and killed >= kills - 1:
            raise RuntimeError(
                "resume was not tested: no run continued from a checkpoint before the last step; save checkpoints more "
                "often (a recipe's --checkpoint-every), or train for more steps"
            )
        actual = outcome(run_dir)
        for part, value in expected.items():
            differences[part] = differences[part] or difference(value, actual.get(part))
    print(f"{kills} kills in {runs} run" + "s" * (runs > 1))
    return differences


# ---------------------------------------------------------------------------------------------------------- outcomes


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything that must not depend on kills, by part. Raises RuntimeError if it cannot be read."""
    from ..checkpoint.store import Store
    from ..utils.digests import leaf_digest

    result = read_json(run_dir / "result.json")
    names = ("status", "reason", "step", "train", "val", "best", "digest", "params")
    parts: dict[str, Any] = {"result": {name: result[name] for name in names}}
    store = Store(run_dir / "checkpoints", read_only=True)
    try:
        saved = store.latest_readable()
    finally:
        store.close()
    if saved is None:
        raise RuntimeError(f"{run_dir} has no checkpoint, so the restored state cannot be compared; save checkpoints")
    parts["parameters"] = {name: leaf_digest(leaf) for name, leaf in saved.params.items()}
    parts["training state"] = {name: leaf_digest(leaf) for name, leaf in saved.train.items()}
    parts["callback states"] = saved.meta["callbacks"]
    parts["data position"] = saved.meta["position"]
    if (run_dir / "metrics.jsonl").exists():
        entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        parts["metrics.jsonl"] = [
            {tag: value for tag, value in entry.items() if not tag.startswith(TIMED)} for entry in entries
        ]
    if (run_dir / "tensorboard").is_dir() and importlib.util.find_spec("tensorboard"):
        parts["TensorBoard"] = _points(run_dir / "tensorboard")
    return parts


def _points(directory: Path) -> dict[str, list[list[Any]]]:
    """Every (step, value) of every tag, as read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it logs every resume
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        tag: [[event.step, event.value] for event in reader.Scalars(tag)]
        for tag in sorted(reader.Tags()["scalars"])
        if not tag.startswith(TIMED)
    }


def difference(expected: Any, actual: Any) -> str | None:
    """The first entry in which two JSON values differ, and both values, or None. NaN equals NaN."""
    return first_difference(_comparable(expected), _comparable(actual), which=("without kills", "with kills"))


def _comparable(value: Any) -> Any:
    """The value with lists as tables by index, so that a difference names the entry, and NaN as text."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


# -------------------------------------------------------------------------------------------------- runs and moments


@contextmanager
def _started(recipe: Path, flags: Sequence[str], run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(recipe), *flags, "--run-dir", str(run_dir), "--resume", "last", "--no-progress"]
    with run_dir.with_suffix(".log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def _require_success(process: subprocess.Popen[bytes], run_dir: Path, what: str) -> None:
    """Wait for the process. Raises RuntimeError if it fails or leaves no result."""
    code, log = process.wait(), run_dir.with_suffix(".log")
    text = last_words(log.read_text(errors="replace"))
    if code:
        raise RuntimeError(f"{what} ended with exit code {code}: {text}; the full output is in {log}")
    if not (run_dir / "result.json").exists():
        raise RuntimeError(
            f"{what} left no result.json in {run_dir}: is this a jaxtrain recipe? Its output ends: {text}"
        )


def last_step(run_dir: Path) -> int:
    """The step of the last complete line of metrics.jsonl, or 0."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (ValueError, KeyError, TypeError):
        return 0


def _moment(
    kind: str, rng: random.Random, seconds: float, logged: int, total: int
) -> tuple[str, Callable[[Path, float], bool]]:
    """Describe a moment, and return a function ``due(run_dir, seconds since the start)``."""
    if kind == "clock":
        after = rng.uniform(0.0, seconds)
        return f"after {after:.2f} s", lambda run_dir, now: now >= after
    if kind == "step":
        step = rng.randint(logged + 1, max(logged + 1, total - 1))
        return f"past step {step}", lambda run_dir, now: last_step(run_dir) >= step
    if kind == "checkpoint":
        return "after a checkpoint", lambda run_dir, now: 0 < max(saved_steps(run_dir), default=0) < total
    clean = False  # an earlier kill may have left an incomplete save, which this run removes before it saves

    def saves(run_dir: Path, now: float) -> bool:
        nonlocal clean
        saving = _is_saving(run_dir)
        clean = clean or not saving
        return saving and clean

    return "in a save", saves


def _is_saving(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def _wait(process: subprocess.Popen[bytes], run_dir: Path, due: Callable[[Path, float], bool], delay: float) -> bool:
    """Return True ``delay`` seconds after the moment is due, False if the process ends earlier."""
    started = time.monotonic()
    while process.poll() is None:
        if due(run_dir, time.monotonic() - started):
            time.sleep(delay)
            return process.poll() is None
        time.sleep(POLL)
    return False
