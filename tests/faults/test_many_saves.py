"""Many tiny saves in one process: descriptors, threads and memory do not grow.

SAVES=3000 python -m pytest tests/faults/test_many_saves.py -s    the long one
"""

import os
import resource

import numpy as np
import pytest

from jaxtrain.checkpoint import Store

SAVES = int(os.environ.get("SAVES", "300"))
PAGE = resource.getpagesize()


def measure() -> tuple[int, int, int]:
    """Open descriptors, threads, resident bytes."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * PAGE
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_many_saves_leave_nothing_behind(tmp_path):
    store = Store(tmp_path, last=2, best=1)
    seen = []
    for step in range(SAVES):
        store.save(step, {"w": np.full((8, 8), step, np.float32)}, {"rng": np.uint32([step, 1])}, {}, score=-step)
        if step % 10 == 9:
            store.wait()
            seen.append(measure())
    assert store.steps() == [SAVES - 2, SAVES - 1] and store.best_step() == SAVES - 1
    store.close()
    half = len(seen) // 2
    settled = np.array(seen[half:], float)  # caches and pools are full by then
    descriptors, threads, resident = np.polyfit(np.arange(len(settled)) * 10, settled, 1)[0]
    print(f"{SAVES} saves, per save in the second half: {descriptors:+.4f} descriptors, {threads:+.4f} threads, "
          f"{resident / 1024:+.2f} KiB")  # fmt: skip
    assert max(s[0] for s in seen[half:]) <= max(s[0] for s in seen[:half]) + 2
    assert max(s[1] for s in seen[half:]) <= max(s[1] for s in seen[:half]) + 2
    assert resident * SAVES < 20 * 2**20, "less than 20 MiB over the whole run"
