"""Compares a run with a checkpoint, and the processes of a run with each other."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..callbacks.dispatch import Callbacks
from ..callbacks.lr_monitor import LearningRateMonitor
from ..callbacks.state_arrays import state_of
from ..callbacks.throughput import Throughput
from ..core.state import flatten, signature
from ..data.datamodule import DataModule, identity_of
from ..data.eval_loader import EvalLoader
from ..data.iterator import DataIterator
from ..distributed import processes
from ..engine.program import Program
from ..strategies import Strategy
from ..utils.diff import first_difference, require_equal
from ..utils.digests import digest
from ..utils.files import as_json
from ..utils.logging import log


def describe(strategy: Strategy, data: DataModule, callbacks: Callbacks) -> dict[str, Any]:
    """Description of strategy and data for the metadata of checkpoints, as it reads back from JSON.

    Raises:
        TypeError: The description, the data's task or the state of a callback could not be saved, for example as JSON.
    """
    as_json(data.task, f"{type(data).__name__}.task")
    for key, callback in callbacks.keys().items():
        with suppress(AttributeError):  # its on_fit_start has not created the state yet
            state_of(key, callback)
    return {
        "strategy": as_json(strategy.config(), f"the configuration of {type(strategy).__name__}"),
        "data": as_json(identity_of(data), f"{type(data).__name__}.identity()"),
    }


def refuse_differences(
    saved: dict[str, Any],
    live: dict[str, Any],
    keys: Iterable[str],
    advice: str = "resume with the original one, or choose another run_dir",
) -> None:
    """Raise ValueError if the checkpoint belongs to another model, optimizer or strategy, or to other data."""
    for key in keys:
        if difference := first_difference(saved[key], live[key]):
            other = "other data" if key == "data" else f"another {key}"
            raise ValueError(f"the checkpoint of step {saved['step']} is of {other}: {difference}; {advice}")


def log_changes(saved: dict[str, Any], live: dict[str, Any]) -> None:
    """Log which settings were changed since the run was saved, among those that may change."""
    for part in ("fit", "config", "optimizer"):
        before, now = saved.get(part) or {}, live.get(part) or {}
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key) and (key != "periods" or key in before):  # earlier runs lack them
                name = f"{part}.{key}" if key else part  # a single optimizer has no label
                log.info("resume: %s changes from %r to %r", name, before.get(key), now.get(key))


def require_same_run(
    config: dict[str, Any], callbacks: Callbacks, program: Program, iterator: DataIterator, val: Iterable[EvalLoader]
) -> None:
    """Raise ValueError if several processes would not train the same run.

    Compared are the recorded configuration, the data, and the initial values. A callback of rank "record", such as a
    logger or a progress bar, and those that measure for loggers may exist in the first process only.
    """
    if processes.count() == 1:
        return
    params, train = program.signature()
    own = {key: value for key, value in config.items() if key != "command"}
    local = (LearningRateMonitor, Throughput)
    compared = [n for n, one in callbacks.keys().items() if one.rank != "record" and not isinstance(one, local)]
    periods = [line for line in config["fit"]["periods"] if line.split()[0] in compared]
    own |= {"fit": {**config["fit"], "callbacks": compared, "periods": periods}, "model": params, "optimizer": train}
    first = digest(flatten({"batch": program.example}))
    own |= {"data": {**config["data"], "epoch": iterator.length, "first batch": first}}
    for loader in val:
        shapes = [signature(flatten({"batch": batch})) for batch in loader.examples]
        own[f"{loader.name} data"] = {"batches": loader.length, "shapes": shapes}
    require_equal(own)
    params, train = program.state()  # may gather from all processes, so shapes must agree first
    require_equal({"initial values": digest({**params, **train})})
