"""Whole passes over a source, from its start to its end: to validate, to test and to predict."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataEnded, DataError
from .batch import Spec
from .datamodule import DataModule, warn_of_layout
from .sources import IndexedReader, SequentialReader, adapt

logger = logging.getLogger("jaxtrain")


class EvalLoader:
    """Whole passes over a source, from its start to its end, for validation; a short last batch is part of them.

    Raises DataError for what is no source or holds no batch, for a source without an end and for a one-shot iterator.

    >>> [batch.shape for batch in EvalLoader([[1.0, 2.0], [3.0]], "val").once()]
    [(2,), (1,)]
    """

    def __init__(self, source: Any, name: str, batch_first: bool | None = None) -> None:
        self.name, self._source = name, source
        reader = adapt(source, name, batch_first)
        self.batch_first = reader.batch_first
        """The layout stated for the source; None where it is not."""
        if isinstance(reader, SequentialReader) and reader.own:
            raise DataError(f"{name} data: a one-shot iterator gives no second pass; give a list")
        self.length = reader.length
        self.examples = _examples(reader)
        """A batch of every shape known beforehand: the first one, and a smaller last one where that has a number."""
        self._known = [Spec(batch) for batch in self.examples]

    def once(self) -> Iterator[Any]:
        """The batches of one pass. Raises DataError for one unlike the first in more than a smaller batch axis."""
        batches = one_pass(self._source, self.name, self.batch_first)
        for number, batch in enumerate(alike(batches, self.name, self.batch_first)):
            if all(spec.mismatch(batch) for spec in self._known):
                logger.info(
                    "%s data: batch %d is smaller than the first one: it gets a program of its own", self.name, number
                )
                self._known.append(Spec(batch))
            yield batch


def validation_loader(data: DataModule) -> EvalLoader | None:
    """The loader of a run's validation data, or None. Warns of a layout that nobody has stated."""
    source = data.val_data()
    if source is None:
        return None
    passes = EvalLoader(source, "val", data.batch_first)
    warn_of_layout(data, passes.examples[0], passes.batch_first)
    return passes


def _examples(reader: IndexedReader | SequentialReader) -> list[Any]:
    last = _end(reader) - 1 if isinstance(reader, IndexedReader) else 0
    origin = reader.position(0)
    first = reader.read(0)
    if isinstance(reader, SequentialReader) and reader.methods:  # the source has one place, which is left where it was
        reader.seek(origin)
    batch = reader.read(last) if last else first
    return [first, batch] if _smaller(Spec(first, reader.batch_first), batch, reader.name, last) else [first]


def one_pass(source: Any, name: str, batch_first: bool | None = None) -> Iterator[Any]:
    """Every batch of one pass, of whatever sizes, as numpy. DataError: it never ends, or there is none."""
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


def alike(batches: Iterable[Any], name: str, batch_first: bool | None = False) -> Iterator[Any]:
    """The batches as they come; DataError for one unlike the first in more than a smaller batch axis."""
    spec = None
    for number, batch in enumerate(batches):
        spec = spec or Spec(batch, batch_first)
        _smaller(spec, batch, name, number)
        yield batch


def _smaller(spec: Spec, batch: Any, name: str, number: int) -> bool:
    why = spec.mismatch(batch)
    if why and not spec.short(batch):
        raise DataError(f"{name} data: batch {number}: {why} as in the first one; {spec.advice(batch)}", number)
    return why is not None


def _end(reader: IndexedReader) -> int:
    if reader.length is None:
        raise DataError(f"{reader.name} data: never ends; give it a __len__, the number of batches in one pass")
    return reader.length
