"""Many tiny saves in a process of its own: what a process did before leaves free memory in which growth would hide.

python -m tests.faults.many_saves DIRECTORY SAVES [leak]    a JSON list of [descriptors, threads, resident bytes]
"""

import json
import os
import resource
import sys

import numpy as np

from jaxtrain.checkpoint.store import Store

PAGE = resource.getpagesize()
LEAF = np.zeros((128, 128), np.float32)


def resident() -> int:
    """Bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def measure() -> tuple[int, int, int]:
    """Open descriptors, threads, resident bytes."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident()


def main(directory: str, saves: int, leak: bool) -> None:
    store, kept, seen = Store(directory, last=2, best=1), [], []
    for step in range(saves):
        params = {"w": LEAF + step}
        store.save(step, params, {"rng": np.uint32([step, 1])}, {}, score=-step)
        if leak:
            kept.append(params["w"].copy())
        if step % 10 == 9:
            store.wait()
            seen.append(measure())
    assert store.steps() == [saves - 2, saves - 1] and store.best_step() == saves - 1
    store.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["leak"])
