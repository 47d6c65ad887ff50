"""Checkpointer: saves a run as the last action at a step."""

from __future__ import annotations

from typing import Any

from ..callbacks.run import Run
from ..callbacks.state_arrays import split
from ..checkpoint.migration import SCHEMA
from ..checkpoint.run_directory import run_key
from ..checkpoint.store import Store
from .progress import Progress
from .workload import Workload


def parts(workload: Workload, run: Run, progress: Progress) -> tuple[Workload, Run, Progress]:
    """All parts of a run whose ``state`` is checkpoint metadata, in the order in which ``load_state`` restores them."""
    return workload, run, progress


class Checkpointer:
    """Saves checkpoints, each of which contains everything that a resumed run needs. Without a store it does nothing.

    Args:
        store: Where checkpoints are written, or None.
        workload: The programs, whose arrays are saved, and the data.
        run: The run as callbacks see it.
        progress: The progress of the loop.
    """

    def __init__(self, store: Store | None, workload: Workload, run: Run, progress: Progress):
        self._store, self._workload, self._run, self._progress = store, workload, run, progress

    def save(self) -> None:
        """Save the current step."""
        store, run, progress = self._store, self._run, self._progress
        if store is None:
            return
        with progress.timed("checkpoint"):
            run.callbacks("flush")
            params, train = self._workload.program.state()
            meta = self._metadata()
            meta["callbacks"], arrays = split(meta["callbacks"])
            # The checkpoint from the middle of a boundary is replaced by the one from its end.
            replace = progress.restored_stage == "validation" and run.step == run.restored_step
            if store.save(run.step, params, {**train, **arrays}, meta, run.score, replace=replace):
                with run.closed():
                    run.callbacks("on_checkpoint", run, store.directory / f"{run.step:08d}")

    def wait(self) -> bool | None:
        """Wait for the save in progress. Returns whether the newest state is on disk; None without a store.

        Raises:
            SaveFailed: The save failed for another reason than a full disk.
        """
        return None if self._store is None else self._store.wait()

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()

    def _metadata(self) -> dict[str, Any]:
        config = self._run.config
        meta = {
            "schema": SCHEMA,
            "strategy": config["strategy"],
            "seeds": config["fit"]["seeds"],
            "run": run_key(config),
            "versions": config.get("versions", {}),
        }
        for part in parts(self._workload, self._run, self._progress):
            meta |= part.state()
        return meta
