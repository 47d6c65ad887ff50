"""Sources of every kind, whose batches say their number."""

import numpy as np


def batch(i, size=2):
    """A time-major (inputs, targets) that says its number."""
    return np.full((3, size), i, np.float32), np.full((1, size), i, np.int8)


def ids(batches):
    return [int(x[0, 0]) for x, _ in batches]


class Addressed:
    def batch(self, step):
        return batch(step)


class AddressedEpoch(Addressed):
    def __len__(self):
        return 4


class Again:
    """Starts again at its end; each epoch goes on where the one before ended, so an exact replay needs them all."""

    def __init__(self, n=4, short=False):
        self.n, self.short, self.epoch = n, short, -1

    def __iter__(self):
        self.epoch += 1
        for i in range(self.n):
            yield batch(10 * self.epoch + i)
        if self.short:
            yield batch(99, size=1)


class Cursor:
    """An iterator with a position (as grain's): bytes, which JSON does not have."""

    def __init__(self, n):
        self.n, self.i = n, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.i == self.n:
            raise StopIteration
        self.i += 1
        return batch(self.i - 1)

    def get_state(self):
        return str(self.i).encode()

    def set_state(self, state):
        self.i = int(state.decode())


class Cursors:
    def __init__(self, n=4):
        self.n = n

    def __iter__(self):
        return Cursor(self.n)


class Loader:
    """State on the iterable (as torchdata's): the live dict itself, with what JSON does not have; order by epoch."""

    def __init__(self, n=4, short=False):
        self.n, self.short = n, short
        self.live = {"epoch": 0, "i": 0, "rng": np.arange(3), "key": (1, b"x"), 7: None}

    def __iter__(self):
        while self.live["i"] < self.n:
            self.live["i"] += 1
            yield batch(10 * self.live["epoch"] + self.live["i"] - 1)
        if self.short:
            yield batch(99, size=1)
        self.live["i"] = 0
        self.live["epoch"] += 1

    def state_dict(self):
        return self.live

    def load_state_dict(self, state):
        assert isinstance(state["key"], tuple) and state["key"][1] == b"x" and state["rng"].tolist() == [0, 1, 2]
        self.live = state


class Items:
    """A data set with items and a length, and no __iter__."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.asked.append(i)
        if i >= 4:
            raise IndexError
        return batch(i)


LIST = [batch(i) for i in range(4)]
SHORT = [*LIST, batch(99, size=1)]
EXACT = {
    "addressed": (Addressed, range(100)),
    "addressed with an epoch": (AddressedEpoch, range(100)),
    "list": (lambda: LIST, [0, 1, 2, 3] * 10),
    "short list": (lambda: SHORT, [0, 1, 2, 3] * 10),
    "items": (Items, [0, 1, 2, 3] * 10),
    "again": (Again, [10 * e + i for e in range(9) for i in range(4)]),
    "short again": (lambda: Again(short=True), [10 * e + i for e in range(9) for i in range(4)]),
    "state on the iterator": (Cursors, [0, 1, 2, 3] * 10),
    "state on the iterable": (Loader, [10 * e + i for e in range(9) for i in range(4)]),
    "short, state on the iterable": (lambda: Loader(short=True), [10 * e + i for e in range(9) for i in range(4)]),
    "iterator": (lambda: (batch(i) for i in range(100)), range(100)),
    "iterator with a position": (lambda: Cursor(100), range(100)),
}
