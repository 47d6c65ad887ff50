"""Readers behind a `DataIterator`: one per kind of source."""

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np

from ..errors import DataEnded, DataError
from ..utils.digests import digest
from .batch import Spec, host, stated_layout
from .source_state import from_json, to_json

Kind = Literal["addressed", "stateful", "reiterable", "iterator"]


class Addressed(Protocol):
    """A source that returns any batch by its number."""

    def batch(self, step: int, /) -> Any: ...


class Indexed(Protocol):
    """A sequence of batches."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


type Source = Addressed | Indexed | Iterable[Any]
"""Where batches come from; see ``jaxtrain.DataModule``."""
_STATE_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


# ---- readers: batch number -> the user's batch, and the position after it -----------------------------------------


class _Reader(ABC):
    """Base class of the readers of all kinds of sources."""

    name: str
    batch_first: bool | None = None
    """Layout stated for the source; None: not stated, so its batches are read as time-major."""
    shapes: Sequence[Spec] = ()
    """The shapes of the batches, if there are several."""

    @abstractmethod
    def get(self, number: int) -> Any:
        """Batch ``number`` as the source returns it."""

    def read(self, number: int) -> Any:
        """Batch ``number`` on the host, time-major. An error of the source gets a note that names the batch."""
        try:
            return host(self.get(number), self.name, number, self.batch_first)
        except StopIteration:  # would silently end an enclosing generator
            raise DataEnded(number, self.name) from None
        except DataError:
            raise
        except Exception as error:
            error.add_note(f"while making batch {number} of the {self.name} data (counted from 0)")
            raise


class IndexedReader(_Reader):
    """Reads batches by number, from `batch(step)` or from a sequence, which repeats."""

    kind: Kind
    replays = False

    def __init__(self, source: Any, name: str, kind: Kind) -> None:
        self.source, self.name, self.kind = source, name, kind
        self.length = length_of(source, name)

    def examples(self) -> list[Any]:
        """A batch of each shape, the largest first, if the source has several shapes; else an empty list.

        Its attribute ``shape_examples`` holds the numbers of these batches.
        """
        return [self.read(number) for number in getattr(self.source, "shape_examples", ())]

    def get(self, number: int) -> Any:
        if self.kind == "addressed":
            return self.source.batch(number)
        assert self.length
        return self.source[number % self.length]

    def ended(self) -> bool:
        return False  # `DataIterator` excludes a short last item from a sequence's length

    def position(self, number: int) -> dict[str, Any]:
        if self.kind == "addressed":
            return {"batch": number}
        assert self.length
        return {"batch": number, "epoch": number // self.length, "index": number % self.length}

    def seek(self, position: dict[str, Any]) -> int:
        if position != self.position(position["batch"]):
            raise DataError(
                f"{self.name} data: the saved position {position} does not fit an epoch of {self.length} batches; "
                "give the data that the run was saved with"
            )
        return position["batch"]


class SequentialReader(_Reader):
    """Reads in order through an iterator; `methods` names the state methods of the iterator or the source."""

    kind: Kind

    def __init__(self, source: Any, name: str) -> None:
        self.source, self.name = source, name
        self.iterator: Iterator[Any] = iter(source)
        self.on_iterator = _state_methods(self.iterator) is not None
        self.methods = _state_methods(self.iterator) or _state_methods(source)
        self.own = self.iterator is source
        self.kind = "stateful" if self.methods else "iterator" if self.own else "reiterable"
        self.repeat = self.kind != "iterator"
        self.length = length_of(source, name) if self.repeat else None
        self.epoch = self.index = 0
        self.ahead: list[Any] = []

    @property
    def replays(self) -> bool:
        return not self.methods

    def get(self, number: int) -> Any:
        if self.ended():
            if number == 0:
                raise _empty(self.name)
            if self.repeat:
                self.start(self.epoch + 1)
            if self.ended():
                if self.own or not self.repeat:
                    raise DataEnded(number, self.name)
                raise DataError(
                    f"{self.name} data: gave nothing when started again at batch {number}; __iter__ of "
                    f"{type(self.source).__name__} must give a new iterator each time",
                    number,
                )
        self.index += 1
        return self.ahead.pop()

    def start(self, epoch: int) -> None:
        self.iterator, self.epoch, self.index = iter(self.source), epoch, 0
        self.ahead.clear()

    def ended(self) -> bool:
        if not self.ahead:
            try:
                self.ahead.append(next(self.iterator))
            except StopIteration:
                return True
        return False

    def position(self, number: int) -> dict[str, Any]:
        position: dict[str, Any] = {"batch": number}
        if self.kind != "iterator":
            position |= {"epoch": self.epoch, "index": self.index}
        if self.methods:
            # Encoded immediately: the source may change the returned object later.
            state = getattr(self.iterator if self.on_iterator else self.source, self.methods[0])()
            position["state"] = to_json(state, f"{self.name} data: state of {type(self.source).__name__}")
        return position

    def seek(self, position: dict[str, Any]) -> int:
        """Go to `position`, or to the start of its epoch; returns the number of the next batch."""
        if self.kind == "iterator":
            raise DataError(f"{self.name} data: a one-shot iterator cannot go back to batch {position['batch']}")
        if self.methods and not self.on_iterator:
            getattr(self.source, self.methods[1])(from_json(position["state"]))
        self.start(position["epoch"])
        if not self.methods:
            return position["batch"] - position["index"]
        if self.on_iterator:  # after iter(), which may restart the iterator
            getattr(self.iterator, self.methods[1])(from_json(position["state"]))
        self.index = position["index"]
        return position["batch"]


def _state_methods(value: Any) -> tuple[str, str] | None:
    known = (pair for pair in _STATE_METHODS if all(callable(getattr(value, method, None)) for method in pair))
    return next(known, None)


def _empty(name: str) -> DataError:
    return DataError(f"{name} data: holds no batch; expected at least one", 0)


def length_of(source: Any, name: str) -> int | None:
    if not hasattr(source, "__len__"):
        return None
    try:
        length = len(source)
    except (TypeError, NotImplementedError):  # raised by endless data sets
        return None
    if length == 0:
        raise _empty(name)
    return length


def _is_addressed(source: Any) -> bool:
    """Return True if it has `batch(step)`; `batch(batch_size)` of other libraries makes batches and does not count."""
    if not callable(batch := getattr(source, "batch", None)):
        return False
    parameters = [*inspect.signature(batch).parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind in positional]
    return len(required) == 1 and required[0].name != "batch_size"


def adapt(source: Any, name: str, batch_first: bool | None = None) -> IndexedReader | SequentialReader:
    """The reader for a source. Raises DataError if it is not a source, for example a single batch."""
    _refuse_one_batch(source, name)
    reader = None
    if not isinstance(source, (type, str, bytes, Mapping)):
        if _is_addressed(source):
            reader = IndexedReader(source, name, "addressed")
        elif isinstance(source, (list, tuple)):
            reader = IndexedReader(source, name, "reiterable")
        elif hasattr(source, "__iter__") or _is_sequence(source):
            reader = SequentialReader(source, name)
            if reader.kind == "reiterable" and _is_sequence(source):
                reader = IndexedReader(source, name, "reiterable")
    if reader is None:
        of_class = isinstance(source, type)
        what = f"the class {source.__qualname__}" if of_class else f"an object of type {type(source).__name__}"
        advice = "call it first" if callable(source) else "see jaxtrain.DataModule"
        raise DataError(f"{name} data: got {what}; expected batch(step) or an iterable of batches; {advice}")
    reader.batch_first = stated_layout(source, name, batch_first)
    return reader


def _refuse_one_batch(source: Any, name: str) -> None:
    """Raise DataError for a single batch, whose first axis would be read as the number of batches."""
    torch = sys.modules.get("torch")
    if isinstance(source, (np.ndarray, jax.Array)) or (torch is not None and isinstance(source, torch.Tensor)):
        raise DataError(
            f"{name} data: got one array of shape {tuple(source.shape)}; give a list of batches: [x], or list(x) if "
            "its first axis counts batches"
        )
    if isinstance(source, tuple) and source and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in source):
        raise DataError(f"{name} data: a tuple of arrays is one batch; give a list of batches: [(x, y)]")


def fingerprint(source: Any, name: str) -> dict[str, Any] | None:
    """The number of batches, the arrays and sha256 of the first batch, and what the source's ``identity()`` adds.

    None if the source is not read by number; it is not touched then.
    """
    if isinstance(source, type) or not (_is_addressed(source) or _is_sequence(source)):
        return None
    reader = adapt(source, name)
    if not isinstance(reader, IndexedReader):
        return None
    batch, identity = reader.read(0), getattr(source, "identity", None)
    own: Any = identity() if callable(identity) else {}
    leaves = {f"batch{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}
    arrays = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}
    return {
        "batches": reader.length,
        "arrays": arrays,
        "sha256": digest(leaves),
        **own,
    }


def _is_sequence(source: Any) -> bool:
    if isinstance(source, (str, bytes, Mapping)):
        return False
    return isinstance(source, Sequence) or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))
