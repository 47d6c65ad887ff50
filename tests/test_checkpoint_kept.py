"""Which steps a Store keeps, which one is the best, and how a step is replaced."""

import errno
import math
import os
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoint.migration import upgrade_config
from jaxtrain.errors import SaveFailed
from tests.stores import put, same, scored, spoil, tree


def test_the_last_and_the_best(tmp_path, opened):
    store = opened(tmp_path, last=2, best=2)
    scored(store, {1: 5.0, 2: 1.0, 3: None, 4: 2.0, 5: 9.0, 6: None, 7: 8.0, 8: None})
    assert store.steps() == [2, 4, 7, 8] and store.best_step() == 2
    again = opened(tmp_path, last=1, best=2)
    assert again.best_step() == 2
    scored(again, {9: 1.5})
    assert again.steps() == [2, 9]


def test_steps_without_a_score_do_not_fill_the_best(tmp_path, opened):
    store = opened(tmp_path, last=1, best=3)
    scored(store, {1: None, 2: 0.5, 3: None, 4: None})
    assert store.steps() == [2, 4]


def test_the_best_of_max_and_of_equals(tmp_path, opened):
    store = opened(tmp_path, last=1, best=1, mode="max")
    scored(store, {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1})
    assert store.steps() == [2, 4] and store.best_step() == 2


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_score_that_is_not_finite_is_the_worst(tmp_path, opened, mode):
    store = opened(tmp_path, last=1, best=2, mode=mode)
    scored(store, {1: math.nan})
    assert store.best_step() == 1
    scored(store, {2: 3.0, 3: math.inf, 4: -math.inf, 5: 4.0, 6: math.nan, 7: None})
    assert store.steps() == [2, 5, 7]
    fresh = opened(tmp_path, last=1, best=2, mode=mode)
    assert fresh.best_step() == (2 if mode == "min" else 5)
    scored(fresh, {8: math.nan, 9: None})
    assert fresh.steps() == [2, 5, 9]


def test_no_score_no_best(tmp_path, opened):
    store = opened(tmp_path, best=2)
    assert store.best_step() is None
    scored(store, {1: None})
    assert store.best_step() is None and opened(tmp_path).best_step() is None


def test_a_step_on_disk_is_not_written_again(tmp_path, opened):
    put(opened(tmp_path), 3)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for store in (opened(tmp_path), opened(tmp_path)):
        assert store.save(3, tree(99), {}, {}) and store.wait()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("end", ["commit", "kill", "fail"])
def test_replacing_never_leaves_nothing(tmp_path, opened, monkeypatch, end):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    store = opened(tmp_path, best=1)
    scored(store, {3: 1.0})
    if end == "fail":
        monkeypatch.setattr(ocp.AsyncCheckpointer, "_save_step_metadata", fail)
    store.save(3, {"w": np.float32(99)}, {}, {}, score=2.0, replace=True)
    if end == "kill":  # what a process that starts now finds on disk before the commit
        store.wait()
        (tmp_path / "00000003").rename(tmp_path / "00000003.orbax-checkpoint-tmp")
        scored(opened(tmp_path / "old"), {3: 1.0})
        (tmp_path / "old/00000003").rename(tmp_path / "00000003.replaced")
        shutil.rmtree(tmp_path / "old")
        store = opened(tmp_path, read_only=True)
        assert store.steps() == [3] and store.restore(3).params["w"] == 3 and store.best_step() == 3
        store = opened(tmp_path, best=1)
    assert store.wait() is (end != "fail")
    assert [p.name for p in tmp_path.iterdir()] == ["00000003"]
    saved = store.restore(3)
    assert saved.params["w"] == (99 if end == "commit" else 3)
    assert saved.meta["store"]["score"] == (2.0 if end == "commit" else 1.0)
    monkeypatch.undo()
    scored(store, {4: 5.0})
    assert store.steps() == [3, 4]


@pytest.mark.parametrize("how", ["replaced", "unreadable"])
def test_an_old_step_that_cannot_be_moved_aside_stays(tmp_path, opened, monkeypatch, caplog, how):
    def full(number):
        def rename(self, target):
            raise OSError(number, os.strerror(number), str(self), None, str(target))

        return rename

    store = opened(tmp_path, last=3)
    put(store, 1, 2)
    if how == "unreadable":
        spoil(tmp_path, 2, "data truncated")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    replace = how == "replaced"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full(errno.ENOSPC))
        assert store.save(2, tree(99), {}, {}, replace=replace) is False and store.wait() is False
        (said,) = [record.getMessage() for record in caplog.records if "not saved" in record.getMessage()]
        assert "no space left" in said and "the checkpoint of step 2 is not saved; the next one is tried" in said
        patch.setattr(Path, "rename", full(errno.EIO))
        with pytest.raises(SaveFailed, match="the checkpoint of step 2 is not saved in .*Input/output error"):
            store.save(2, tree(99), {}, {}, replace=replace)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert store.save(2, tree(99), {}, {}, replace=replace) and store.wait()
    same(tree(99), store.restore(2).params)
    put(store, 3)
    assert store.steps() == [1, 2, 3]


def test_what_an_older_release_kept_is_read():
    old = {"last": 2, "best": 1, "mode": "min", "monitor": "val/loss"}
    config = {"fit": {"seed": 0, "checkpoint": old}, "strategy": {"name": "bptt"}, "data": {}}
    kept = {"keep_last": 2, "keep_best": 1, "mode": "min", "monitor": "val/loss"}
    assert upgrade_config(config) == {**config, "fit": {"seed": 0, "checkpoint": kept}}
    assert upgrade_config(upgrade_config(config)) == upgrade_config(config) and old["last"] == 2
