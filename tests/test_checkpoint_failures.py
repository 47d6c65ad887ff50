"""Failed saves, and processes that end during a save: earlier checkpoints stay."""

import logging
import subprocess
import sys
import threading

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoint.store import Store
from tests import disks
from tests.stores import put, same, tree


@pytest.fixture
def small_disk(tmp_path):
    with disks.small_disk(tmp_path / "disk") as where:
        yield where


def test_disk_full(small_disk, opened, caplog, capfd):
    store = opened(small_disk / "run", last=2)
    put(store, 1)
    noise = np.random.default_rng(0).integers(0, 2**31, 1_000_000)  # does not compress below the size of the disk
    with caplog.at_level(logging.WARNING):
        for step in (2, 3, 4):  # repeatedly: the remains of one must not use up the space of the next
            store.save(step, {"w": noise}, {}, {})
            if step == 2:
                assert store.wait() is False
        assert store.wait() is False
        assert store.wait() is False
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 3 and all("no space left" in m and str(small_disk) in m for m in messages)
    assert [p.name for p in (small_disk / "run").iterdir()] == ["00000001"]
    assert store.steps() == [1]
    same(tree(1), store.restore(1).params)
    assert capfd.readouterr().err == ""
    put(store, 5, 6)
    assert store.steps() == [5, 6]
    store.save(7, {"w": noise}, {}, {})
    store.close()
    assert store.wait() is False and store.steps() == [5, 6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads, some of the time
def test_disk_without_one_free_byte(small_disk, opened):
    store = opened(small_disk / "run")
    put(store, 1)
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)
    store.save(2, tree(2), {}, {})
    assert store.wait() is False
    same(tree(1), opened(small_disk / "run").latest_readable().params)
    filler.unlink()
    put(store, 3)
    assert store.steps() == [3]


@pytest.mark.parametrize("where", ["save", "later"])
@pytest.mark.parametrize("kind", ["space", "words", "nested", "other"])
def test_errors_of_a_save(tmp_path, opened, monkeypatch, caplog, where, kind):
    def fail(*args, **kwargs):
        if kind == "space":
            raise OSError(28, "No space left on device")
        if kind == "words":
            raise ValueError('RESOURCE_EXHAUSTED: Error writing "w/0" in OCDBT database')
        if kind == "nested":
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise RuntimeError("could not commit") from error
        raise RuntimeError("boom")

    store = opened(tmp_path, last=2)
    put(store, 1)
    method = "save" if where == "save" else "_save_step_metadata"
    with monkeypatch.context() as patch:
        patch.setattr(ocp.AsyncCheckpointer, method, fail)
        if kind != "other":
            assert store.save(2, tree(2), {}, {}) is (where == "later")
            assert store.wait() is False
            assert len(caplog.records) == 1
        else:
            with pytest.raises(RuntimeError, match="boom"):
                store.save(2, tree(2), {}, {})
                store.save(3, tree(3), {}, {})
            assert store.wait() is False  # raised once, but the newest save is still not there
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    put(store, 2, 3)
    assert store.steps() == [2, 3]


def test_close_raises_what_the_save_raised(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save(1, tree(1), {}, {})

    def fail(*args, **kwargs):
        raise RuntimeError("boom")

    store.wait()
    threads = threading.active_count()
    monkeypatch.setattr(ocp.AsyncCheckpointer, "_save_step_metadata", fail)
    store.save(2, tree(2), {}, {})
    with pytest.raises(RuntimeError, match="boom"):
        store.close()
    store.close()
    assert store.steps() == [1] and threading.active_count() <= threads


@pytest.mark.full
@pytest.mark.parametrize("warnings", ["error"])
def test_killed_and_orderly_ends(tmp_path, warnings):
    code = (
        "import sys, os, numpy as np\n"
        "from jaxtrain.checkpoint.store import Store\n"
        "s = Store(sys.argv[1], last=3)\n"
        "s.save(1, {'w': np.arange(3.0)}, {}, {}); s.wait()\n"
        "s.save(2, {'w': np.zeros(1_000_000)}, {}, {})\n"
        "os._exit(9) if sys.argv[2] == 'kill' else s.close()\n"
    )
    for how, steps in (("kill", [1]), ("close", [1, 2])):
        where = tmp_path / how
        run = subprocess.run(
            [sys.executable, "-W", warnings, "-c", code, where, how], capture_output=True, text=True, timeout=100
        )
        assert run.stderr == "" and run.returncode == (9 if how == "kill" else 0)
        store = Store(where)
        saved = store.latest_readable()
        assert store.steps()[:1] == [1] and saved is not None and saved.step == store.steps()[-1]
        assert how == "kill" or store.steps() == steps
        assert not list(where.glob("*tmp*"))
        store.close()
