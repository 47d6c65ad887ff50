"""Small runs whose every number, log entry, event and file name is recorded in recorded.json."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jaxtrain as jt
from jaxtrain.datasets import StreamCopy
from tests.small import CopyGRU, Linear, LinesOf, Trace, copies, kill, rows, steps_of

Part = Callable[[Path, list[str]], jt.Result]


def part(
    strategy: Any, data: Callable[[], Any], steps: int, *more: Any, module=CopyGRU, resume="never", **options: Any
) -> Part:
    """One call of ``Fit.run``."""
    options = {"chunk": 3, "validate_every": 4, "log_every": 2, "loggers": (), "progress": False, **options}

    def run(folder: Path, events: list[str]) -> jt.Result:
        kept = jt.Checkpoint(every=4, keep_last=10, monitor=None)
        callbacks = [*more, kept, jt.loggers.JSONL(), jt.loggers.TensorBoard(), Trace(events)]
        fit = jt.Fit(strategy, max_steps=steps, callbacks=callbacks, run_dir=folder, **options)
        return fit.run(module(), data(), resume=resume)

    return run


def interrupted() -> jt.DataModule:
    """A signal arrives while the second validation reads its second batch."""
    asked = []

    def change(step: int, batch: Any) -> Any:
        asked.append(step)
        if len(asked) == 5:
            kill()
        return batch

    return jt.DataModule(LinesOf(6), LinesOf(3, change))


def quiet() -> jt.DataModule:
    return jt.DataModule(LinesOf(6), LinesOf(3))


def stream() -> jt.datasets.StreamDataModule:
    return jt.datasets.StreamDataModule(StreamCopy(2, 4), 4, 5, length=6)


def curriculum() -> jt.callbacks.Curriculum:
    return jt.callbacks.Curriculum([{"time_lag": lag} for lag in (3, 4)], "train/loss", 10.0, over=4, then="stay")


RUNS: dict[str, list[Part]] = {
    "bptt, resumed": [part("bptt", copies, 6), part("bptt", copies, 10, resume="last")],
    "drtrl in reverse": [part(jt.DRTRL(window=2, engine="reverse"), copies, 8)],
    "drtrl with a trace": [part(jt.DRTRL(window=2, engine="trace"), copies, 8)],
    "drtrl with carried states": [
        part(jt.DRTRL(stateful=True, update_every=2), stream, steps, resume=resume, validate_every=None)
        for steps, resume in ((5, "never"), (9, "last"))
    ],
    "pp_prop with noise": [part(jt.strategies.PPProp(decay=0.8), copies, 8, module=lambda: CopyGRU(noise=0.1))],
    "three seeds": [part(jt.DRTRL(), copies, 8, seeds=3)],
    "accumulated": [part(jt.BPTT(), copies, 10, accumulate=3)],
    "a curriculum": [part(jt.DRTRL(), copies, 12, curriculum())],
    "an interrupted validation": [
        part("bptt", interrupted, 10, module=Linear), part("bptt", quiet, 10, module=Linear, resume="last"),
    ],
}  # fmt: skip


def observe(name: str, folder: Path) -> dict[str, Any]:
    """What a run leaves: digests of every parameter and optimizer state, log entries, events, names of files."""
    events: list[str] = []
    for run in RUNS[name]:
        result = run(folder, events)
    last = folder / "checkpoints" / f"{steps_of(folder)[-1]:08d}" / "meta" / "metadata"
    return {
        "digest": result.digest,
        "digests": json.loads(last.read_text())["digests"],
        "log": rows(folder),
        "events": events,
        "files": files(folder),
    }


def files(folder: Path) -> list[str]:
    """Names of files, without the insides of Orbax's arrays; event files are numbered."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not re.search(r"checkpoints/\d+/(params|train)/|^\.lock$", name)]
    logs = [name for name in names if "tfevents" in name]
    return [f"{Path(name).parent}/events.{logs.index(name)}" if name in logs else name for name in names]


def machine() -> str:
    """A digest of what the last bits of a number depend on, beside the program: the processor and jaxlib."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("flags", "model", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([*kind, version("jaxlib")]).encode()).hexdigest()[:16]


def renamed(recorded: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded run in the words of today."""

    def word(text: str, table: Mapping[str, str]) -> str:
        for old, new in table.items():
            text = re.sub(old, new, text)
        return text

    return {
        "digest": recorded["digest"],
        "digests": {
            item: {word(name, names["tags"]): leaf for name, leaf in leaves.items()}
            for item, leaves in recorded["digests"].items()
        },
        "log": [{word(tag, names["tags"]): value for tag, value in row.items()} for row in recorded["log"]],
        "events": [word(event, names["events"]) for event in recorded["events"]],
        "files": sorted([*(word(name, names["files"]) for name in recorded["files"]), *names["new files"]]),
    }
