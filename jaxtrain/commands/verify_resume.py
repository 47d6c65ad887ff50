"""``jaxtrain verify-resume RECIPE``: a run killed at random moments and gone on with, against one left alone."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.run_dirs import saved_steps
from ..errors import ConfigError
from ..utils.files import read_json

TIMED = ("time/", "throughput/", "memory/")
"""Tags that measure time or memory: no two runs agree on them."""
OWN = ("run-dir", "resume", "dry-run", "progress", "no-progress")
"""Options of a recipe that are decided here."""
NO_TENSORBOARD = "TensorBoard: not compared (tensorboard is not installed)"
KINDS = ("clock", "step", "save")
POLL = 0.003  # seconds between two looks at a run


@dataclass
class Kill:
    """``moment``: when it was to come; ``began``: the step that the run had gone on from (0: its start); ``reached``:
    the last row of its record."""

    moment: str
    began: int
    reached: int


@dataclass
class Verdict:
    """``parts``: what was compared -> the first difference, or None. ``ended``: how many runs so many kills took."""

    parts: dict[str, str | None]
    kills: list[Kill]
    ended: int
    left_out: tuple[str, ...] = ()
    """Lines that say what was not compared, and why."""

    @property
    def equal(self) -> bool:
        return not any(self.parts.values())


def check(recipe: Path, flags: Sequence[str], kills: int) -> None:
    """Raises ConfigError for what cannot be verified."""
    if not recipe.is_file():
        raise ConfigError(f"{recipe}: no such file; expected a recipe, as recipes/copy_gru.py")
    if kills < 1:
        raise ConfigError(f"verify-resume --kills {kills}: expected a positive number")
    for flag in flags:
        name = flag.partition("=")[0]
        if name.startswith("--") and name[2:].replace("_", "-") in OWN:
            raise ConfigError(f"verify-resume has runs and directories of its own: leave {name} out")


def verify(
    recipe: Path, flags: Sequence[str], kills: int, seed: int, folder: Path, say: Callable[[str], Any]
) -> Verdict:
    """Train once undisturbed, then with ``kills`` SIGKILLs at moments drawn from ``seed``, and compare.

    They come by turns at a moment by the clock, which may be one of the start-up, once the record has passed a step,
    and while a checkpoint is being saved. A run that ends before all kills have come is compared, and another one is
    begun. Everything is written below ``folder``. Raises RuntimeError where a run ends by itself with an exit code that
    is not 0.
    """
    rng = random.Random(seed)
    whole = folder / "whole"
    began = time.monotonic()
    with _started(recipe, flags, whole) as process:
        _expect_0(process, whole, "the run without kills")
    seconds = time.monotonic() - began
    truth = outcome(whole)
    total = int(truth["result"]["step"])
    say(f"without kills: {total} steps in {seconds:.0f} s")
    seconds -= float(read_json(whole / "result.json")["seconds"]["compile"])  # the programs are kept by now
    done, parts, ended, tries = [], {}, 0, 0
    while len(done) < kills:
        ended += 1
        run_dir = folder / f"killed-{ended}"
        over = False
        while not over:
            steps = saved_steps(run_dir)
            kind, hit = _moment(KINDS[tries % len(KINDS)], rng, seconds, last_row(run_dir), total)
            tries += 1
            with _started(recipe, flags, run_dir) as process:
                if len(done) < kills and _wait(process, run_dir, hit):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    done.append(Kill(kind, steps[-1] if steps else 0, last_row(run_dir)))
                    say(f"kill {len(done)}: {kind}, begun at step {done[-1].began}, recorded to {done[-1].reached}")
                else:
                    _expect_0(process, run_dir, f"a run begun at step {steps[-1] if steps else 0}")
                    over = True
        other = outcome(run_dir)
        for part in truth:
            parts[part] = parts.get(part) or first_difference(truth[part], other.get(part))
    unread = (whole / "tensorboard").is_dir() and "TensorBoard" not in truth
    return Verdict(parts, done, ended, (NO_TENSORBOARD,) if unread else ())


def table(verdict: Verdict) -> str:
    """A line for each thing compared."""
    lines = [f"{len(verdict.kills)} kills in {verdict.ended} run" + "s" * (verdict.ended > 1)]
    for part, difference in verdict.parts.items():
        lines.append(f"  {part:<18}" + ("equal" if difference is None else f"DIFFERS: {difference}"))
    lines += [f"  {line}" for line in verdict.left_out]
    lines.append("resume is exact" if verdict.equal else "resume is NOT exact")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- what a run came to


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that must not depend on kills, in parts that can be compared. Raises RuntimeError for what cannot be read."""
    from ..checkpoint.store import Store
    from ..utils.digests import leaf_digest

    result = read_json(run_dir / "result.json")
    names = ("status", "reason", "step", "train", "val", "best", "digest", "params")
    found: dict[str, Any] = {"result": {name: result[name] for name in names}}
    store = Store(run_dir / "checkpoints", read_only=True)
    try:
        saved = store.latest_readable()
    finally:
        store.close()
    if saved is None:
        raise RuntimeError(f"{run_dir} holds no checkpoint: what a resume restores cannot be compared")
    found["parameters"] = {name: leaf_digest(leaf) for name, leaf in saved.params.items()}
    found["training state"] = {name: leaf_digest(leaf) for name, leaf in saved.train.items()}
    found["callback states"] = saved.meta["callbacks"]
    found["data position"] = saved.meta["position"]
    if (run_dir / "metrics.jsonl").exists():
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        found["metrics.jsonl"] = [_untimed(json.loads(line)) for line in lines]
    if (run_dir / "tensorboard").is_dir() and importlib.util.find_spec("tensorboard"):
        found["TensorBoard"] = _points(run_dir / "tensorboard")
    return found


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {tag: value for tag, value in row.items() if not tag.startswith(TIMED)}


def _points(directory: Path) -> dict[str, list[list[Any]]]:
    """Every (step, value) of every tag, as TensorBoard's own reader shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every resume
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        tag: [[event.step, None if math.isnan(event.value) else event.value] for event in reader.Scalars(tag)]
        for tag in sorted(reader.Tags()["scalars"])
        if not tag.startswith(TIMED)
    }


def first_difference(whole: Any, killed: Any, where: str = "") -> str | None:
    """The first entry in which two JSON values differ, and both values. NaN equals NaN."""
    if isinstance(whole, dict) and isinstance(killed, dict):
        names = ((key, f"{where}.{key}" if where else key) for key in {**whole, **killed})
        pairs: Any = ((name, whole.get(key), killed.get(key)) for key, name in names)
    elif isinstance(whole, list) and isinstance(killed, list):
        if len(whole) != len(killed):
            return f"{where + ': ' if where else ''}{len(whole)} entries without kills, {len(killed)} with"
        pairs = ((f"{where}[{i}]", *pair) for i, pair in enumerate(zip(whole, killed, strict=True)))
    else:
        both_nan = isinstance(whole, float) and isinstance(killed, float) and math.isnan(whole) and math.isnan(killed)
        return None if whole == killed or both_nan else f"{where}: {whole!r} without kills, {killed!r} with"
    return next((found for name, a, b in pairs if (found := first_difference(a, b, name))), None)


# ------------------------------------------------------------------------------------------------- runs and moments


@contextmanager
def _started(recipe: Path, flags: Sequence[str], run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(recipe), *flags, "--run-dir", str(run_dir), "--resume", "last", "--no-progress"]
    with run_dir.with_suffix(".log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def _expect_0(process: subprocess.Popen[bytes], run_dir: Path, what: str) -> None:
    if code := process.wait():
        log = run_dir.with_suffix(".log")
        raise RuntimeError(f"{what} ended with exit code {code}: {_last_words(log)}; more in {log}")
    if not (run_dir / "result.json").exists():
        said = _last_words(run_dir.with_suffix(".log"))
        raise RuntimeError(f"{what} left no result.json in {run_dir}: is this a recipe of jaxtrain? It said: {said}")


def last_row(run_dir: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 without one."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (ValueError, KeyError, TypeError):
        return 0


def _moment(
    kind: str, rng: random.Random, seconds: float, row: int, total: int
) -> tuple[str, Callable[[Path, float], bool]]:
    """A moment in words, and what says whether it has come: ``hit(run_dir, seconds since the start)``."""
    if kind == "clock":
        after = rng.uniform(0.0, seconds)
        return f"after {after:.2f} s", lambda run_dir, now: now >= after
    late = rng.uniform(0.0, 0.05)
    if kind == "step":
        step = rng.randint(row + 1, max(row + 1, total - 1))

        def passed(run_dir: Path, now: float) -> bool:
            if last_row(run_dir) < step:
                return False
            time.sleep(late)
            return True

        return f"past step {step}", passed
    clear = False  # what an earlier kill left half saved is not this run's, which removes it first

    def saves(run_dir: Path, now: float) -> bool:
        nonlocal clear
        saving = _saving(run_dir)
        clear = clear or not saving
        if saving and clear:
            time.sleep(late)
        return saving and clear

    return "in a save", saves


def _saving(run_dir: Path) -> bool:
    folder = run_dir / "checkpoints"
    try:
        return any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())
    except FileNotFoundError:
        return False


def _wait(process: subprocess.Popen[bytes], run_dir: Path, hit: Callable[[Path, float], bool]) -> bool:
    """True when the moment has come, False when the process ended before it."""
    began = time.monotonic()
    while process.poll() is None:
        if hit(run_dir, time.monotonic() - began):
            return process.poll() is None
        time.sleep(POLL)
    return False


def _last_words(log: Path) -> str:
    """The last line, or all that a traceback ends in: the error, and its notes below."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    inside = [number for number, line in enumerate(lines) if line.startswith("  ")]
    begin = len(lines) - 1 if lines[-1].startswith("error: ") or not inside else inside[-1] + 1
    return "; ".join(map(str.strip, lines[begin:] or lines[-1:]))
