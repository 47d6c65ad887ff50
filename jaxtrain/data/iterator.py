"""DataIterator: reads the batches of a source and keeps an exact position, across prefetching and resume."""

from collections import deque
from typing import Any

import jax

from ..errors import DataError
from ..utils.digests import digest
from ..utils.logging import log
from .batch import Spec
from .sources import IndexedReader, Kind, adapt, length_of


def _digest(batch: Any) -> str:
    return digest({jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)})


class DataIterator:
    """A position in a source of batches.

    There are four kinds of sources:

    - "addressed": an object with `batch(step)`. If it has `__len__`, an epoch is that many steps.
    - "stateful": an iterable that has `state_dict/load_state_dict` or `get_state/set_state`, or whose iterator has.
    - "reiterable": a list or any iterable that can be iterated again. A short last batch is dropped.
    - "iterator": a one-shot iterator.

    Batches are pytrees of arrays. They are returned as numpy copies, time-major `(T, B, ...)` whatever the source's
    layout (`batch_first`). 64-bit types become 32-bit unless `jax_enable_x64` is set; a list of plain numbers is one
    array. All batches have the tree, shapes and dtypes of the first, unless an addressed source has an attribute
    `shape_examples`, the numbers of batches of all its shapes, the largest first. Batches are numbered from 0.

    `length` is the number of batches per epoch, or None if unknown. `kind` is one of the words above. `taken` counts
    the batches consumed, and `ready` those that `take` can return without reading the source.

    >>> iterator = DataIterator([[1.0, 2.0], [3.0, 4.0]])
    >>> iterator.take(1), iterator.state()
    ([array([1., 2.], dtype=float32)], {'kind': 'reiterable', 'batch': 1, 'epoch': 0, 'index': 1})

    Args:
        source: The source.
        name: Name of the data, for messages.
        batch_first: Layout of the source's arrays, True for `(B, T, ...)`; None: not stated.

    Raises:
        DataError: `source` is not a source or has no batches.
    """

    def __init__(self, source: Any, name: str = "train", batch_first: bool | None = None) -> None:
        self._source = adapt(source, name, batch_first)
        self._queue: deque[tuple[Any, dict[str, Any]]] = deque()  # prefetched batches, each with the position after it
        self._error: Exception | None = None  # raised for the batch after those in the queue
        self._spec: Spec | None = None  # tree, shapes and dtypes of all batches
        self._old_spec: Spec | None = None  # from before clear(): the next batch may be a short last one
        self._logged: set[str] = set()
        self._last: Any = None  # the last batch consumed
        self._digest: str | None = None  # after restore(): of the last batch, until another is consumed
        self.differs = False
        self.taken = 0
        self._measure()
        self._position = self._origin = self._source.position(0)

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def kind(self) -> Kind:
        return self._source.kind

    @property
    def batch_first(self) -> bool | None:
        """Layout stated for the source; None: not stated, and arrays are taken to be time-major."""
        return self._source.batch_first

    @property
    def length(self) -> int | None:
        return self._source.length

    @property
    def ready(self) -> int:
        return len(self._queue)

    def example(self) -> Any:
        """The next batch, without consuming it. Raises as `take` does."""
        self._require(1)
        return self._queue[0][0]

    def examples(self) -> list[Any]:
        """A batch of each shape, the largest first, if the source has several shapes; else the next batch."""
        return self._examples() or [self.example()]

    def _examples(self) -> list[Any]:
        return self._source.examples() if isinstance(self._source, IndexedReader) else []

    def take(self, n: int) -> list[Any]:
        """Consume the next `n` batches.

        If an error is raised, nothing is consumed; the `ready` batches before the error can still be taken.

        Raises:
            DataError: A batch differs from the first in tree, shapes or dtypes.
            DataEnded: An iterator has ended.
            Exception: What the source raised, with a note that names the batch.
        """
        self._require(n)
        batches = []
        for _ in range(n):
            self._last, self._position = self._queue.popleft()
            batches.append(self._last)
        self.taken += len(batches)
        return batches

    def prefetch(self, n: int) -> None:
        """Read the next `n` batches now, without moving the position. An error is kept until `take` reaches it."""
        while len(self._queue) < n and self._error is None:
            try:
                self._queue.append(self._make(self.taken + len(self._queue)))
            except Exception as error:
                self._error = error

    def first(self) -> Any:
        """Batch 0 as the source returns it now, or the largest of `examples`. The position does not move.

        Raises:
            DataError: A one-shot iterator is past batch 0.
        """
        if isinstance(self._source, IndexedReader):
            return (self._examples() or [self._source.read(0)])[0]
        if self.taken == 0:
            return self.example()
        target, position = self.taken, self._position
        self._seek(self._origin)
        batch = self.example()
        self._seek(position)
        self._skip(target - self.taken)
        return batch

    def reads(self, source: Any) -> bool:
        """Return True if it reads `source` in order, so that iterating over `source` would move the position."""
        return self._source.source is source and not isinstance(self._source, IndexedReader)

    def state(self) -> dict[str, Any]:
        """The position after the last batch consumed, as JSON."""
        return {"kind": self.kind, **self._position}

    def mark(self) -> dict[str, Any]:
        """`state()` with a digest of the last batch consumed.

        `restore` uses the digest to check that the source repeats itself.
        """
        last = self._digest if self._last is None else _digest(self._last)
        return self.state() if last is None else {**self.state(), "digest": last}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position from `state()` or `mark()`, so that the next batch is exactly the one that would have come.

        A position that cannot be set is replayed from the start, epoch by epoch, with a line in the log. Afterwards
        `differs` is True if the batch before the position is not the one of `mark()`: the source returns different
        batches each time. (A source that sets its own state is not checked.)

        Raises:
            DataError: The position belongs to another kind of source.
            DataEnded: An iterator ends before the position.
        """
        position = {key: value for key, value in state.items() if key not in ("kind", "digest")}
        if state["kind"] != self.kind:
            raise DataError(
                f"{self.name} data: the saved position is of a source of kind {state['kind']!r}, this one is "
                f"{self.kind!r}; give the data that the run was saved with"
            )
        if self._spec is None:
            self.example()  # read the first batch as the reference: the next may be a short one
        if not self._source.replays or position["batch"] < self.taken:
            self._seek(position)
        self._skip(position["batch"] - self.taken)
        self._digest = state.get("digest")
        if self._digest is not None and isinstance(self._source, IndexedReader):
            self._last = self._source.read(self.taken - 1)
        known = self._digest is not None and self._last is not None
        self.differs = known and _digest(self._last) != self._digest

    def clear(self) -> None:
        """Drop prefetched batches and accept new shapes, because the task of the data has changed.

        Raises:
            DataError: The source is a one-shot iterator, which cannot make its batches again.
        """
        if self.kind == "iterator":
            raise DataError(
                f"{self.name} data: the task cannot change, because a one-shot iterator has read batches ahead; give "
                "an object with batch(step)"
            )
        self._spec, self._old_spec = None, self._spec or self._old_spec
        self._measure()
        if isinstance(self._source, IndexedReader):
            self._position = self._source.position(self.taken)  # the length of an epoch may have changed
        if self._queue or self._error:
            target = self.taken
            self._seek(self._position)
            self._skip(target - self.taken)
        self._last = self._digest = None  # the last batch belonged to the previous task

    def _seek(self, position: dict[str, Any]) -> None:
        self.taken = self._source.seek(position)
        self._position = position
        self._queue.clear()
        self._error = self._last = None

    def _skip(self, n: int) -> None:
        if n:
            log.info("%s data: replaying %d batches to reach the saved position", self.name, n)
        for _ in range(n):
            self.take(1)

    def _require(self, n: int) -> None:
        """Read the next `n` batches; raise the error that prevents it."""
        self.prefetch(n)
        if len(self._queue) < n and self._error is not None:
            raise self._error

    def _make(self, number: int) -> tuple[Any, dict[str, Any]]:
        batch = why = None
        for _ in range(2):  # drop one short last batch; the next epoch must start with a full one
            batch = self._source.read(number)
            position = self._source.position(number + 1)  # before ended(), which may read ahead
            why = self._spec.mismatch(batch) if self._spec else None
            if why and any(shape.mismatch(batch) is None for shape in self._source.shapes):
                why = None
            expected = self._old_spec if self._spec is None else self._spec if why else None  # a match is not short
            short = expected is not None and expected.short(batch) and self._source.ended()
            if why is None and not short:
                self._spec = self._spec or Spec(batch, self.batch_first)
                return batch, position
            if not short:
                break
            self._log_once(
                f"{self.name} data: the short last batch of an epoch is dropped"
                + (f"; periods in epochs count it, {self.length} steps an epoch" if self.length else "")
            )
        raise self._unlike(batch, number)

    def _unlike(self, batch: Any, number: int) -> DataError:
        assert self._spec is not None
        why, advice = self._spec.mismatch(batch), self._spec.advice(batch)
        return DataError(f"{self.name} data: batch {number}: {why} as in batches before; {advice}", number)

    def _measure(self) -> None:
        """Determine the length of an epoch, without a short last item of a sequence, before anything uses it."""
        source = self._source
        if source.kind != "iterator":
            source.length = length_of(source.source, self.name)
        source.shapes = [Spec(batch) for batch in self._examples()]
        if not isinstance(source, IndexedReader) or source.kind == "addressed":
            return
        last = (source.length or 1) - 1
        self._spec = Spec(source.read(0), self.batch_first)
        batch = source.read(last)
        if self._spec.looks_batch_major(batch):
            raise self._unlike(batch, last)
        if self._spec.short(batch):
            source.length = last
            self._log_once(f"{self.name} data: the short last batch of an epoch is dropped; an epoch is {last} batches")

    def _log_once(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            log.info(line)
