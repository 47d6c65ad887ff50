"""Checkpoints for tests: saving them, comparing what is restored, and damaging them."""

import json
import os
import shutil

import numpy as np


def tree(step, size=6):
    return {"rnn.w": np.arange(size, dtype=np.float32) + step, "rnn.b": np.full((2, 2), step, np.int32)}


def put(store, *steps, **scores):
    for step in steps:
        store.save(step, tree(step), {"opt.m": tree(step)["rnn.w"] * 2}, {"epoch": step // 10})
        assert store.wait()


def scored(store, scores):
    for step, score in scores.items():
        store.save(step, {"w": np.float32(step)}, {}, {}, score=score)
    assert store.wait()


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), b[name]
        assert type(y) is np.ndarray
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name


def data_files(directory, step):
    """The files of a step that hold array data, largest first."""
    files = [p for p in (directory / f"{step:08d}").rglob("*") if p.is_file() and p.parent.name == "d"]
    return sorted(files, key=lambda p: -p.stat().st_size)


def spoil(path, step, how):
    where = path / f"{step:08d}"
    data = data_files(path, step)
    if how == "empty":
        shutil.rmtree(where)
        where.mkdir()
    elif how == "no meta":
        shutil.rmtree(where / "meta")
    elif how == "no params":
        shutil.rmtree(where / "params")
    elif how == "params twice":
        shutil.copytree(where / "params", where / "train", dirs_exist_ok=True)
    elif how == "data gone":
        for file in data:
            file.unlink()
    elif how == "data truncated":
        for file in data:
            os.truncate(file, file.stat().st_size // 2)
    elif how == "meta truncated":
        os.truncate(where / "meta/metadata", 40)
    elif how == "meta changed":
        file = where / "meta/metadata"
        file.write_text(file.read_text().replace('"epoch": ', '"epoch": 1'))
    elif how == "meta not ours":
        (where / "meta/metadata").write_text('{"epoch": 3}')
    elif how == "meta no object":
        (where / "meta/metadata").write_text("[]")
    elif how == "leaf left out":
        file = where / "params/_METADATA"
        found = json.loads(file.read_text())
        found["tree_metadata"].popitem()
        file.write_text(json.dumps(found))
    elif how == "params of another step":
        shutil.rmtree(where / "params")
        shutil.copytree(path / "00000001/params", where / "params")
    elif how == "meta of another step":
        shutil.copy(path / "00000001/meta/metadata", where / "meta/metadata")
    elif how == "another step":
        shutil.rmtree(where)
        shutil.copytree(path / "00000001", where)
