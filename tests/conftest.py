"""Common setup: one CPU device, compiled programs cached on disk, independence of how the tests were started."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

# Before anything imports JAX, and in the environment, so that processes started by tests have them too.
os.environ["JAX_PLATFORMS"] = "cpu"
if os.environ.get("JAXTRAIN_TEST_CACHE") != "off":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Compilation takes most of the time of the tests, and LLVM's optimizer a quarter of that. Bit-for-bit equality must
# also hold for optimized code: the smoke tests and the long tests run with `--optimized`. The flag is set here, since
# a conftest.py of a folder may start JAX; workers find the choice in the environment.
if "--optimized" in sys.argv:
    os.environ["TESTS_OPTIMIZED"] = "1"
elif "TESTS_OPTIMIZED" not in os.environ:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

# Set by a `make` that runs the tests; a `make` that a test runs must not inherit them.
for name in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS"):
    os.environ.pop(name, None)

# A shell starts background jobs with SIGINT ignored, and nohup ignores SIGHUP; child processes would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.small, also where pytest is not run as a module

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

pytest_plugins = ["tests.kit.tiers", "tests.kit.costs"]

settings.register_profile("jaxtrain", deadline=None)  # the first example of a test compiles
settings.load_profile("jaxtrain")


def pytest_addoption(parser):
    parser.addoption("--optimized", action="store_true", help="let XLA optimize machine code, as it does for users")


def pytest_collection_finish():
    """Start JAX with one CPU device here, whichever test comes first: a recipe would create one per core."""
    import brainstate.transform._error_if
    import jax

    # The initial weights of braintrace's layers are drawn by a function that checks its bounds in a separate program.
    # Outside Fit, every draw compiles this program again, which takes a tenth of the time of all tests.
    brainstate.transform._error_if.jit_error_if = lambda *_, **__: None

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # it was started in a conftest.py, with one device
            jax.config.update("jax_num_cpu_devices", 1)


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
    from jaxtrain.checkpoint.store import Store

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
