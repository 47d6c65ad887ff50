"""The callbacks that ``Fit`` adds to those of the user."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ..callbacks.base import Callback
from ..callbacks.checkpoint import Checkpoint
from ..callbacks.dispatch import Callbacks
from ..callbacks.lr_monitor import LearningRateMonitor
from ..callbacks.progress import ProgressBar
from ..callbacks.throughput import Throughput
from ..loggers.jsonl import JSONL
from ..loggers.tensorboard import TensorBoard

Loggers = Literal["default"] | Iterable[Callback]
Progress = Literal["auto"] | bool


def with_defaults(
    callbacks: Iterable[Callback], loggers: Loggers, progress: Progress, run_dir: Path | None
) -> Callbacks:
    """Return the callbacks of a run: the defaults, then ``loggers``, then ``callbacks``, sorted by rank.

    The defaults are, in order, LearningRateMonitor and Throughput (if there is a logger), JSONL and TensorBoard,
    ProgressBar, and Checkpoint. A callback in ``callbacks`` or ``loggers`` replaces the default of its class.

    Args:
        callbacks: The user's callbacks.
        loggers: "default" means JSONL and TensorBoard if there is a run directory, else none.
        progress: "auto" shows a bar on a terminal or in a notebook, and nothing elsewhere.
        run_dir: The run directory. Without one there is no default Checkpoint.

    Raises:
        TypeError: ``callbacks`` or ``loggers`` contains something other than callbacks.
        ValueError: ``loggers`` or ``progress`` is a word that is not known, or a callback is invalid.
    """
    given = list(Callbacks(callbacks))
    by_default = isinstance(loggers, str)
    if not isinstance(loggers, Iterable) or (by_default and loggers != "default"):
        raise ValueError(f"Fit(loggers={loggers!r}): expected 'default', or a list of loggers; () turns them off")
    if not isinstance(progress, bool) and progress != "auto":
        raise ValueError(f"Fit(progress={progress!r}): expected 'auto', True or False")
    chosen = [] if isinstance(loggers, str) else list(Callbacks(loggers))
    writing = [JSONL(), TensorBoard()] if by_default and run_dir is not None else []
    measuring = [LearningRateMonitor(quiet=True), Throughput()] if chosen or writing else []
    # "auto" adds the bar to every run, on a terminal or not, so that a resumed run has the same list of callbacks.
    bar = [ProgressBar(every_seconds=None if progress == "auto" else 30)] if progress else []
    saving = [] if run_dir is None else [Checkpoint()]
    defaults: list[Callback] = [*measuring, *writing, *bar, *saving]
    given = [*chosen, *given]
    kept = [default for default in defaults if not any(isinstance(callback, type(default)) for callback in given)]
    return Callbacks([*kept, *given])
