"""HDF5 files of recordings, generated, in the layouts that recipes/shd.py reads."""

import numpy as np


def write_spikes(path, count=23, classes=3, seed=0):
    """A file in the layout of SHD: times in float16 seconds, 1.2 s of them, and units of 700. Returns its contents."""
    import h5py

    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(count) % classes)
    sizes = rng.integers(0, 80, count)
    times = [np.sort(rng.uniform(0, 1.2, size)).astype("f2") for size in sizes]
    units = [(200 * y + rng.integers(0, 300, size)).astype("u2") for y, size in zip(label, sizes, strict=True)]
    with h5py.File(path, "w") as file:
        for key, kind, values in (("times", "f2", times), ("units", "u2", units)):
            made = file.create_dataset(f"spikes/{key}", (count,), dtype=h5py.vlen_dtype(np.dtype(kind)))
            for number, value in enumerate(values):
                made[number] = value
        file["labels"] = label.astype("u2")
    return times, units, label


def write_events(path, train=12, test=5, seed=0):
    """A file in the layout of N-MNIST: microseconds, and polarity, x and y of each event. Returns its contents."""
    import h5py

    rng, contents = np.random.default_rng(seed), []
    with h5py.File(path, "w") as file:
        for key in range(train + test):
            times = np.sort(rng.integers(0, 300_000, 200)).astype("u4")
            addrs = np.stack([rng.integers(0, most, 200) for most in (2, 34, 34)], 1).astype("u1")
            group = file.create_group(f"data/{key}")
            group["times"], group["addrs"], group["labels"] = times, addrs, np.uint8(key % 3)
            contents.append((times, addrs, key % 3))
        order = rng.permutation(train + test)
        file["extra/train_keys"], file["extra/test_keys"] = order[:train], order[train:]
    return contents, order
