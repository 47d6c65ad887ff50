"""A Store restores exactly what was saved, and refuses what it cannot save."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoint.store import Store
from jaxtrain.errors import CorruptCheckpoint
from jaxtrain.utils.digests import digest
from tests.stores import put, same, tree

# What is saved is restored

DTYPES = "bool int8 uint8 int16 uint32 int64 uint64 float16 float32 float64 complex64 complex128".split()
SMALL = "bfloat16 int2 int4 float4_e2m1fn float8_e3m4 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz".split()
SMALL += ["float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


def test_every_dtype_and_shape_comes_back_exactly(tmp_path, opened):
    params = {}
    for dtype in [np.dtype(d) for d in DTYPES] + [np.dtype(getattr(ml_dtypes, d)) for d in SMALL]:
        for shape in [(), (1,), (3, 2), (0,), (2, 0, 3)]:
            params[f"{dtype}{shape}"] = np.ones(shape).astype(dtype)
    params["nan"] = np.array([math.nan, math.inf, -0.0, 5e-324])
    params["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    train = {"key": jax.random.key_data(jax.random.key(3)), "half": jnp.arange(3, dtype=jnp.bfloat16), "count": 7}
    store = opened(tmp_path)
    store.save(5, params, train, {"a": 1})
    saved = store.restore(5)
    same(params, saved.params)
    same({k: np.asarray(v) for k, v in train.items()}, saved.train)
    assert saved.step == 5 and saved.meta["a"] == 1
    saved.params["nan"][0] = 1.0  # restored arrays are writable


def test_any_name_is_a_name(tmp_path, opened):
    names = [
        "a",
        "a.b",
        "a.b.c",
        "a/b",
        "a/0",
        "a/.zarray",
        ".zarray",
        "['w']",
        "",
        ".",
        "..",
        "/abs",
        "x y",
        "ü✓",
        "\n",
    ]
    names += ["A", "%41", "x" * 300, "a/../b", "0", "None", "\x00", "\\", '"']
    params = {name: np.arange(3.0) + i for i, name in enumerate(names)}
    store = opened(tmp_path)
    store.save(1, params, {}, {})
    same(params, opened(tmp_path, read_only=True).restore(1).params if store.wait() else {})


def test_empty_items(tmp_path, opened):
    store = opened(tmp_path)
    store.save(0, {}, {}, {})
    saved = store.latest_readable()
    assert (saved.step, saved.params, saved.train) == (0, {}, {})


def test_plain_orbax_reads_it(tmp_path, opened):
    put(opened(tmp_path), 12)
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(step_format_fixed_length=8)) as manager:
        assert manager.all_steps() == [12]
        args = ocp.args.Composite(params=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        read = manager.restore(12, args=args)
    same(tree(12), {k: np.asarray(v) for k, v in read["params"].items()})
    assert read["meta"]["epoch"] == 1
    assert read["meta"]["digests"]["params"].keys() == tree(12).keys()
    assert json.loads((tmp_path / "00000012/meta/metadata").read_text()) == read["meta"]


def test_one_item_or_none(tmp_path, opened):
    store = opened(tmp_path)
    put(store, 3)
    assert store.restore(3, train=False).train == {} and store.restore(3, params=False).params == {}
    same(tree(3), store.restore(3, train=False).params)
    shutil.rmtree(tmp_path / "00000003/train")
    same(tree(3), store.restore(3, train=False).params)
    with pytest.raises(CorruptCheckpoint, match="step 3"):
        store.restore(3)


def test_meta_round_trip(tmp_path, opened):
    meta = {"big": 2**127, "nan": math.nan, "inf": -math.inf, "float": 0.1, "ü": ["x", None, True], "n": {"1": {}}}
    store = opened(tmp_path)
    store.save(1, tree(1), {}, meta)
    read = store.read_meta(1)
    assert math.isnan(read.pop("nan"))
    assert {k: read[k] for k in meta if k != "nan"} == {k: v for k, v in meta.items() if k != "nan"}


def test_digest_is_of_content():
    a = tree(1)
    assert digest(a) == digest(dict(reversed(a.items()))) == digest({k: jnp.asarray(v) for k, v in a.items()})
    for other in (
        {**a, "rnn.w": a["rnn.w"].astype(np.float64)},
        {**a, "rnn.w": a["rnn.w"].reshape(2, 3)},
        {**a, "rnn.w": a["rnn.w"] + 1},
        {"rnn.w": a["rnn.w"]},
        {"rnn.v": a["rnn.w"], "rnn.b": a["rnn.b"]},
    ):
        assert digest(other) != digest(a)


def test_the_copy_is_made_before_save_returns(tmp_path, opened):
    store = opened(tmp_path)
    x = np.zeros(200_000, np.float32)
    y = jnp.zeros(200_000)
    store.save(1, {"x": x, "y": y}, {}, {})
    x += 1
    jax.jit(lambda y: y + 1, donate_argnums=0)(y).block_until_ready()
    y.delete()
    saved = store.restore(1)
    assert not saved.params["x"].any() and not saved.params["y"].any()


# Refusals


@pytest.mark.parametrize(
    "leaf, kind",
    [
        (jax.random.key(0), "key<fry>"),
        ("text", "str"),
        (None, "NoneType"),
        (object(), "object"),
        (np.array(["a"]), "<U1"),
        (np.zeros(2, ">f4"), ">f4"),
        (np.zeros(2, np.longdouble), "float128"),
        (np.zeros(2, ml_dtypes.uint4), "uint4"),
        ({"nested": 1}, "dict"),
    ],
)
def test_a_leaf_that_is_no_array_of_numbers(tmp_path, opened, leaf, kind):
    with pytest.raises(TypeError, match=f"leaf 'w' of train is {kind}") as error:
        opened(tmp_path).save(1, {}, {"w": leaf}, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("meta", [{"x": np.float32(1)}, {"x": {1, 2}}, {"x": object()}, {(1, 2): 3}])
def test_meta_that_is_not_json(tmp_path, opened, meta):
    store = opened(tmp_path)
    with pytest.raises(TypeError, match="metadata of step 4 is not JSON"):
        store.save(4, tree(4), {}, meta)
    assert store.steps() == [] and store.wait()


def test_other_misuse(tmp_path, opened):
    store = opened(tmp_path)
    with pytest.raises(ValueError, match="'digests'"):
        store.save(1, {}, {}, {"digests": 1})
    with pytest.raises(ValueError, match="-1"):
        store.save(-1, {}, {}, {})
    for last, best in ((0, 1), (1, -1)):
        with pytest.raises(ValueError):
            Store(tmp_path, last=last, best=best)
    put(store, 1, 2)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7 in .* \(there are: 2\)"):
        store.restore(7)


def test_directories(tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(opened("relative/ü x"), 1)
    put(opened("~/runs"), 2)
    assert (tmp_path / "relative/ü x/00000001").is_dir() and (tmp_path / "home/runs/00000002").is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below", Path("/proc/nowhere")):
        with pytest.raises(OSError, match="checkpoints cannot be written here") as error:
            Store(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "home/runs").glob(".probe*"))


def test_read_only_touches_nothing(tmp_path, opened):
    nowhere = opened(tmp_path / "none", read_only=True)
    assert nowhere.steps() == [] and nowhere.latest_readable() is None and nowhere.best_step() is None
    assert not (tmp_path / "none").exists()
    put(opened(tmp_path), 4)
    live = tmp_path / "00000005.orbax-checkpoint-tmp"
    live.mkdir()
    reader = opened(tmp_path, read_only=True)
    assert reader.latest_readable().step == 4 and live.is_dir()
    with pytest.raises(RuntimeError, match="read-only"):
        reader.save(6, {}, {}, {})


def test_what_a_killed_save_left_is_removed(tmp_path, opened):
    put(opened(tmp_path), 4)
    (tmp_path / "00000005.orbax-checkpoint-tmp/params").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    assert opened(tmp_path).steps() == [4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000004", "notes.txt"]


ODD = ["a b", "a{b}", "a'b", 'a"b', "a?b", "a*b", "a%20b", "a#b", "a:b", "é", "a,b=c", "~a", "a[1]", "a[", "a\\b"]


@pytest.mark.parametrize("name", ODD)
def test_what_is_saved_below_an_odd_path_can_be_read_or_is_refused(tmp_path, opened, name):
    if "[" in name or "\\" in name:
        with pytest.raises(ValueError, match="Orbax cannot read checkpoints back"):
            opened(tmp_path / name)
        return
    put(opened(tmp_path / name), 1)
    same(tree(1), opened(tmp_path / name).restore(1).params)


@pytest.mark.parametrize("name", ["a[1]", "a\\b"])
def test_the_refusal_of_a_path_is_still_needed(tmp_path, opened, name, monkeypatch):
    """If this fails, Orbax has been fixed: remove the refusal."""
    monkeypatch.setattr("jaxtrain.checkpoint.store.readable", lambda path: path)
    put(opened(tmp_path / name), 1)
    with pytest.raises(CorruptCheckpoint):
        opened(tmp_path / name).restore(1)


# Nothing is left behind


@pytest.mark.full
def test_many_saves_leave_no_descriptors_or_threads(tmp_path):
    before = threading.active_count()
    store = Store(tmp_path, last=2, best=1)
    put(store, 0, 1, 2, 3, 4)
    held = len(os.listdir("/proc/self/fd")), threading.active_count()
    for step in range(5, 65):
        store.save(step, tree(step), {}, {}, score=step)
        if step % 10 == 0:
            store.restore(step)
    store.wait()
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after[0] <= held[0] + 2 and after[1] <= held[1] + 2
    store.close()
    assert threading.active_count() <= before + 2
    assert store.steps() == [5, 63, 64]


def test_orbax_is_imported_late(tmp_path):
    code = "import sys, jaxtrain.checkpoint.store as c; c.Store(sys.argv[1]); print({'orbax', 'jax'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
