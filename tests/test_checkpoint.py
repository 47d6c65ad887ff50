import errno
import gc
import json
import logging
import math
import os
import random
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

from jaxtrain import quiet
from jaxtrain.checkpoint import CorruptCheckpoint, NoReadableCheckpoint, SaveFailed, Store
from jaxtrain.digests import digest


def tree(step, size=6):
    return {"rnn.w": np.arange(size, dtype=np.float32) + step, "rnn.b": np.full((2, 2), step, np.int32)}


def put(store, *steps, **scores):
    for step in steps:
        store.save(step, tree(step), {"opt.m": tree(step)["rnn.w"] * 2}, {"epoch": step // 10})
        assert store.wait()


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), b[name]
        assert type(y) is np.ndarray
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name


@pytest.fixture
def opened():
    stores = []

    def make(*args, **kwargs):
        stores.append(Store(*args, **kwargs))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def data_files(directory, step):
    """The files of a step that hold array data, largest first."""
    files = [p for p in (directory / f"{step:08d}").rglob("*") if p.is_file() and p.parent.name == "d"]
    return sorted(files, key=lambda p: -p.stat().st_size)


# What goes in comes out


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
    saved.params["nan"][0] = 1.0  # what comes back can be written to


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


# What is kept


def scored(store, scores):
    for step, score in scores.items():
        store.save(step, {"w": np.float32(step)}, {}, {}, score=score)
    assert store.wait()


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
    if end == "kill":  # what is on disk before the commit, seen by a process that starts now
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
        spoil(tmp_path, 2, "data cut")
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


# Damage


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
    elif how == "data cut":
        for file in data:
            os.truncate(file, file.stat().st_size // 2)
    elif how == "meta cut":
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


FAULTS = ["empty", "no meta", "no params", "params twice", "data gone", "data cut", "meta cut", "meta changed"]
FAULTS += ["meta not ours", "meta no object", "leaf left out", "params of another step", "meta of another step"]
FAULTS += ["another step"]


@pytest.mark.parametrize("how", FAULTS)
def test_damage_is_named_and_skipped(tmp_path, opened, caplog, capfd, how):
    put(opened(tmp_path, last=3), 1, 2)
    spoil(tmp_path, 2, how)
    store = opened(tmp_path, last=3)
    with pytest.raises(CorruptCheckpoint, match="the checkpoint of step 2 is unreadable: .+") as error:
        store.restore(2)
    assert error.value.step == 2 and "\n" not in str(error.value) and len(str(error.value)) < 300
    with caplog.at_level(logging.WARNING):
        saved = store.latest_readable()
    assert saved.step == 1
    same(tree(1), saved.params)
    assert [r.name for r in caplog.records] == ["jaxtrain"]
    assert "step 2" in caplog.text and str(tmp_path) in caplog.text
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_what_outlives_a_failed_read_is_silent(tmp_path, opened, caplog, capfd):
    """TensorStore reports when it likes, the garbage collector too: many failed reads, one after the other."""
    for trial in range(60):
        where = tmp_path / str(trial)
        put(opened(where, last=3), 1, 2)
        spoil(where, 2, "data cut")
        with pytest.raises(CorruptCheckpoint):
            opened(where, last=3).restore(2)
    gc.collect()
    assert caplog.records == [] and capfd.readouterr().err == ""


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
    """Where this fails, Orbax has been mended: let the path be."""
    monkeypatch.setattr("jaxtrain.checkpoint.readable", lambda path: path)
    put(opened(tmp_path / name), 1)
    with pytest.raises(CorruptCheckpoint):
        opened(tmp_path / name).restore(1)


def test_all_unreadable_is_an_error(tmp_path, opened):
    put(opened(tmp_path, last=3), 1, 2)
    spoil(tmp_path, 1, "empty")
    spoil(tmp_path, 2, "data cut")
    with pytest.raises(NoReadableCheckpoint, match="step 2: .*; step 1: ") as error:
        opened(tmp_path).latest_readable()
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert opened(tmp_path / "new").latest_readable() is None


def test_a_damaged_score_is_not_the_best(tmp_path, opened, caplog):
    store = opened(tmp_path, last=1, best=2)
    scored(store, {1: 1.0, 2: 2.0, 3: 3.0})
    spoil(tmp_path, 1, "meta cut")
    fresh = opened(tmp_path, last=1, best=2)
    with caplog.at_level(logging.WARNING):
        assert fresh.best_step() == fresh.best_step() == 2
    assert caplog.text.count("step 1") == 1
    scored(fresh, {4: 9.0})
    assert fresh.steps() == [2, 3, 4]


def test_training_past_an_unreadable_step(tmp_path, opened, caplog):
    put(opened(tmp_path, last=3), 10, 20, 30)
    spoil(tmp_path, 20, "empty")
    spoil(tmp_path, 30, "data cut")
    store = opened(tmp_path, last=1)
    assert store.latest_readable().step == 10
    put(store, 15)  # an unreadable newer step does not push out the only good one
    assert store.steps() == [15, 20, 30]
    put(store, 20)  # is replaced, not taken for saved
    assert store.steps() == [20, 30]
    same(tree(20), store.restore(20).params)
    assert opened(tmp_path, read_only=True).latest_readable().step == 20
    put(store, 40)
    assert store.steps() == [40]


def test_flipped_bits(tmp_path, opened):
    source = tmp_path / "source"
    put(opened(source), 7)
    files = sorted(p for p in source.rglob("*") if p.is_file())
    rng = random.Random(0)
    found = 0
    for trial in range(120):
        target = tmp_path / f"t{trial}"
        shutil.copytree(source, target)
        # half of them anywhere, half in the array data and the metadata, where a flip matters
        pool = files if trial % 2 else data_files(source, 7) + [source / "00000007/meta/metadata"]
        file = target / rng.choice([f for f in pool if f.stat().st_size]).relative_to(source)
        content = bytearray(file.read_bytes())
        bit = rng.randrange(len(content) * 8)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(content))
        try:
            saved = opened(target, read_only=True).restore(7)
        except CorruptCheckpoint:
            found += 1
        else:
            same(tree(7), saved.params)
            same({"opt.m": tree(7)["rnn.w"] * 2}, saved.train)
            assert saved.meta["epoch"] == 0
        shutil.rmtree(target)
    assert found > 40


# Failing saves


@pytest.fixture
def small_disk(tmp_path):
    where = tmp_path / "disk"
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", where], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small disk: mount says {made.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_disk_full(small_disk, opened, caplog, capfd):
    store = opened(small_disk / "run", last=2)
    put(store, 1)
    noise = np.random.default_rng(0).integers(0, 2**31, 1_000_000)  # does not compress below the size of the disk
    with caplog.at_level(logging.WARNING):
        for step in (2, 3, 4):  # again and again: what is left of one must not starve the next
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


# Nothing is left behind


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


def test_absl_is_as_before(tmp_path):
    from absl import logging as absl_logging

    logger = logging.getLogger("absl")
    before = list(logger.filters), logger.level, absl_logging.get_verbosity()
    store = Store(tmp_path)
    put(store, 1)
    assert len(logger.filters) == len(before[0]) + 1
    store.close()
    assert (list(logger.filters), logger.level, absl_logging.get_verbosity()) == before


def test_what_is_said_of_other_things_is_heard(tmp_path):
    """In a process of its own: hook and filters are gone with the last store; after a failed read they stay, for what
    is said of that step alone."""
    code = (
        "import logging, shutil, sys, types, numpy as np\n"
        "from jaxtrain.checkpoint import CorruptCheckpoint, Store\n"
        "told, loud = [], logging.getLogger('asyncio')\n"
        "sys.unraisablehook = hook = lambda what: told.append(what.exc_value)\n"
        "heard, loud.propagate = [], False\n"
        "loud.addHandler(types.SimpleNamespace(level=0, handle=lambda record: heard.append(record.getMessage())))\n"
        "where = Store(sys.argv[1]).directory\n"
        "s = Store(where, last=3)\n"
        "for step in range(3):\n"
        "    s.save(step, {'w': np.arange(3.0)}, {}, {}); s.wait()\n"
        "s.restore(1)\n"
        "late = types.SimpleNamespace(exc_value=RuntimeError('Event loop is closed'), object=None)\n"
        "sys.unraisablehook(late)\n"
        "loud.error('task of %s', where / '00000001/params')\n"
        "assert (len(told), len(heard)) == (1, 1), 'nothing is under way, nothing has failed'\n"
        "s.close()\n"
        "assert sys.unraisablehook is hook and loud.filters == logging.getLogger('absl').filters == []\n"
        "shutil.rmtree(where / '00000001/params')\n"
        "s = Store(where)\n"
        "try: s.restore(1)\n"
        "except CorruptCheckpoint: pass\n"
        "s.close()\n"
        "loud.error('task of %s', where / '00000001/params')\n"
        "sys.unraisablehook(late)\n"
        "assert (len(told), len(heard)) == (1, 1), 'of the read that failed nothing more is said'\n"
        "loud.error('task of %s', where / '00000002/params')\n"
        "late.object = 'a coroutine'\n"
        "sys.unraisablehook(late)\n"
        "assert (len(told), len(heard)) == (2, 2)\n"
        "theirs = sys.unraisablehook\n"
        "sys.unraisablehook = lambda what: theirs(what)\n"
        "s = Store(where); s.restore(2); sys.unraisablehook(late); s.close()\n"
        "assert len(told) == 3, 'hooks of others may stand before and behind'\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0 and run.stderr == "", run.stderr


def test_a_line_that_is_logged_while_a_step_begins_and_ends(tmp_path):
    """As Orbax's threads do: what the filters read never changes under them."""

    class Line(logging.LogRecord):
        n = 0

        def getMessage(self):
            for name in ("asyncio", "absl"):  # in the middle of a filter
                Line.n += 1
                quiet.begin(tmp_path / f"{Line.n}-{name}")
                quiet.end(tmp_path / f"{Line.n - 1}-{name}", well=Line.n % 3 > 0)
            return "a line of something else"

    before = quiet._under_way, quiet._failed
    quiet.hold(Line)
    try:
        for step in range(5):
            quiet.begin(tmp_path / str(step))
        quiet.end(tmp_path / "5", well=False)
        for name in ("asyncio", "absl"):
            assert logging.getLogger(name).filter(Line(name, 40, "here", 1, "", (), None))
        assert Line.n > 10
    finally:
        quiet.release(Line)
        quiet._under_way, quiet._failed = before


@pytest.mark.parametrize("words", ["basic", "none"])
def test_logging_of_the_program_around_it_is_left_alone(tmp_path, words):
    """After Orbax was imported and used, basicConfig still does what it says, and lines are printed once and plain."""
    code = (
        "import logging, sys, numpy as np\n"
        "from jaxtrain.checkpoint import Store\n"
        "from jaxtrain.console import log\n"
        "s = Store(sys.argv[1])\n"
        "s.save(1, {'w': np.arange(3.0)}, {}, {}); s.wait(); s.restore(1)\n"
        "log.info('one line')\n"
        "s.close()\n"
        "assert logging.root.handlers == [] and logging.root.level == logging.WARNING\n"
        "if sys.argv[2] == 'basic':\n"
        "    logging.basicConfig(format='theirs: %(message)s', level=logging.INFO, stream=sys.stdout)\n"
        "log.info('another')\n"
        "Store(sys.argv[1]).restore(1)\n"
        "log.info('the last')\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path, words], capture_output=True, text=True, timeout=100)
    theirs = "theirs: " if words == "basic" else ""
    assert run.stderr == "" and run.stdout.splitlines() == ["one line", f"{theirs}another", f"{theirs}the last"]


def test_orbax_is_imported_late(tmp_path):
    code = "import sys, jaxtrain.checkpoint as c; c.Store(sys.argv[1]); print({'orbax', 'jax'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize("warnings", ["error"])
def test_killed_and_orderly_ends(tmp_path, warnings):
    code = (
        "import sys, os, numpy as np\n"
        "from jaxtrain.checkpoint import Store\n"
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


def test_what_orbax_says_of_a_failed_save_when_all_is_closed_is_silent(tmp_path, monkeypatch, caplog):
    store = Store(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.AsyncCheckpointer, "_save_step_metadata", fail)
    store.save(2, tree(2), {}, {})
    assert store.wait() is False
    store.close()
    caplog.clear()
    late = logging.getLogger("absl")
    late.error("a thread raised an exception: cannot write %s", store.directory / "00000002.orbax-checkpoint-tmp/w")
    assert caplog.records == []
    late.error("of another step: %s", store.directory / "00000003")
    assert len(caplog.records) == 1
