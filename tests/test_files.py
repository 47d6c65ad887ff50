"""Files of a run directory and its lock."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxtrain.utils.files import RunLock, as_json, jsonable, read_json, write_json


def test_jsonable():
    given = {"a": math.nan, "b": [math.inf, 1.5], 3: (1, None), "c": True, "d": {"e": object}}
    assert jsonable(given) == {"a": None, "b": [None, 1.5], "3": [1, None], "c": True, "d": {"e": "<class 'object'>"}}


def test_as_json_is_what_reads_back():
    assert as_json({"a": (1, 2.5), 3: None}, "it") == {"a": [1, 2.5], "3": None}
    with pytest.raises(TypeError, match=r"^the task is not JSON \(Object of type int64 .*give plain numbers"):
        as_json({"lag": np.int64(3)}, "the task")


def test_write_json_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["result.json"]
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_name_after_it(tmp_path, monkeypatch):
    calls = []

    def record(name, call):
        monkeypatch.setattr(os, name, lambda *args: calls.append(name) or call(*args))

    record("fsync", os.fsync)
    record("replace", os.replace)
    write_json(tmp_path / "result.json", {"a": 1})
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    "text,message", [("{", "cannot read .*config.json"), ("[]", "holds list, expected a JSON object")]
)
def test_read_json_of_invalid_files(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RuntimeError, match=message):
        read_json(tmp_path / "config.json")


def test_a_lock_creates_the_directory_and_removes_it_when_unused(tmp_path):
    path = tmp_path / "a" / "run"
    with RunLock(path):
        assert (path / ".lock").exists()
        with pytest.raises(RuntimeError, match="in use by process"), RunLock(path):
            pass
    assert list(tmp_path.iterdir()) == [], "nor the parent directories that it created"
    with RunLock(path):
        (path / "config.json").write_text("{}")
    assert (path / "config.json").exists()
    with RunLock(path):
        pass
    with RunLock(None):
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom jaxtrain.utils.files import RunLock\n"
        "RunLock(Path(sys.argv[1])).__enter__()\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert (tmp_path / "run" / ".lock").read_text().isdigit()
    with RunLock(tmp_path / "run"):
        pass
