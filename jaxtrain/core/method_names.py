"""Names of methods of a ``Module``: those of other libraries, and two names of one method."""

from typing import Any

LIGHTNING_METHODS = {
    "training_step": "define learning_step(forward, x, y), which is one time step",
    **dict.fromkeys(
        ("validation_step", "test_step"), "define evaluation_step(forward, x, y); the default is learning_step"
    ),
    **dict.fromkeys(
        ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"), "pass data to Fit.run"
    ),
    **dict.fromkeys(
        ("training_epoch_end", "validation_epoch_end", "on_train_start", "on_train_end", "on_train_epoch_start",
         "on_train_epoch_end", "on_train_batch_start", "on_train_batch_end", "on_validation_epoch_start",
         "on_validation_epoch_end"),
        "use a jaxtrain.Callback",
    ),
}  # fmt: skip
"""Methods of Lightning's modules, with what to do in jaxtrain."""


def alias(cls: type, *names: str) -> None:
    """Give a class all of ``names`` for the method that it, or the nearest base class, defines under one of them.

    Raises:
        TypeError: One class defines different methods under two of the names.
    """
    methods: list[Any] = []
    for owner in cls.__mro__:
        methods = [vars(owner)[name] for name in names if name in vars(owner)]
        if any(method is not methods[0] for method in methods):
            raise TypeError(f"{owner.__name__} defines {' and '.join(names)}, two names of one method: define one")
        if methods:
            break
    if len(methods) < len(names):  # otherwise they are inherited
        for name in names:
            setattr(cls, name, methods[0])
