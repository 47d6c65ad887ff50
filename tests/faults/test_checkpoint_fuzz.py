"""Checkpoint folders damaged at random: never a wrong number. And what a crafted one may do: nothing."""

import itertools
import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.store import Store
from jaxtrain.errors import CorruptCheckpoint, NoReadableCheckpoint
from jaxtrain.utils.digests import json_digest
from tests.faults.tiny import Noisy, fit
from tests.small import lines, tree_bytes

CASES, SEEDS = 100, range(5)


def arrays(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(5, 3)).astype(np.float32), "n": rng.integers(0, 99, 4), "one": np.float32(step)}


def equal(saved, step: int) -> bool:
    def same(a, b):
        return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for n in a)

    whole = saved.step == step and same(saved.params, arrays(step)) and same(saved.train, arrays(-step % 7))
    return whole and saved.meta["note"] == f"of step {step}"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("pristine") / "checkpoints"
    store = Store(path, last=2)
    for step in (1, 2):
        store.save(step, arrays(step), arrays(-step % 7), {"note": f"of step {step}"})
    store.close()
    return path


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def flip(rng, folder, other):
    path = rng.choice([p for p in files(folder) if p.stat().st_size])
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(rng, folder, other):
    path = rng.choice([p for p in files(folder) if p.stat().st_size])
    os.truncate(path, rng.randrange(path.stat().st_size))


def grow(rng, folder, other):
    path = rng.choice(files(folder))
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 40)))


def zeros(rng, folder, other):
    path = rng.choice(files(folder))
    path.write_bytes(bytes(path.stat().st_size))


def drop(rng, folder, other):
    path = rng.choice(list(folder.rglob("*")))
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def swap(rng, folder, other):
    one, two = rng.sample(files(folder), 2)
    one_data, two_data = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_data)
    two.write_bytes(one_data)


def swap_steps(rng, folder, other):
    """A file, or a whole item, of the other step in place of this one's."""
    item = rng.choice(["params", "train", "meta", None])
    if item is None:
        path = rng.choice(files(folder))
        path.write_bytes(rng.choice(files(other)).read_bytes())
    else:
        shutil.rmtree(folder / item)
        shutil.copytree(other / item, folder / item)


def cross(rng, folder, other):
    shutil.rmtree(folder / "params")
    shutil.copytree(folder / "train", folder / "params")


DAMAGE = [
    flip,
    flip,
    flip,
    flip,
    truncate,
    truncate,
    grow,
    zeros,
    drop,
    drop,
    swap,
    swap,
    swap_steps,
    swap_steps,
    cross,
]


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_checkpoint_is_equal_or_named_and_skipped(pristine, tmp_path, seed, caplog):
    rng = random.Random(seed)
    named = 0
    for case in range(CASES):
        where = tmp_path / "checkpoints"
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(pristine, where)
        damage = [rng.choice(DAMAGE) for _ in range(rng.choice([1, 1, 2]))]
        for one in damage:
            one(rng, where / "00000002", where / "00000001")
        what = f"seed {seed} case {case}: {[one.__name__ for one in damage]}"
        caplog.clear()
        store = Store(where, read_only=True)
        try:
            saved = store.latest_readable()
            assert saved is not None, what
            assert equal(saved, 2) or equal(saved, 1), f"{what}: a wrong number"
            if saved.step == 1:
                named += 1
                assert "the checkpoint of step 2 is unreadable: " in caplog.text, what
                with pytest.raises(CorruptCheckpoint, match="the checkpoint of step 2 is unreadable: .+") as error:
                    store.restore(2)
                assert "\n" not in str(error.value) and len(str(error.value)) < 300, what
        finally:
            store.close()
    assert named > CASES // 3, "the damage is real"


# ------------------------------------------------------------------------------------------------- crafted folders

_heard: list[str] | None = None


def _listen(event: str, args) -> None:
    if _heard is None:
        return
    if event in ("exec", "compile", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen", "os.exec"):
        _heard.append(f"{event} {args!r:.200}")
    elif event == "import" and args[0] in ("crafted", "antigravity", "this"):
        _heard.append(f"import {args[0]}")


sys.addaudithook(_listen)  # for good, and deaf unless a test listens


@pytest.fixture
def heard():
    """What Python says that it runs or unpickles, meanwhile."""
    global _heard
    _heard = []
    yield _heard
    _heard = None


def test_loading_runs_no_code(pristine, tmp_path, heard):
    """Not of a checkpoint as it is, and not of one that names code where Orbax writes the names of its handlers."""
    global _heard
    (tmp_path / "crafted.py").write_text("raise SystemExit('run')")
    sys.path.insert(0, str(tmp_path))
    try:
        store = Store(pristine, read_only=True)
        store.latest_readable()  # imports what it needs
        heard.clear()
        assert equal(store.latest_readable(), 2) and heard == []
        store.close()
        where = tmp_path / "checkpoints"
        shutil.copytree(pristine, where)
        for path in files(where):
            try:
                found = json.loads(path.read_bytes())
            except ValueError:
                continue
            path.write_text(json.dumps(renamed(found)))
        store = Store(where, read_only=True)
        with pytest.raises(NoReadableCheckpoint):
            store.latest_readable()
        store.close()
        assert heard == []
        compile("1 + 1", "", "eval")
        assert len(heard) == 1, "the ear works"
    finally:
        sys.path.remove(str(tmp_path))


def renamed(value):
    """The names of handlers and types replaced by that of a module that lies in wait."""
    if isinstance(value, dict):
        return {key: renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return "crafted.Handler" if isinstance(value, str) else value


def test_nothing_here_unpickles():
    """No file of the package names a module that runs what it reads."""
    for path in (Path(jt.__file__).parent).rglob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("pickle", "marshal", "dill", "shelve", "allow_pickle")), path


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that has a step to go."""
    path = tmp_path_factory.mktemp("begun") / "run"
    fit(path, 4).run(Noisy(), lines())
    return path


def strings(value, path=()):
    """Where the strings of a JSON value are, keys of dicts among them."""
    if isinstance(value, str):
        yield (*path, None)
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from strings(value[key], (*path, key))


def put(value, path, text):
    *most, last, _ = path
    for key in most:
        value = value[key]
    value[last] = text


@pytest.mark.long
@pytest.mark.parametrize("which", ["config.json", "metadata"])
def test_a_crafted_file_writes_nothing_outside_its_run(begun, tmp_path, which, monkeypatch):
    """Every text in it that could be a path is one that leads out of the run directory."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    run = home / "run"
    source = begun / ("config.json" if which == "config.json" else "checkpoints/00000004/meta/metadata")
    places = [*strings(json.loads(source.read_text()))]
    every = max(1, len(places) // 20)
    ends = set()
    for place, text in itertools.product(places[::every], ("../escaped", str(tmp_path / "escaped"))):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(begun, run)
        path = run / source.relative_to(begun)
        found = json.loads(path.read_text())
        put(found, place, text)
        if which == "metadata":  # whoever can write it can sign it
            found["digest"] = json_digest({key: value for key, value in found.items() if key != "digest"})
        path.write_text(json.dumps(found))
        try:
            fit(run, 6).run(Noisy(), lines(), resume="last")
            ends.add("went on")
        except (ValueError, TypeError, RuntimeError, LookupError, OSError, AttributeError):
            ends.add("refused")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["home"], (place, text)
        assert [p.name for p in home.iterdir()] == ["run"], (place, text)
    assert ends == {"went on", "refused"}


@pytest.mark.full
@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "config.json", "result.json", ".config.json.tmp"])
def test_links_in_a_run_directory_are_not_written_through(begun, tmp_path, name):
    outside = tmp_path / "mine"
    outside.write_text('{"mine": 1}')
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    try:
        fit(run, 6).run(Noisy(), lines(), resume="last")
    except (OSError, RuntimeError, KeyError, ValueError):
        pass
    assert outside.read_text() == '{"mine": 1}'
    assert tree_bytes(begun).keys() >= {"config.json", "metrics.jsonl"}
