"""The callbacks that ``Fit`` adds to those given by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

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
    """Return the callbacks of a run: the defaults, then those given by hand, sorted by rank.

    In order, the defaults are LearningRateMonitor and Throughput (if there is a logger), the loggers, ProgressBar, and
    Checkpoint. A callback given by hand replaces the default of its class.

    Args:
        callbacks: The callbacks given by hand.
        loggers: "default" means JSONL and TensorBoard if there is a run directory, else none.
        progress: "auto" shows a bar on a terminal, and nothing elsewhere.
        run_dir: The run directory. Without one there is no default Checkpoint.

    Raises:
        TypeError: ``callbacks`` or ``loggers`` contains something other than callbacks.
        ValueError: ``loggers`` or ``progress`` is a word that is not known, or a callback is invalid.
    """
    given = list(Callbacks(callbacks))
    chosen = _loggers(loggers)
    writing: list[Callback] = [JSONL(), TensorBoard()] if chosen is None and run_dir is not None else []
    measuring: list[Callback] = [LearningRateMonitor(quiet=True), Throughput()] if chosen or writing else []
    saving: list[Callback] = [] if run_dir is None else [Checkpoint()]
    defaults = [*measuring, *writing, *_progress(progress), *saving]
    kept = [default for default in defaults if not any(isinstance(callback, type(default)) for callback in given)]
    return Callbacks([*kept, *(chosen or ()), *given])


def _loggers(loggers: Any) -> list[Callback] | None:
    """The loggers given by hand; None for the default ones."""
    if isinstance(loggers, str) and loggers == "default":
        return None
    if isinstance(loggers, str) or not isinstance(loggers, Iterable):
        raise ValueError(
            f"Fit(loggers={loggers!r}): expected 'default', or a list of loggers, as [JSONL()]; () is none"
        )
    return list(Callbacks(loggers))


def _progress(progress: Any) -> list[Callback]:
    if isinstance(progress, str) and progress == "auto":
        return [ProgressBar(every_seconds=None)]  # part of every run, so that a resume elsewhere finds the same list
    if not isinstance(progress, bool):
        raise ValueError(f"Fit(progress={progress!r}): expected 'auto', True or False")
    return [ProgressBar()] if progress else []
