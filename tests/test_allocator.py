"""The settings of the allocator, by the page faults of blocks that are allocated and freed repeatedly."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.utils import allocator

ROOT = Path(__file__).parents[1]
GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
PROGRAM = """
import ctypes, resource, sys, threading
from jaxtrain.utils.allocator import keep_freed_memory

MIB = 80  # more than a heap of a thread's own arena holds
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(MIB << 20)
    libc.memset(block, 1, MIB << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    faults()
    print(keep_freed_memory(), min(faults() for _ in range(3)) * resource.getpagesize() >= MIB << 19, end=" ")
    print(max(faults() for _ in range(3)) * resource.getpagesize() >= MIB << 19)

if sys.argv[1] == "keep":
    keep_freed_memory()
    faults()
else:
    keep_freed_memory = lambda: None
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert "jax" not in sys.modules
"""


def run(mode, **env):
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_memory_is_not_faulted_in_again():
    """Without the settings, and with the user's own, every page of every block is."""
    assert run("keep") == ["True", "False", "False"]
    assert run("leave") == ["None", "True", "True"]
    assert run("keep", MALLOC_MMAP_THRESHOLD_="100000") == ["True", "True", "True"]


class Libc:
    def __init__(self, glibc):
        self.calls = []
        if glibc:
            self.gnu_get_libc_version = None

    def mallopt(self, parameter, value):
        self.calls.append((parameter, value))
        return 1


@pytest.mark.parametrize(
    ("platform", "glibc", "environ", "left"),
    [
        ("linux", True, {}, []),
        ("linux", True, {"MALLOC_TOP_PAD_": "0", "MALLOC_ARENA_MAX": "4"}, ["MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX"]),
        ("linux", True, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1:glibc.malloc.arena_max=2"},
         ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"]),
        ("linux", True, dict.fromkeys(allocator.SETTINGS, "1"), list(allocator.SETTINGS)),
        ("linux", False, {}, list(allocator.SETTINGS)),
        ("darwin", True, {}, list(allocator.SETTINGS)),
        ("win32", True, {}, list(allocator.SETTINGS)),
    ],
)  # fmt: skip
def test_which_settings_are_made(monkeypatch, platform, glibc, environ, left):
    libc = Libc(glibc)
    monkeypatch.setattr(allocator.sys, "platform", platform)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)
    for name in (*allocator.SETTINGS, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    expected = sorted(setting for name, setting in allocator.SETTINGS.items() if name not in left)
    assert allocator.keep_freed_memory() is bool(expected)
    assert sorted(libc.calls) == expected


def test_importing_jaxtrain_sets_nothing():
    program = "import jaxtrain, sys; jaxtrain.Fit; assert 'jaxtrain.utils.allocator' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
