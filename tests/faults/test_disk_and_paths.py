"""A disk that is full for a while or for good, folders that cannot be written, and paths as people have them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import jaxtrain as jt
from tests.disks import small_disk
from tests.faults.library import Fault, missing, server
from tests.faults.tiny import Noisy, came_to, fit
from tests.faults.walk import differences
from tests.kit.tiers import longer
from tests.small import Linear, Lines, lines, tree_bytes

# ------------------------------------------------------------------------------------------ a full disk

needs_library = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with server(folder) as one:
        whole = one.run(folder / "whole", Fault("count"))
        assert whole["code"] == 0, whole["text"]
        yield one, whole["came_to"], whole["calls"]


def first(calls, name, path):
    return next(n for n, call in enumerate(calls, 1) if call.name == name and call.path.startswith(path))


def says(text, words):
    return [line for line in text.splitlines() if words in line]


@needs_library
@pytest.mark.long
def test_a_disk_full_during_the_first_save(served, tmp_path):
    """One warning, and at the end nothing is missing. By its name: the saving thread's calls have no fixed number."""
    one, truth, _ = served
    run = one.run(tmp_path / "run", Fault("ENOSPC", 1, 1, "mkdir", "checkpoints/00000004*"))
    assert run["code"] == 0, run["text"]
    assert differences(truth, run["came_to"]) == []
    assert len(says(run["text"], "no space left")) == 1
    assert "the checkpoint of step 4 is not saved; the next one is tried" in run["text"]
    assert "Traceback" not in run["text"]


@needs_library
@pytest.mark.long
@pytest.mark.parametrize("file,first,last", [("metrics.jsonl", 2, 4), ("tensorboard/events*", 1, 1)])
def test_a_disk_full_for_the_logs_alone(served, tmp_path, file, first, last):
    one, truth, calls = served
    run = one.run(tmp_path / "run", Fault("ENOSPC", first, last, "write", file))
    assert run["code"] == 0, run["text"]
    assert differences(truth, run["came_to"]) == []
    assert len(says(run["text"], "are buffered and will be retried")) == 1
    assert len(says(run["text"], "nothing was lost")) == 1


@needs_library
@pytest.mark.long
@pytest.mark.parametrize("file", ["metrics.jsonl", "tensorboard/events*"])
def test_a_sync_of_the_logs_that_fails_once(served, tmp_path, file):
    one, truth, calls = served
    run = one.run(tmp_path / "run", Fault("EIO", 1, 1, "fsync", file))
    assert run["code"] == 0, run["text"]
    assert differences(truth, run["came_to"]) == []
    assert len(says(run["text"], "Input/output error; writes are buffered and will be retried")) == 1
    assert len(says(run["text"], "nothing was lost")) == 1


@needs_library
@pytest.mark.long
def test_a_disk_full_for_good_is_exit_code_1_and_the_run_goes_on_later(served, tmp_path):
    one, truth, calls = served
    begin = first(calls, "mkdir", "checkpoints/00000008")
    run = one.run(tmp_path / "run", Fault("ENOSPC", begin, 10**9))
    assert run["code"] == 1 and "Traceback" not in run["text"], run["text"]
    assert says(run["text"], "the checkpoint of step 8 is not saved")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["00000004"], "the old one is intact"
    later = one.run(tmp_path / "run")
    assert later["code"] == 0, later["text"]
    assert differences(truth, later["came_to"]) == []


@needs_library
@pytest.mark.long
def test_rows_that_are_lost_for_good_are_an_error(served, tmp_path):
    one, _, _ = served
    run = one.run(tmp_path / "run", Fault("ENOSPC", 3, 10**9, "write", "metrics.jsonl"))
    assert run["code"] == 1 and "Traceback" not in run["text"]
    assert says(run["text"], "error: ")[-1].endswith("bytes are not written (No space left on device)")
    later = one.run(tmp_path / "run")  # the checkpoint held them
    assert later["code"] == 0 and [row["step"] for row in later["came_to"]["rows"]] == list(range(1, 9))


# ------------------------------------------------------------------------------------------ folders and paths


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["öäü-中文-🙂", "a=b,c;d", "..dots", *longer("with spaces", "quote'\"quote", "-dash", "x" * 200)]
)
def test_any_name_of_a_directory(tmp_path, name):
    run = tmp_path / name
    assert fit(run, 4).run(Noisy(), lines()).status == "finished"
    assert fit(run, 8).run(Noisy(), lines(), resume="last").step == 8
    assert came_to(run)["result"]["step"] == 8 and jt.load(run, Noisy()).model is not None


@pytest.mark.full
def test_relative_paths_and_home(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, expected in {"a/run": "here/a/run", "../b": "b", "~/c": "home/c", "./d/../e": "here/e"}.items():
        result = fit(Path(given), 2).run(Noisy(), lines())
        assert result.run_dir == tmp_path / expected and (tmp_path / expected / "result.json").exists()
    run = fit(Path("a/run"), 6)
    monkeypatch.chdir(tmp_path)  # where the process stands when it runs is of no matter
    assert run.run(Noisy(), lines(), resume="last").run_dir == tmp_path / "here/a/run"
    assert not (tmp_path / "a").exists()


@pytest.fixture
def read_only(tmp_path):
    """A directory that nobody can write, root neither."""
    with small_disk(tmp_path / "mounted") as where:
        fit(where / "run", 4).run(Noisy(), lines())
        subprocess.run(["mount", "-o", "remount,ro", where], check=True)
        yield where


def test_a_read_only_file_system_is_an_error_before_step_0(read_only):
    trained = []

    def batch(step, given):
        trained.append(step)
        return given

    for name, resume in (("new", "never"), ("run", "last")):
        with pytest.raises(OSError, match=f"cannot write the run directory .*{name}: Read-only file system") as error:
            jt.Fit("bptt", max_steps=9, run_dir=read_only / name).run(Linear(), Lines(batch), resume=resume)
        assert "\n" not in str(error.value)
    assert trained == []
    assert jt.load(read_only / "run", Noisy()).model is not None, "reading needs no writing"


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "tensorboard", "config.json", "figures"])
def test_a_thing_of_another_kind_in_the_way(tmp_path, name):
    """A file where a folder belongs, or the other way round: one line that names it, and it stays as it was."""
    run = tmp_path / "run"
    run.mkdir()
    if "." in name:
        (run / name).mkdir()
        (run / name / "mine").write_text("mine")
    else:
        (run / name).write_text("mine")
    before = tree_bytes(run)
    for resume in ("never", "last"):
        try:
            result = fit(run, 4).run(Noisy(), lines(), resume=resume)
        except (OSError, RuntimeError) as error:
            there = resume == "never" and "holds a run: resume='last' continues it" in str(error)
            assert (name in str(error) or there) and "\n" not in str(error), error
        else:
            assert name == "figures" and result.status == "finished"
        assert {path: data for path, data in tree_bytes(run).items() if path in before} == before
        for path in run.iterdir():
            if path.name != name:
                shutil.rmtree(path) if path.is_dir() else os.unlink(path)
