"""Names that other frameworks give to arguments of constructors, and what to use here."""

from __future__ import annotations

import inspect
from typing import Any, Self

_INSTEAD = {
    "Fit": {
        "gradient_clip_val": "clip",
        "accumulate_grad_batches": "accumulate",
        "val_check_interval": "validate_every",
        "check_val_every_n_epoch": 'validate_every="1ep"',
        "validation_freq": 'validate_every="1ep"',
        "log_every_n_steps": "log_every",
        "default_root_dir": "run_dir",
        "enable_progress_bar": "progress",
        "logger": "loggers",
        "epochs": "max_epochs",
        "fast_dev_run": "Fit.run(..., dry_run=True)",
        "detect_anomaly": 'nonfinite="raise"',
    },
    "Checkpoint": {
        "save_top_k": "keep_best",
        "save_best_only": "keep_best",
        "save_last": "keep_last",
        "every_n_train_steps": "every",
        "every_n_epochs": 'every="1ep"',
        "save_freq": "every",
        "dirpath": "Fit(run_dir=...)",
    },
    "EarlyStopping": {
        "stopping_threshold": "threshold",
        "restore_best_weights": "jaxtrain.load with the step of Result.best",
    },
    "ScheduledStrategy": {"carry": "stateful"},
}
"""For each class: arguments of Lightning, Keras and others, and what to use here."""


class ForeignArguments:
    """Base class of classes whose ``__init__`` explains an argument that other frameworks have."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        own = inspect.signature(cls.__init__).parameters
        for base in cls.__mro__:
            for name, instead in _INSTEAD.get(base.__name__, {}).items():
                if name in kwargs and name not in own:
                    raise TypeError(f"{cls.__name__} has no argument {name!r}: use {instead}")
        return super().__new__(cls)
