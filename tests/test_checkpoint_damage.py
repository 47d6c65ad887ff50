"""A damaged checkpoint is named and skipped, and never loaded as a wrong number."""

import logging
import random
import shutil

import pytest

from jaxtrain.errors import CorruptCheckpoint, NoReadableCheckpoint
from tests.stores import data_files, put, same, scored, spoil, tree

FAULTS = [
    "empty",
    "no meta",
    "no params",
    "params twice",
    "data gone",
    "data truncated",
    "meta truncated",
    "meta changed",
]
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


def test_all_unreadable_is_an_error(tmp_path, opened):
    put(opened(tmp_path, last=3), 1, 2)
    spoil(tmp_path, 1, "empty")
    spoil(tmp_path, 2, "data truncated")
    with pytest.raises(NoReadableCheckpoint, match="step 2: .*; step 1: ") as error:
        opened(tmp_path).latest_readable()
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert opened(tmp_path / "new").latest_readable() is None


def test_a_damaged_score_is_not_the_best(tmp_path, opened, caplog):
    store = opened(tmp_path, last=1, best=2)
    scored(store, {1: 1.0, 2: 2.0, 3: 3.0})
    spoil(tmp_path, 1, "meta truncated")
    fresh = opened(tmp_path, last=1, best=2)
    with caplog.at_level(logging.WARNING):
        assert fresh.best_step() == fresh.best_step() == 2
    assert caplog.text.count("step 1") == 1
    scored(fresh, {4: 9.0})
    assert fresh.steps() == [2, 3, 4]


def test_training_past_an_unreadable_step(tmp_path, opened, caplog):
    put(opened(tmp_path, last=3), 10, 20, 30)
    spoil(tmp_path, 20, "empty")
    spoil(tmp_path, 30, "data truncated")
    store = opened(tmp_path, last=1)
    assert store.latest_readable().step == 10
    put(store, 15)  # an unreadable newer step does not displace the only good one
    assert store.steps() == [15, 20, 30]
    put(store, 20)  # it is replaced, not regarded as saved
    assert store.steps() == [20, 30]
    same(tree(20), store.restore(20).params)
    assert opened(tmp_path, read_only=True).latest_readable().step == 20
    put(store, 40)
    assert store.steps() == [40]


@pytest.mark.full
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
