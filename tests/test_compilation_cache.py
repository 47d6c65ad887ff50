"""The second start of a run compiles nothing, even after a damaged entry; and when the cache is off."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from jaxtrain.utils import compilation_cache

ROOT = Path(__file__).parents[1]
START = f"""
import collections, runpy, sys
import jax
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **kwargs: seen.update([event.rsplit("/", 1)[-1]]))
sys.argv = ["copy_gru.py", "--max-steps", "4", "--time-lag", "3", "--digits", "2", "--batch-size", "2",
            "--no-progress", *sys.argv[1:]]
try:
    runpy.run_path({str(ROOT / "recipes" / "copy_gru.py")!r}, run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code, leaving
print("MISSES", seen["cache_misses"], "HITS", seen["cache_hits"])
"""


def start(tmp_path: Path, *argv: str) -> tuple[int, int, str]:
    """Misses, hits, and stderr."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMP", "JAX_PERS"))}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", START, *argv], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    _, misses, _, hits = done.stdout.splitlines()[-1].split()
    return int(misses), int(hits), done.stderr


@pytest.mark.long
@pytest.mark.parametrize("engine", ["reverse", "trace"])
def test_a_second_start_compiles_nothing_and_a_damaged_entry_is_replaced(tmp_path, engine):
    argv = ("--strategy", "drtrl", "--strategy.engine", engine)
    assert start(tmp_path, *argv)[0] > 0
    kept = tmp_path / "cache" / "jaxtrain" / "xla"
    assert kept.stat().st_mode & 0o777 == 0o700
    assert start(tmp_path, *argv)[0] == 0
    (entry,) = kept.glob("jit_chunk-*-cache")
    entry.write_bytes(entry.read_bytes()[:1000])
    misses, _, said = start(tmp_path, *argv)
    assert "a damaged entry of the compilation cache is replaced: jit_chunk" in said
    misses, hits, said = start(tmp_path, *argv)
    assert misses == 0 and hits > 0 and "damaged" not in said


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    for variable in compilation_cache.SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax", raising=False)  # it has the settings of the test session
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return tmp_path / "jaxtrain" / "xla"


def test_a_directory_that_others_can_write_is_not_used(fresh):
    fresh.mkdir(parents=True)
    fresh.chmod(0o755)
    with pytest.warns(UserWarning, match=r"others can access .*, and its content is executed as code; `chmod 700` it"):
        assert compilation_cache.use_compilation_cache() is None
    fresh.chmod(0o700)
    assert compilation_cache.use_compilation_cache() == fresh
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(fresh)


def test_the_environment_takes_precedence(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert compilation_cache.use_compilation_cache() is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    assert compilation_cache.use_compilation_cache() == tmp_path / "own"
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert compilation_cache.use_compilation_cache() is None
    assert not fresh.exists()


def test_a_cache_that_cannot_be_created_is_reported(fresh, tmp_path):
    (tmp_path / "jaxtrain").write_text("a file")
    with pytest.warns(UserWarning, match="the compilation cache is off: .*: "):
        assert compilation_cache.use_compilation_cache() is None
