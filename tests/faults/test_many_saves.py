"""Many tiny saves in one process: descriptors and threads do not grow, memory by no more than TensorStore loses.

SAVES=3000 python -m pytest tests/faults/test_many_saves.py -s    the long one

Of the memory, TensorStore 0.1 loses some 600 bytes at every ``KvStore.Spec(...).to_json()``, which Orbax calls several
times a save: the last test measures it.
"""

import os
import resource

import numpy as np
import pytest

from jaxtrain.checkpoint import Store

SAVES = int(os.environ.get("SAVES", "300"))
PAGE = resource.getpagesize()
MOST = 8.0
"""KiB a save: half of what a save holds here, so that a store that keeps its arrays is found."""

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")


def resident() -> int:
    """Bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def measure() -> tuple[int, int, int]:
    """Open descriptors, threads, resident bytes."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident()


def save(store: Store, saves: int) -> np.ndarray:
    """Many saves; after every tenth what there is then."""
    seen = []
    for step in range(saves):
        store.save(step, {"w": np.full((64, 64), step, np.float32)}, {"rng": np.uint32([step, 1])}, {}, score=-step)
        if step % 10 == 9:
            store.wait()
            seen.append(measure())
    return np.array(seen, float)


def growth(seen: np.ndarray) -> np.ndarray:
    """Descriptors, threads and KiB a save in the second half: caches and pools are full by then."""
    settled = seen[len(seen) // 2 :]
    return np.polyfit(np.arange(len(settled)) * 10, settled, 1)[0] / (1, 1, 1024)


@needs_proc
@pytest.mark.slow
def test_many_saves_leave_nothing_behind(tmp_path):
    store = Store(tmp_path, last=2, best=1)
    seen = save(store, SAVES)
    assert store.steps() == [SAVES - 2, SAVES - 1] and store.best_step() == SAVES - 1
    store.close()
    half, found = len(seen) // 2, growth(seen)
    print(
        "{} saves, per save in the second half: {:+.4f} descriptors, {:+.4f} threads, {:+.2f} KiB".format(SAVES, *found)
    )
    for what in (0, 1):
        assert max(seen[half:, what]) <= max(seen[:half, what]) + 2
    assert found[2] < MOST


@needs_proc
@pytest.mark.slow
def test_a_store_that_keeps_what_it_saved_is_found(tmp_path, monkeypatch):
    """The bound of the test above is one that a real leak passes: one copy of the arrays a save."""
    kept, real = [], Store.save

    def leaks(self, step, params, *args, **options):
        kept.append({name: leaf.copy() for name, leaf in params.items()})
        return real(self, step, params, *args, **options)

    monkeypatch.setattr(Store, "save", leaks)
    store = Store(tmp_path, last=2, best=1)
    found = growth(save(store, 200))
    store.close()
    print("with a leak of {} KiB a save: {:+.2f} KiB".format(kept[0]["w"].nbytes // 1024, found[2]))
    assert found[2] > MOST


@needs_proc
def test_what_tensorstore_loses():
    """Where this fails, TensorStore has been mended: MOST may go down."""
    import tensorstore

    def calls(n: int) -> float:
        before = resident()
        for _ in range(n):
            tensorstore.KvStore.Spec({"driver": "ocdbt", "base": "file:///nowhere/", "path": "a"}).to_json()
        return (resident() - before) / n

    calls(2000)
    lost = calls(20_000)
    print(f"{lost:.0f} bytes a call")
    assert lost > 300
