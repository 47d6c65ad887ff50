"""Of all tests: one CPU, compiled programs kept on disk so that the next run starts at once, and fixtures."""

import os
import sys
from pathlib import Path

# Before anything imports JAX, and in the environment, so that processes started by tests have them too.
os.environ["JAX_PLATFORMS"] = "cpu"
if os.environ.get("JAXTRAIN_TEST_CACHE") != "off":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.small, also where pytest is not run as a module

import pytest
from hypothesis import settings

settings.register_profile("jaxtrain", deadline=None)  # the first example of a test compiles
settings.load_profile("jaxtrain")


@pytest.fixture
def no_compilation_cache():
    """Every program is compiled anew: for tests that count or time compiles."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX remembers whether it uses the cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.fixture
def opened():
    """Makes a Store; each is closed after the test."""
    from jaxtrain.checkpoint import Store

    stores = []

    def make(*args, **kwargs):
        stores.append(Store(*args, **kwargs))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Stands for a recipe's Fit, in an empty working directory."""
    from tests.commands import Recorder

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXTRAIN_TRACEBACK", raising=False)
    return Recorder()


@pytest.fixture
def call(fit, capsys):
    """`call("--lr", 1)` -> (exit code, stdout, stderr)"""
    from jaxtrain import cli
    from tests.commands import PRESETS, Config

    def run(*argv):
        code = cli.main(Config, fit.make, presets=PRESETS, chance={"accuracy": 0.125}, argv=[str(a) for a in argv])
        return code, *capsys.readouterr()

    return run
