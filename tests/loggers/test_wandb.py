"""WandB, offline: its files are read back with W&B's messages and a reader of their frames written here."""

import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxtrain
from jaxtrain.cli.failures import guarded
from jaxtrain.loggers import JSONL, WandB

MISSING = "the extra wandb is not installed: pip install 'jaxtrain[wandb]'"
installed = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason=MISSING)
BLOCK = 2**15


def records(path):
    """The records of a .wandb file: a header of 7 bytes, then blocks of frames (crc, length, kind) as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def read(run_dir, killed=0):
    """The starts of a run in order: id, configuration, history as {step: {tag: value}}, and summary.

    ``killed``: the number of first starts that have no end.
    """
    starts = []
    for path in sorted(Path(run_dir).glob("wandb/offline-run-*/*.wandb")):
        start = {"id": path.stem.removeprefix("run-"), "config": {}, "history": {}, "summary": {}}
        found = list(records(path))
        while len(starts) >= killed and not (
            found and found[-1].HasField("exit")
        ):  # a process of W&B writes it in the background
            time.sleep(0.01)
            found = list(records(path))
        for record in found:
            start["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            start["summary"] |= values(record.summary.update)
            if row := values(record.history.item):
                own = {tag: value for tag, value in row.items() if not tag.startswith("_")}
                start["history"].setdefault(int(row["_step"]), {}).update(own)
        starts.append(start)
    return starts


def values(items):
    """Values by key; images and histograms are tables."""
    found = {}
    for item in items:
        key, *inner = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        found[key] = {**found.get(key, {}), inner[0]: value} if inner else value
    return found


def begun(make_run, restored=None):
    run = make_run(JSONL(), WandB("copying", "offline", name="one"), restored=restored)
    run.callbacks("on_fit_start", run)
    if restored is not None:
        run.callbacks("on_restore", run)
    return run


def rows(run, *steps):
    for step in steps:
        run.step = step
        run.callbacks("on_log", run, {"step": step, "train/loss": 1 / 3 + step})


@installed
def test_a_run_that_goes_on_from_an_earlier_step_shows_each_step_once(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = begun(make_run)
    rows(first, 10, 20, 30)
    first.callbacks("on_fit_end", first, "failed")
    second = begun(make_run, restored=20)
    rows(second, 30, 40)
    seeds = {"step": 50, "val/loss": None, "nonfinite": ["val/loss"], "seeds/val/loss": [1.0, None, 3.0]}
    second.step = 50
    second.callbacks("on_log", second, seeds)
    figure = Figure(figsize=(1, 1), dpi=50)
    second.callbacks("on_figure", second, "a figure", figure)
    second.callbacks("on_histogram", second, "weights", np.arange(100.0))
    second.callbacks("on_fit_end", second, "stopped")
    _, start = read(tmp_path)
    own = [{tag: value for tag, value in row.items() if "/" in tag} for row in start["history"].values()]
    assert own[:4] == [{"train/loss": 1 / 3 + step} for step in (10, 20, 30, 40)]
    assert list(start["history"]) == [10, 20, 30, 40, 50]
    last = start["history"][50]
    assert math.isnan(float(last["val/loss"]))
    assert (last["seeds/val/loss/min"], last["seeds/val/loss/max"]) == (1.0, 3.0)
    assert last["a figure"]["_type"] == "image-file" and sum(last["weights"]["values"]) == 100
    assert start["config"]["config"] == {"lr": 0.01, "clip": None, "cell": {"kind": "gru", "sizes": [8, 8]}}
    assert start["summary"]["status"] == "stopped"
    assert {start["id"] for start in read(tmp_path)} == {(tmp_path / "wandb" / "id").read_text()}


def test_a_server_is_sent_only_what_it_lacks(make_run, tmp_path, monkeypatch):
    """Stands for W&B with a server: a resumed run begins after the last step there."""
    sent, asked, made = [], [], []

    class Online:
        def __init__(self, step):
            self.step, self.summary = step, {}
            made.append(self)

        def log(self, values, step):
            sent.append((step, values))

        def finish(self, exit_code):
            sent.append(exit_code)

    def init(**options):
        asked.append(options)
        return Online(31 if len(asked) > 1 else 0)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def begin(restored=None):
        run = make_run(JSONL(), WandB("copying"), restored=restored)
        run.callbacks("on_fit_start", run)
        if restored is not None:
            run.callbacks("on_restore", run)
        return run

    rows(begin(), 10, 20, 30)
    rows(begin(20), 30, 40)
    assert [step for step, _ in sent] == [10, 20, 30, 40]
    tested = begin(30)  # the run had ended, and is now tested
    tested.callbacks("on_log", tested, {"step": 30, "test/loss": 0.5})
    assert len(sent) == 4 and made[-1].summary == {"test/loss": 0.5}
    assert asked[0]["id"] == asked[1]["id"] and asked[1]["resume"] == "allow" and asked[1]["dir"] == tmp_path
    with pytest.raises(ValueError, match="WandB needs a run directory"):
        WandB().on_fit_start(SimpleNamespace(run_dir=None))  # pyright: ignore


def test_without_the_package_one_line_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert guarded(lambda: bool(WandB())) == 1
    assert capsys.readouterr().err == "error: this needs the package wandb: pip install 'jaxtrain[wandb]'\n"
    with pytest.raises(ModuleNotFoundError, match="wandb"):  # an import of the user's code keeps its traceback
        guarded(lambda: bool(import_module("wandb")))
    with pytest.raises(ModuleNotFoundError, match=r"this needs the package wandb: pip install 'jaxtrain\[wandb\]'$"):
        WandB()


KILLED = """
import os, signal, sys, time
import jaxtrain
from jaxtrain.loggers import WandB
from tests.small import CopyGRU, copies

class Kill(jaxtrain.Callback):
    def on_log(self, run, row):
        saved = run.run_dir / "checkpoints" / "00000010"
        while row["step"] == 25 and sys.argv[2] == "never":
            if saved.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)

callbacks = [WandB("copying", "offline"), jaxtrain.Checkpoint(every=10), Kill()]
fit = jaxtrain.Fit("bptt", max_steps=40, chunk=5, log_every=5, run_dir=sys.argv[1], callbacks=callbacks)
fit.run(CopyGRU(), copies(), resume=sys.argv[2])
"""


@pytest.mark.long
def test_a_killed_run_of_fit_that_continues_has_the_history_of_metrics_jsonl(tmp_path):
    if importlib.util.find_spec("wandb") is None:
        (pytest.skip if os.environ.get("SKIP_SYSTEM") == "1" else pytest.fail)(MISSING)
    paths = [str(Path(jaxtrain.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WANDB_SILENT": "true"}
    env.pop("WANDB_SERVICE", None)  # set by a test that has run in this process; it would outlive the killed one
    codes = [
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run"), resume], env=env, timeout=500).returncode
        for resume in ("never", "last")
    ]
    assert codes == [-9, 0]
    log = jaxtrain.loggers.read_log(tmp_path / "run" / "metrics.jsonl")
    expected = {entry["step"]: {tag: value for tag, value in entry.items() if tag != "step"} for entry in log}
    first, second = read(tmp_path / "run", killed=1)
    assert list(expected) == [*range(5, 45, 5)] and second["history"] == expected
    assert first["id"] == second["id"] and second["summary"]["status"] == "finished"
