"""Complete passes over a source, to validate, test and predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from ..errors import DataEnded, DataError
from ..utils.logging import log
from .batch import Spec
from .datamodule import DataModule, named_sources, warn_of_layout
from .sources import IndexedReader, SequentialReader, adapt


class EvalLoader:
    """Complete passes over a source for validation. A short last batch is included.

    >>> [batch.shape for batch in EvalLoader([[1.0, 2.0], [3.0]], "val").once()]
    [(2,), (1,)]

    Args:
        source: The source.
        name: Name of the data, for messages.
        batch_first: Layout of the source's arrays, True for ``(B, T, ...)``; None: not stated.

    Raises:
        DataError: ``source`` is not a source, has no batches, is endless, or is a one-shot iterator.
    """

    def __init__(self, source: Any, name: str, batch_first: bool | None = None) -> None:
        self.name, self._source = name, source
        reader = adapt(source, name, batch_first)
        self.batch_first = reader.batch_first
        """Layout stated for the source; None: not stated."""
        if isinstance(reader, SequentialReader) and reader.own:
            raise DataError(f"{name} data: a one-shot iterator cannot be read twice; give a list")
        self.length = reader.length
        self.examples = _examples(reader)
        """A batch of each shape known in advance: the first batch and a smaller last one of an indexed source, or those
        that a source of several shapes names."""
        self._known = [Spec(batch) for batch in self.examples]

    def once(self) -> Iterator[Any]:
        """Iterate over the batches of one pass; see ``alike``."""
        batches = one_pass(self._source, self.name, self.batch_first)
        for number, batch in enumerate(alike(batches, self.name, self.batch_first, self._known)):
            if all(spec.mismatch(batch) for spec in self._known):
                log.info(
                    "%s data: batch %d is smaller than the first one; a program is compiled for it", self.name, number
                )
                self._known.append(Spec(batch))
            yield batch


def loaders_of(data: DataModule, part: Literal["val", "test"]) -> list[EvalLoader]:
    """A loader for each set of a run's validation or test data. Logs a warning if the layout is not stated."""
    source = data.val_data() if part == "val" else data.test_data()
    loaders = [EvalLoader(each, name, data.batch_first) for name, each in named_sources(source, part).items()]
    for loader in loaders:
        warn_of_layout(data, loader.examples[0], loader.batch_first)
    return loaders


def _examples(reader: IndexedReader | SequentialReader) -> list[Any]:
    if isinstance(reader, IndexedReader) and (examples := reader.examples()):
        return examples
    last = _end(reader) - 1 if isinstance(reader, IndexedReader) else 0
    origin = reader.position(0)
    first = reader.read(0)
    if isinstance(reader, SequentialReader) and reader.methods:  # restore the position, which the source itself holds
        reader.seek(origin)
    batch = reader.read(last) if last else first
    return [first, batch] if _smaller(Spec(first, reader.batch_first), batch, reader.name, last) else [first]


def one_pass(source: Any, name: str, batch_first: bool | None = None) -> Iterator[Any]:
    """Iterate over the batches of one pass, on the host; their sizes may differ.

    Raises:
        DataError: The source is endless or has no batches.
    """
    reader = adapt(source, name, batch_first)
    if isinstance(reader, IndexedReader):
        yield from (reader.read(number) for number in range(_end(reader)))
        return
    reader.repeat, number = False, 0
    while True:
        try:
            batch = reader.read(number)
        except DataEnded:
            return
        yield batch
        number += 1


def alike(batches: Iterable[Any], name: str, batch_first: bool | None = False,
          known: Sequence[Spec] = ()) -> Iterator[Any]:  # fmt: skip
    """Pass batches through unchanged.

    Args:
        batches: The batches.
        name: Name of the data, for messages.
        batch_first: Layout stated for the source.
        known: Shapes that are accepted, too.

    Raises:
        DataError: A batch differs from the first in more than a smaller batch axis.
    """
    spec = None
    for number, batch in enumerate(batches):
        spec = spec or Spec(batch, batch_first)
        if not any(other.mismatch(batch) is None for other in known):
            _smaller(spec, batch, name, number)
        yield batch


def shapes_of(source: Any, name: str, batch_first: bool | None = None) -> list[Spec]:
    """The shapes of the batches of a source that has several; else an empty list."""
    reader = adapt(source, name, batch_first) if hasattr(source, "shape_examples") else None
    return [Spec(batch) for batch in reader.examples()] if isinstance(reader, IndexedReader) else []


def _smaller(spec: Spec, batch: Any, name: str, number: int) -> bool:
    """Return True if ``batch`` has a smaller batch axis. Raises DataError if it differs in anything else."""
    why = spec.mismatch(batch)
    if why and not spec.short(batch):
        raise DataError(f"{name} data: batch {number}: {why} as in the first one; {spec.advice(batch)}", number)
    return why is not None


def _end(reader: IndexedReader) -> int:
    if reader.length is None:
        raise DataError(f"{reader.name} data: is endless; give it a __len__, the number of batches in one pass")
    return reader.length
