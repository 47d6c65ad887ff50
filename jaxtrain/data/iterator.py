"""Feed: an exact position among the batches of a source, through prefetch and resume; and where batches come from."""

import logging
from collections import deque
from typing import Any, NoReturn

import jax

from ..errors import DataEnded, DataError
from ..utils.digests import digest
from .batch import Spec
from .datamodule import DataModule, as_data, begin_task, change_task, encodes, identity_of, set_up, warn_of_layout
from .sources import Counted, Kind, adapt, length_of, noted

__all__ = [
    "DataEnded", "DataError", "DataModule", "Feed", "as_data", "begin_task", "change_task", "encodes", "identity_of",
    "set_up", "warn_of_layout",
]  # fmt: skip

logger = logging.getLogger("jaxtrain")


def _digest(batch: Any) -> str:
    return digest({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)})


class Feed:
    """A position in a source of batches.

    A source is an object with `batch(step)` ("addressed"; with `__len__` an epoch is that many steps); an iterable
    that, or whose iterator, has `state_dict/load_state_dict` or `get_state/set_state` ("stateful"); a list or any
    iterable that starts again ("reiterable"; a short last batch is dropped); or a one-shot "iterator".
    Batches are pytrees of arrays; they come out as copies in numpy, time-major `(T, B, ...)` whatever the source's
    layout (`batch_first`), 64 bits made 32 unless `jax_enable_x64`; a list of plain numbers is one array. All have the
    tree, shapes and dtypes of the first.

    `length` is the batches of an epoch, None where unknown; `kind` one of the words in quotes above; `taken` counts
    the batches consumed; `ready` those that `take` can return without asking the source. Batches are numbered from 0.
    Raises DataError for what is no source or holds no batch.

    >>> feed = Feed([[1.0, 2.0], [3.0, 4.0]])
    >>> feed.take(1), feed.state()
    ([array([1., 2.], dtype=float32)], {'kind': 'reiterable', 'batch': 1, 'epoch': 0, 'index': 1})
    """

    def __init__(self, source: Any, name: str = "train", batch_first: bool | None = None) -> None:
        self.name = name
        self._source = adapt(source, name, batch_first)
        self._queue: deque[tuple[Any, dict[str, Any]]] = deque()  # batches made ahead, each with the position after it
        self._error: Exception | None = None  # what making the batch after those in the queue raised
        self._spec: Spec | None = None  # what all batches look like
        self._old_spec: Spec | None = None  # before clear(): the next batch may be a short last one
        self._said: set[str] = set()
        self._last: Any = None  # the last batch consumed
        self._digest: str | None = None  # after a restore: that of the last batch, until another one is
        self.differs = False
        self.taken = 0
        self._measure()
        self._position = self._origin = self._source.position(0)

    @property
    def kind(self) -> Kind:
        return self._source.kind

    @property
    def batch_first(self) -> bool | None:
        """The layout stated for the source; None where it is not, and time-major arrays are taken for granted."""
        return self._source.batch_first

    @property
    def length(self) -> int | None:
        return self._source.length

    @property
    def ready(self) -> int:
        return len(self._queue)

    def example(self) -> Any:
        """The next batch, not consumed. Raises as `take` does."""
        self._fill(1)
        if not self._queue:
            self._fail()
        return self._queue[0][0]

    def take(self, n: int) -> list[Any]:
        """Consume the next `n` batches.

        Raises DataError for a batch unlike the first, DataEnded where an iterator has ended, and what the source
        raised, with a note that says which batch. Then nothing is consumed; the `ready` batches before it can be.
        """
        self._fill(n)
        if len(self._queue) < n:
            self._fail()
        batches = []
        for _ in range(n):
            self._last, self._position = self._queue.popleft()
            batches.append(self._last)
        self.taken += len(batches)
        return batches

    def prefetch(self, n: int) -> None:
        """Make the next `n` batches now. The position stays; an error is kept for the `take` that reaches it."""
        self._fill(n)

    def first(self) -> Any:
        """Batch 0 as the source gives it now, whatever the position; the position stays.

        Raises DataError for a one-shot iterator that is past it.
        """
        if isinstance(self._source, Counted):
            return self._source.read(0)
        if self.taken == 0:
            return self.example()
        target, position = self.taken, self._position
        self._seek(self._origin)
        batch = self.example()
        self._seek(position)
        self._skip(target - self.taken)
        return batch

    def reads(self, source: Any) -> bool:
        """Whether it reads this source in order, so that a pass over it would move the position."""
        return self._source.source is source and not isinstance(self._source, Counted)

    def state(self) -> dict[str, Any]:
        """The position after the last batch consumed, as JSON."""
        return {"kind": self.kind, **self._position}

    def mark(self) -> dict[str, Any]:
        """`state()` with a digest of the last batch consumed: by it `restore` sees whether a source repeats itself."""
        last = self._digest if self._last is None else _digest(self._last)
        return self.state() if last is None else {**self.state(), "digest": last}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to the position of `state()` or `mark()`; the next batch is exactly the one that would have come.

        What cannot be set is replayed from the start, epoch by epoch, with a line in the log. `differs` says
        afterwards that the batch before the position is not the one that `mark()` was made after: the source gives
        other batches each time. (One that sets its own state is believed.) Raises DataError for a position of another
        kind of source, DataEnded for an iterator that ends before it.
        """
        position = {key: value for key, value in state.items() if key not in ("kind", "digest")}
        if state["kind"] != self.kind:
            raise DataError(
                f"{self.name} data: the saved position is of a source of kind {state['kind']!r}, this one is "
                f"{self.kind!r}; give the data that the run was saved with"
            )
        if self._spec is None:
            self.example()  # the next batch may be a short one: only the first of all says what is expected
        if not self._source.replays or position["batch"] < self.taken:
            self._seek(position)
        self._skip(position["batch"] - self.taken)
        self._digest = state.get("digest")
        if self._digest is not None and isinstance(self._source, Counted):
            self._last = self._source.read(self.taken - 1)
        known = self._digest is not None and self._last is not None
        self.differs = known and _digest(self._last) != self._digest

    def clear(self) -> None:
        """Drop what was prefetched, and expect what comes next to look anew: the task of the data has changed.

        Raises DataError for a one-shot iterator, which cannot make its batches again.
        """
        if self.kind == "iterator":
            raise DataError(
                f"{self.name} data: the task cannot change, for a one-shot iterator has made batches ahead; give an "
                "object with batch(step)"
            )
        self._spec, self._old_spec = None, self._spec or self._old_spec
        self._measure()
        if isinstance(self._source, Counted):
            self._position = self._source.position(self.taken)  # in epochs of what may be another length now
        if self._queue or self._error:
            target = self.taken
            self._seek(self._position)
            self._skip(target - self.taken)
        self._last = self._digest = None  # what was consumed was of another task

    def _seek(self, position: dict[str, Any]) -> None:
        self.taken = self._source.seek(position)
        self._position = position
        self._queue.clear()
        self._error = self._last = None

    def _skip(self, n: int) -> None:
        if n:
            logger.info("%s data: replaying %d batches to reach the saved position", self.name, n)
        for _ in range(n):
            self.take(1)

    def _fail(self) -> NoReturn:
        assert self._error is not None
        raise self._error

    def _fill(self, n: int) -> None:
        while len(self._queue) < n and self._error is None:
            number = self.taken + len(self._queue)
            try:
                self._queue.append(self._make(number))
            except Exception as error:
                self._error = noted(error, number, self.name)

    def _make(self, number: int) -> tuple[Any, dict[str, Any]]:
        why = None
        for _ in range(2):  # a short last batch is dropped once: then an epoch must begin with a whole one
            batch = self._source.host(number)
            position = self._source.position(number + 1)  # before ended(), which may read on
            why = self._spec.mismatch(batch) if self._spec else None
            expected = self._old_spec if self._spec is None else self._spec if why else None  # a match is not short
            short = expected is not None and expected.short(batch) and self._source.ended()
            if why is None and not short:
                self._spec = self._spec or Spec(batch, self.batch_first)
                return batch, position
            if not short:
                break
            self._say(
                f"{self.name} data: the short last batch of an epoch is dropped"
                + (f"; periods in epochs count it, {self.length} steps an epoch" if self.length else "")
            )
        raise self._unlike(batch, number)

    def _unlike(self, batch: Any, number: int) -> DataError:
        assert self._spec is not None
        why, advice = self._spec.mismatch(batch), self._spec.advice(batch)
        return DataError(f"{self.name} data: batch {number}: {why} as in batches before; {advice}", number)

    def _measure(self) -> None:
        """Ask for the length of an epoch; a sequence's is without a short last item, before anything counts by it."""
        source = self._source
        if source.kind != "iterator":
            source.length = length_of(source.source, self.name)
        if not isinstance(source, Counted) or source.kind == "addressed":
            return
        last = (source.length or 1) - 1
        number = 0
        try:
            self._spec = Spec(source.host(0), self.batch_first)
            number = last
            batch = source.host(last)
            if self._spec.looks_batch_major(batch):
                raise self._unlike(batch, last)
            short = self._spec.short(batch)
        except Exception as error:
            raise noted(error, number, self.name)  # noqa: B904
        if short:
            source.length = last
            self._say(f"{self.name} data: the short last batch of an epoch is dropped; an epoch is {last} batches")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.info(line)
