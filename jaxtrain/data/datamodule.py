"""DataModule: where the batches of a run come from, and what a run knows of them: layout, encoding, task, identity."""

import copy
import logging
from dataclasses import dataclass
from typing import Any, Self

from ..errors import DataError
from ..utils.logging import warn_of_foreign
from .batch import layout_warning, stated_layout
from .sources import by_number, fingerprint

logger = logging.getLogger("jaxtrain")


@dataclass
class _Life:
    """What a data module went through: so that it is set up once, and a fresh run begins with the task as made."""

    set_up: bool = False
    made_with: dict[str, Any] | None = None  # the task before a run changed it
    left_with: dict[str, Any] | None = None  # the task as the last change of a run left it
    printed: tuple[dict[str, Any], dict[str, Any]] | None = None  # the fingerprint of the train source, and its task
    warned: bool = False  # that its layout is not stated


class DataModule:
    """The data of a run: subclass it, or give it sources: `DataModule(train, val=..., test=..., predict=...)`.

    A source is anything a `Feed` takes: best an object with `batch(step)`, else an iterable of batches, each a
    pytree of arrays, usually `(inputs, targets)`.

    `batch_first` states the layout of the arrays: False for time-major `(T, B, ...)`, True for batch-major
    `(B, T, ...)`. Under True, axes 0 and 1 are swapped in every array of a batch that has two axes or more, before
    `Module.phases` sees it; arrays with one axis, as labels `(B,)`, stay as they are. None, the default, reads
    time-major arrays with a warning. A source or a batch may state its own layout by an attribute `batch_first`.

    `task` holds the parameters of a curriculum as a JSON dict. It is saved in checkpoints and put back before data is
    asked for; a source that reads it must read it anew for every batch.
    """

    task: dict[str, Any] = {}
    batch_first: bool | None = None
    _life: _Life
    _sources: tuple[Any, Any, Any, Any] = (None, None, None, None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        warn_of_foreign(cls, FOREIGN)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # A dict of its own for every instance, also where a subclass has an __init__ without super().__init__().
        object.__setattr__(self, "task", dict(cls.task))
        object.__setattr__(self, "_life", _Life())
        return self

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        predict: Any = None,
        *,
        batch_first: bool | None = None,
    ) -> None:
        self._sources = (train, val, test, predict)
        if batch_first is not None:
            self.batch_first = batch_first

    def setup(self) -> None:
        """Called once in the life of the object, before any source is asked for: download, open, split."""

    def train_data(self) -> Any:
        """The source of train batches. Raises DataError where there is none."""
        if self._sources[0] is None:
            raise DataError(
                f"train data: {type(self).__qualname__} has none; define train_data() or give it a source of batches"
            )
        return self._sources[0]

    def val_data(self) -> Any:
        """The source of validation batches, or None."""
        return self._sources[1]

    def test_data(self) -> Any:
        """The source of test batches, or None."""
        return self._sources[2]

    def predict_data(self) -> Any:
        """The source of batches to predict, or None."""
        return self._sources[3]

    def encode(self, x: Any) -> Any:
        """Turn one time step of the inputs, `(B, ...)`, into what the model takes; traced, inside the time loop.

        The default is the `encode` of the train source it was given, where that has one, else `x` itself.
        """
        encode = getattr(self._sources[0], "encode", None)
        return encode(x) if callable(encode) else x

    def identity(self) -> dict[str, Any]:
        """A JSON dict that says which data this is; compared when a run is resumed.

        The default is the class and, of a train source that was given and is read by number, the number of batches and
        a sha256 of the first one.
        """
        identity: dict[str, Any] = {"class": type(self).__qualname__}
        if by_number(self._sources[0], "train") is not None:
            if self._life.printed is None or self._life.printed[0] != self.task:
                self._life.printed = copy.deepcopy(self.task), fingerprint(self._sources[0], "train")
            identity["train"] = self._life.printed[1]
        return identity


FOREIGN = {
    **{f"{part}_dataloader": f"define {part}_data()" for part in ("train", "val", "test", "predict")},
    "prepare_data": "define setup()",
    "teardown": "free what setup() opened in a callback's on_fit_end",
}
"""What methods of Lightning's data modules are here."""


def as_data(data: Any, val: Any = None, batch_first: bool | None = None) -> DataModule:
    """A DataModule as it is; any other source, with its validation source, in a DataModule.

    >>> as_data([(1.0, 2.0)]).train_data()
    [(1.0, 2.0)]

    Raises:
        DataError: ``data`` is None or a class, or ``val`` or ``batch_first`` is given beside a DataModule.
    """
    if isinstance(data, type):
        raise DataError(f"train data: {data.__qualname__} is a class; give an instance: {data.__qualname__}(...)")
    if not isinstance(data, DataModule):
        if data is None:
            raise DataError("train data: got None; give a DataModule, an object with batch(step), or a list of batches")
        return DataModule(data, val, batch_first=batch_first)
    if val is not None:
        raise DataError(
            f"val data: given beside {type(data).__qualname__}, which has its own; define its val_data() instead"
        )
    if batch_first is not None:
        raise DataError(
            f"batch_first={batch_first}: given beside {type(data).__qualname__}, which states its own layout; set its "
            "attribute batch_first instead"
        )
    return data


def identity_of(data: DataModule) -> dict[str, Any]:
    """Which data this is, its layout included; compared when a run is resumed."""
    batch_first = stated_layout(data._sources[0], "train", data.batch_first)
    return {**data.identity(), **({"batch_first": True} if batch_first else {})}  # time-major is not written down


def encodes(data: DataModule) -> bool:
    """Whether the data has an encoding of its inputs."""
    return type(data).encode is not DataModule.encode or callable(getattr(data._sources[0], "encode", None))


def warn_of_layout(data: DataModule, batch: Any, batch_first: bool | None, told: set[str] | None = None) -> None:
    """Log one warning for a data module whose arrays are read as time-major though nobody has stated so.

    Args:
        data: The data module.
        batch: A batch on the host.
        batch_first: The layout that is stated for the source of the batch.
        told: Warnings that are not repeated; a new one is added.
    """
    if stated_layout(batch, "", batch_first) is None and not data._life.warned and (line := layout_warning(batch)):
        data._life.warned = True
        if line not in (told := set() if told is None else told):
            logger.warning(line)
            told.add(line)


def set_up(data: DataModule) -> None:
    """Call ``setup()`` of a data module, once."""
    if not data._life.set_up:
        data.setup()
        data._life.set_up = True


def begin_task(data: DataModule, saved: dict[str, Any] | None) -> None:
    """The task that a run begins with: as a checkpoint has it, or as the data module was made.

    What earlier runs changed is taken back; what its owner has changed since stays.
    """
    life = data._life
    if life.made_with is not None and data.task == life.left_with:
        data.task.clear()
        data.task.update(life.made_with)
    life.made_with = None
    if saved is not None:
        change_task(data, saved)


def change_task(data: DataModule, task: dict[str, Any]) -> None:
    """Change the task from within a run; ``begin_task`` of the next one takes it back."""
    life = data._life
    if life.made_with is None:
        life.made_with = copy.deepcopy(data.task)
    data.task.update(task)
    life.left_with = copy.deepcopy(data.task)
