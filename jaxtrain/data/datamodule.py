"""DataModule: the batches of a run, with their layout, encoding, task and identity."""

import copy
from dataclasses import dataclass
from typing import Any, Self

from ..errors import DataError
from ..utils.logging import log, warn_of_foreign
from .batch import layout_warning, stated_layout
from .sources import Source, fingerprint


@dataclass
class _Life:
    """History of a data module: it is set up only once, and a new run starts with the original task."""

    set_up: bool = False
    original_task: dict[str, Any] | None = None  # before a run changed it
    last_task: dict[str, Any] | None = None  # after the last change by a run
    fingerprint: tuple[dict[str, Any], Any] | None = None  # task, and fingerprint of the train source under it
    warned: bool = False  # whether the warning about an unstated layout was logged


class DataModule:
    """The data of a run. Subclass it, or pass sources: `DataModule(train, val=..., test=..., predict=...)`.

    A source is preferably an object with `batch(step)`, otherwise an iterable of batches. Each batch is a pytree of
    arrays, usually `(inputs, targets)`.

    `batch_first` states the layout of the arrays: False for time-major `(T, B, ...)`, True for batch-major
    `(B, T, ...)`. With True, axes 0 and 1 of every array with two or more axes are swapped before `Module.phases`
    receives the batch; arrays with one axis, such as labels `(B,)`, are not changed. With None (default), arrays are
    read as time-major with a warning. A source or a batch may state its own layout in an attribute `batch_first`.

    `task` holds the parameters of a curriculum as a JSON dict. It is saved in checkpoints and restored before data is
    read. A source that uses it must read it for every batch.

    Args:
        train: Source of train batches.
        val: Source of validation batches, or a dict of several by name; or None. The metrics of `{"clean": ...}` have
            the tags `val/clean/loss`, those of a single source `val/loss`.
        test: Source of test batches, or a dict of several by name; or None.
        predict: Source of batches to predict, or None.
        batch_first: Layout of the arrays; None keeps the class's value.

    Example::

        train = [(np.ones((20, 16, 2), "float32"), np.ones((20, 16, 1), "float32"))]  # (T, B, ...)
        data = jaxtrain.DataModule(train, val=train, batch_first=False)
    """

    task: dict[str, Any] = {}
    batch_first: bool | None = None
    _life: _Life
    _sources: tuple[Any, ...] = (None, None, None, None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        warn_of_foreign(cls, LIGHTNING_METHODS)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # Each instance has its own dict, even if a subclass defines __init__ without super().__init__().
        object.__setattr__(self, "task", dict(cls.task))
        object.__setattr__(self, "_life", _Life())
        return self

    def __init__(
        self,
        train: Source | None = None,
        val: Source | dict[str, Source] | None = None,
        test: Source | dict[str, Source] | None = None,
        predict: Source | None = None,
        *,
        batch_first: bool | None = None,
    ) -> None:
        self._sources = (train, val, test, predict)
        if batch_first is not None:
            self.batch_first = batch_first

    def setup(self) -> None:
        """Download, open or split data. Called once per object, before any source is requested."""

    def train_data(self) -> Source:
        """Return the source of train batches.

        Raises:
            DataError: There is none.
        """
        if self._sources[0] is None:
            raise DataError(
                f"train data: {type(self).__qualname__} has none; define train_data() or give it a source of batches"
            )
        return self._sources[0]

    def val_data(self) -> Source | dict[str, Source] | None:
        """Return the source of validation batches, or a dict of several by name; or None."""
        return self._sources[1]

    def test_data(self) -> Source | dict[str, Source] | None:
        """Return the source of test batches, or a dict of several by name; or None."""
        return self._sources[2]

    def predict_data(self) -> Source | None:
        """Return the source of batches to predict, or None."""
        return self._sources[3]

    def encode(self, x: Any, /) -> Any:
        """Convert one time step of the inputs to the input of the model. Called while tracing, inside the time loop.

        The default is the `encode` method of the train source that was passed, if it has one, else the identity.

        Args:
            x: Inputs of one time step, `(B, ...)`.

        Returns:
            Input of the model, `(B, ...)`.
        """
        encode = getattr(self._sources[0], "encode", None)
        return encode(x) if callable(encode) else x

    def identity(self) -> dict[str, Any]:
        """Return a JSON dict that identifies the data; it is compared when a run is resumed.

        The default contains the class and, for a train source that was passed and is read by number, the number of
        batches and a sha256 of the first batch.
        """
        identity: dict[str, Any] = {"class": type(self).__qualname__}
        if self._life.fingerprint is None or self._life.fingerprint[0] != self.task:
            self._life.fingerprint = copy.deepcopy(self.task), fingerprint(self._sources[0], "train")
        return identity if (train := self._life.fingerprint[1]) is None else {**identity, "train": train}


LIGHTNING_METHODS = {
    **{f"{part}_dataloader": f"define {part}_data()" for part in ("train", "val", "test", "predict")},
    "prepare_data": "define setup()",
    "teardown": "free what setup() opened in a callback's on_fit_end",
}
"""Methods of Lightning's data modules, with what to do in jaxtrain."""


def as_data(data: Any, val: Any = None, batch_first: bool | None = None) -> DataModule:
    """Return a DataModule unchanged; wrap any other source, with its validation source, in a DataModule.

    >>> as_data([(1.0, 2.0)]).train_data()
    [(1.0, 2.0)]

    Raises:
        DataError: ``data`` is None or a class, or ``val`` or ``batch_first`` is given in addition to a DataModule.
    """
    if isinstance(data, type):
        raise DataError(f"train data: {data.__qualname__} is a class; give an instance: {data.__qualname__}(...)")
    if not isinstance(data, DataModule):
        if data is None:
            raise DataError("train data: got None; give a DataModule, an object with batch(step), or a list of batches")
        return DataModule(data, val, batch_first=batch_first)
    if val is not None:
        raise DataError(
            f"val data: given in addition to {type(data).__qualname__}, which has its own; define its val_data() "
            "instead"
        )
    if batch_first is not None:
        raise DataError(
            f"batch_first={batch_first}: given in addition to {type(data).__qualname__}, which states its own layout; "
            "set its attribute batch_first instead"
        )
    return data


_LONG = {"val": "validation"}


def named_sources(source: Any, name: str) -> dict[str, Any]:
    """The sources of a validation or test by the prefix of their metrics: ``val``, or ``val/clean`` of several.

    >>> named_sources({"clean": [1.0], "noisy": [2.0]}, "val")
    {'val/clean': [1.0], 'val/noisy': [2.0]}

    Raises:
        DataError: A name is no text, is empty or holds a slash, there is no source, or it is a list of sources.
    """
    if isinstance(source, list | tuple) and source and all(callable(getattr(each, "batch", None)) for each in source):
        raise DataError(f"{name} data: several {_LONG.get(name, name)} sets: give a dict, {{'easy': ..., 'hard': ...}}")
    if not isinstance(source, dict):
        return {} if source is None else {name: source}
    wrong = [key for key in source if not isinstance(key, str) or not key or "/" in key]
    if wrong or not source:
        found = f"the name {wrong[0]!r}" if wrong else "an empty dict"
        raise DataError(
            f"{name} data: got {found}; expected a dict of sources by name, such as {{'clean': ..., 'noisy': ...}}; "
            "names are texts without a slash"
        )
    if missing := [key for key, each in source.items() if each is None]:
        raise DataError(f"{name} data: {missing[0]!r} is None; give it a source of batches, or leave it out")
    return {f"{name}/{key}": each for key, each in source.items()}


def identity_of(data: DataModule) -> dict[str, Any]:
    """Identity of the data including its layout; compared when a run is resumed."""
    batch_first = stated_layout(data._sources[0], "train", data.batch_first)
    return {**data.identity(), **({"batch_first": True} if batch_first else {})}  # time-major is not recorded


def encodes(data: DataModule) -> bool:
    """Return True if the data defines an encoding of its inputs."""
    return type(data).encode is not DataModule.encode or callable(getattr(data._sources[0], "encode", None))


def warn_of_layout(data: DataModule, batch: Any, batch_first: bool | None, logged: set[str] | None = None) -> None:
    """Log one warning per data module if its arrays are read as time-major without a stated layout.

    Args:
        data: The data module.
        batch: A batch on the host.
        batch_first: Layout stated for the source of the batch.
        logged: Warnings that are not repeated; a new one is added.
    """
    if stated_layout(batch, "", batch_first) is None and not data._life.warned and (line := layout_warning(batch)):
        data._life.warned = True
        if logged is None or line not in logged:
            log.warning(line)
        if logged is not None:
            logged.add(line)


def set_up(data: DataModule) -> None:
    """Call ``setup()`` of a data module, once."""
    if not data._life.set_up:
        data.setup()
        data._life.set_up = True


def begin_task(data: DataModule, saved: dict[str, Any] | None) -> None:
    """Set the task with which a run starts: the one saved in its checkpoint, or the original one.

    Changes made by earlier runs are undone; changes made by the user since then are kept.
    """
    life = data._life
    if life.original_task is not None and data.task == life.last_task:
        data.task.clear()
        data.task.update(life.original_task)
    life.original_task = None
    if saved is not None:
        change_task(data, saved)


def change_task(data: DataModule, task: dict[str, Any]) -> None:
    """Change the task during a run; ``begin_task`` of the next run undoes it."""
    life = data._life
    if life.original_task is None:
        life.original_task = copy.deepcopy(data.task)
    data.task.update(task)
    life.last_task = copy.deepcopy(data.task)
