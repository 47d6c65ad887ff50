"""The walk: a fault at every call that changes a run's directory, one trial per call, each resumed to the end.

python -m tests.faults.walk --out walk.jsonl             every trial (continues where an earlier walk stopped)
python -m tests.faults.walk --out walk.jsonl --shard 1/4 a quarter of them
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401  (compiled programs are kept)
from tests.faults.library import Call, Fault, Server, missing, server
from tests.faults.tiny import STEPS

ENDS = {0: "continued", 1: "ended with an error", -9: "killed"}


def plan(calls: list[Call]) -> list[Fault]:
    """A kill before every call, a kill in the middle of every write, and both errors at the first and the last call of
    each sort, which is a function and a kind of file."""
    numbers = range(1, len(calls) + 1)
    faults = [Fault("kill", n, n) for n in numbers]
    faults += [Fault("half", n, n) for n, call in zip(numbers, calls, strict=True) if "write" in call.name]
    sorts = Counter((call.name, call.kind()) for call in calls)
    for error in ("ENOSPC", "EIO"):
        for (name, kind), count in sorts.items():
            faults += [Fault(error, n, n, name, kind) for n in sorted({1, count})]
    return faults


def differences(reference: dict[str, Any], other: dict[str, Any] | None, more: bool = False) -> list[str]:
    """The parts in which two runs came to something else, with both values; ``more``: the other may hold more."""
    if other is None:
        return ["nothing came of it"]
    if more:
        kept = {
            part: {step: other[part].get(step) for step in reference[part]} for part in ("arrays", "meta", "metrics")
        }
        names = sorted({*reference["checkpoints"]} & {*other["checkpoints"]})
        other = {**other, **kept, "checkpoints": names}
    return [f"{part}: {reference[part]} became {other[part]}" for part in reference if reference[part] != other[part]]


def attempt(served: Server, folder: Path, fault: Fault, reference: dict[str, Any]) -> dict[str, Any]:
    """One trial: ``wrong`` says what broke a promise, and is empty where none was broken."""
    directory = folder / "run"
    shutil.rmtree(directory, ignore_errors=True)
    broken = served.run(directory, fault)
    code, text, wrong = broken["code"], broken["text"], []
    reached = len(broken["calls"]) >= fault.first
    said = [line for line in text.splitlines() if line.startswith(("warning: ", "error: "))]
    hit = broken["calls"][fault.first - 1] if reached else Call("none", "")
    if not reached:  # TensorStore's threads do not make the same number of calls every time
        wrong += differences(reference, broken["came_to"])
    elif fault.mode in ("kill", "half"):
        if code != -9:
            wrong.append(f"it was not killed: {code}, {text[-800:]}")
    elif code == 0:  # it went on as if nothing had been: then nothing may be missing
        # Checkpoints that were to be removed may stay, with a warning.
        old = hit.path.startswith("checkpoints/.deleted") and bool(said)
        wrong += differences(reference, broken["came_to"], more=old)
    elif code != 1 or not said:
        wrong.append(f"no clear end: {code}, {text[-800:]}")
    if "Traceback" in text or "Error: Event loop" in text:
        wrong.append(f"noise: {text[-3000:]}")
    if code != 0:
        # Where the last save was committed and the old checkpoint not yet removed, nothing is left to do: it stays.
        committed = (directory / "checkpoints" / f"{STEPS:08d}").is_dir()
        resumed = served.run(directory)
        if resumed["code"] != 0:
            wrong.append(f"it cannot be resumed: {resumed['code']}, {resumed['text'][-800:]}")
        else:
            wrong += differences(reference, resumed["came_to"], more=committed)
    return {"fault": fault.key(), "call": hit.name, "path": hit.path, "code": code, "said": said, "wrong": wrong}


def reference(served: Server, folder: Path) -> tuple[dict[str, Any], list[Call]]:
    """What the run comes to when nothing happens, and its calls."""
    served.run(folder / "first")  # compiles
    whole = served.run(folder / "whole", Fault("count"))
    assert whole["code"] == 0, whole["text"]
    assert differences(whole["came_to"], served.run(folder / "again", Fault("count"))["came_to"]) == []
    assert any(call.name == "unlink" and call.path.startswith("checkpoints/00000004") for call in whole["calls"])
    return whole["came_to"], whole["calls"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("walk.jsonl"), help="one line a trial; trials in it are done")
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th trial, from the i-th on")
    parser.add_argument("--modes", default="kill,half,ENOSPC,EIO")
    args = parser.parse_args()
    if why := missing():
        parser.error(why)
    shard, shards = map(int, args.shard.split("/"))
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    known = {trial["fault"] for trial in done}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, server(Path(temporary)) as served:
        folder = Path(temporary)
        truth, calls = reference(served, folder)
        faults = [fault for fault in plan(calls) if fault.mode in args.modes.split(",")][shard - 1 :: shards]
        print(f"a run makes {len(calls)} changing calls; {len(faults)} trials, {len(known)} of them done", flush=True)
        with args.out.open("a") as out:
            for fault in faults:
                if fault.key() in known:
                    continue
                trial = attempt(served, folder, fault, truth)
                done.append(trial)
                print(json.dumps(trial), file=out, flush=True)
                if trial["wrong"]:
                    print(f"{trial['fault']} ({trial['path']}): {'; '.join(trial['wrong'])[:600]}", flush=True)
    for mode in args.modes.split(","):
        trials = [trial for trial in done if trial["fault"].startswith(f"{mode} ")]
        ends = Counter(ENDS.get(trial["code"], str(trial["code"])) for trial in trials)
        lost = sum(bool(trial["wrong"]) for trial in trials)
        never = sum(trial["call"] == "none" for trial in trials)
        print(f"{mode:<7}{len(trials)} trials, {dict(ends)}, {never} calls never made, {lost} lost")
    print(f"{time.monotonic() - began:.0f} s")
    return int(any(trial["wrong"] for trial in done))


if __name__ == "__main__":
    sys.exit(main())
