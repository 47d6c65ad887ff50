"""Numbered run directories, and their description by `jaxtrain info`."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxtrain.cli.run_dirs import drop_unused, fresh_run, newest_run, saved_config, saved_steps
from jaxtrain.commands.info import describe_run
from jaxtrain.commands.run_facts import facts
from jaxtrain.errors import ConfigError
from jaxtrain.utils.files import RunLock


def begin(path, **config):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"schema": 1, **config}))
    return path


def test_numbers_go_up(tmp_path):
    root = tmp_path / "checkpoints" / "task"
    assert fresh_run(root, "a", create=False).name == "0001-a" and not root.exists()
    assert fresh_run(root, "a").name == "0001-a"
    (root / "notes").mkdir()
    (root / "0007-by-hand").mkdir()
    (root / "0009-file").write_text("")
    assert fresh_run(root, "b").name == "0008-b"


def test_starts_at_once_get_different_numbers(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: fresh_run(tmp_path, f"label{i}"), range(24)))
    assert sorted(int(path.name[:4]) for path in paths) == list(range(1, 25))


def test_processes_at_once_get_different_numbers(tmp_path):
    code = "import sys; from pathlib import Path; from jaxtrain.cli.run_dirs import fresh_run as f\n"
    code += "for i in range(20): print(f(Path(sys.argv[1]), sys.argv[2]).name[:4])"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), label], stdout=subprocess.PIPE, text=True)
        for label in "ab"
    ]
    numbers = "".join(process.communicate()[0] for process in started).split()
    assert sorted(map(int, numbers)) == list(range(1, 41))


def test_newest_run(tmp_path):
    assert newest_run(tmp_path / "nothing") is None
    fresh_run(tmp_path, "a")
    assert newest_run(tmp_path) is None  # nothing began in it
    first = begin(tmp_path / "0002-a")
    begin(tmp_path / "other")
    fresh_run(tmp_path, "b")
    assert newest_run(tmp_path) == first
    assert newest_run(tmp_path) != begin(tmp_path / "0002-a-from-50")
    assert newest_run(tmp_path).name == "0002-a-from-50"


def test_drop_unused(tmp_path):
    empty, used = fresh_run(tmp_path, "a"), begin(fresh_run(tmp_path, "b"))
    (empty / ".lock").write_text("1")
    drop_unused(empty)
    drop_unused(used)
    drop_unused(tmp_path / "missing")
    assert not empty.exists() and used.exists()


def test_saved_config_and_steps(tmp_path):
    assert saved_config(tmp_path) is None and saved_steps(tmp_path) == []
    begin(tmp_path, config={"lr": 1})
    for name in ("500", "1000", "1500.orbax-checkpoint-tmp-3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert saved_config(tmp_path) == {"lr": 1} and saved_steps(tmp_path) == [500, 1000]


def described(path):
    return describe_run(facts(path), everything=True)


def test_describe_run(tmp_path):
    with pytest.raises(ConfigError, match="no config.json"):
        facts(tmp_path)
    begin(tmp_path, config={"lr": 0.003, "strategy_fields": {"window": 2}}, strategy={"name": "drtrl", "window": 2})
    run, *rest = described(tmp_path).split("\n\n")
    assert run.splitlines()[:4] == [
        "run",
        f"  directory  {tmp_path}",
        "  status     stopped unexpectedly after step 0",
        "  rule       drtrl",
    ]
    assert rest == [
        "strategy\n  name    drtrl\n  window  2",
        "config\n  lr                      0.003\n  strategy_fields.window  2",
        "checkpoints\n  steps  none",
    ]
    with RunLock(tmp_path):
        assert f"running, process {os.getpid()}, at step 0" in described(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "train/loss": 0.5}\n{"step": 100, "tr')
    best = {"monitor": "val/loss", "score": 0.25, "step": 40}
    (tmp_path / "result.json").write_text(
        json.dumps({"status": "finished", "step": 50, "best": best, "val": {"loss": 0.3}})
    )
    text = described(tmp_path)
    assert "finished at step 50" in text and "best  val/loss 0.25 at step 40\n  val   loss 0.3" in text
    assert "last log entry\n  step        50\n  train/loss  0.5" in text


def test_describe_run_spells_nested_lists(tmp_path):
    data = {"train": {"batch": ["float32[20, 8, 2]", "int32[20]"], "rate": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished", "step": 3, "seeds": [4, 5]}))
    text = described(tmp_path)
    assert "  train.batch  [float32[20, 8, 2], int32[20]]\n  train.rate   0.1" in text and "seeds      4, 5" in text


def test_a_run_of_the_api_shows_its_fit(tmp_path):
    """It has no recipe's configuration."""
    fit = {"max_steps": 300, "clip": None, "chunk": "auto", "checkpoint": {"keep_last": 2}}
    fit["callbacks"] = ["JSONL.0", "EarlyStopping.0"]
    begin(tmp_path, config=None, strategy={"name": "drtrl"}, fit=fit)
    titles = dict(section.split("\n", 1) for section in describe_run(facts(tmp_path)).split("\n\n"))
    (options,) = [text for title, text in titles.items() if title.startswith("options")]
    shown = ["fit.max_steps 300", "fit.checkpoint.keep_last 2", "fit.callbacks [EarlyStopping.0]"]
    assert [" ".join(line.split()) for line in options.splitlines()] == ["strategy drtrl", *shown]
    assert "config" not in titles and "fit" not in titles
