"""Many tiny saves in one process: descriptors and threads do not grow, memory by no more than TensorStore loses.

SAVES=3000 python -m pytest tests/faults/test_many_saves.py -s    the long one

Of the memory, TensorStore 0.1 loses some 600 bytes at every ``KvStore.Spec(...).to_json()``, which Orbax calls several
times a save: the last test measures it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults import many_saves

SAVES = int(os.environ.get("SAVES", "300"))
MOST = 24.0
"""KiB a save: less than half of what a save holds here, so that a store that keeps its arrays is found; caches of 300
saves still grow by 4 to 9."""

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")


def run(*arguments: object) -> str:
    """What a process of its own printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def growth(seen: np.ndarray) -> np.ndarray:
    """Descriptors, threads and KiB a save in the second half: caches and pools are full by then."""
    settled = seen[len(seen) // 2 :]
    return np.polyfit(np.arange(len(settled)) * 10, settled, 1)[0] / (1, 1, 1024)


@pytest.mark.long
def test_many_saves_leave_nothing_behind(tmp_path):
    seen = np.array(json.loads(run("-m", "tests.faults.many_saves", tmp_path, SAVES)), float)
    half, found = len(seen) // 2, growth(seen)
    print(
        "{} saves, per save in the second half: {:+.4f} descriptors, {:+.4f} threads, {:+.2f} KiB".format(SAVES, *found)
    )
    for what in (0, 1):
        assert max(seen[half:, what]) <= max(seen[:half, what]) + 2
    assert found[2] < MOST


@pytest.mark.long
def test_a_store_that_keeps_what_it_saved_is_found(tmp_path):
    """A real leak, one copy of the arrays per save, exceeds the bound of the test above."""
    found = growth(np.array(json.loads(run("-m", "tests.faults.many_saves", tmp_path, 200, "leak")), float))
    print(f"with a leak of {many_saves.LEAF.nbytes // 1024} KiB a save: {found[2]:+.2f} KiB")
    assert found[2] > MOST


def test_what_tensorstore_loses():
    """Where this fails, TensorStore has been mended: MOST may go down."""
    code = (
        "import sys, tensorstore\n"
        "from tests.faults.many_saves import resident\n"
        "def calls(n):\n"
        "    before = resident()\n"
        "    for _ in range(n):\n"
        "        tensorstore.KvStore.Spec({'driver': 'ocdbt', 'base': 'file:///nowhere/', 'path': 'a'}).to_json()\n"
        "    return (resident() - before) / n\n"
        "calls(2000)\n"
        "print(calls(20_000))"
    )
    lost = float(run("-c", code))
    print(f"{lost:.0f} bytes a call")
    assert lost > 300
