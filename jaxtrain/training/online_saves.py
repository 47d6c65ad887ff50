"""When an online session is saved, and what its checkpoints hold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..callbacks.checkpoint import Checkpoint, kept_by
from ..checkpoint.migration import SCHEMA
from ..checkpoint.run_directory import CHECKPOINTS, run_key
from ..checkpoint.store import Store
from ..utils.files import write_json
from .time_steps import Stream


class Saves:
    """The checkpoints of a session, and when one is due. Without a run directory it does nothing.

    Args:
        run_dir: The run directory, or None.
        checkpoint: The callback that determines how often the session is saved, or None.
        config: The content of config.json.
    """

    def __init__(self, run_dir: Path | None, checkpoint: Checkpoint | None, config: dict[str, Any]):
        self.run_dir, self._config = run_dir, config
        self._every = None if checkpoint is None else checkpoint.every
        self._store = None
        if run_dir is not None:
            self._store = Store(run_dir / CHECKPOINTS, last=kept_by(checkpoint)["keep_last"])
            write_json(run_dir / "config.json", config)
            (run_dir / "result.json").unlink(missing_ok=True)  # from an earlier part of the session
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a save is due after this time step."""
        every = self._every
        if every is None:
            return False
        return time.monotonic() - self._saved_at >= every.n if every.unit == "time" else step % every.n == 0

    def save(self, stream: Stream) -> None:
        """Start to save the state. It is complete when this returns, but perhaps not on disk."""
        assert self._store is not None
        self._store.save(stream.steps, *stream.state(), self._metadata(stream))
        self._saved_at = time.monotonic()

    def wait(self) -> bool:
        """Wait for the save in progress. Returns whether it is on disk."""
        assert self._store is not None
        return self._store.wait()

    def end(self, step: int, valid: bool) -> None:
        """Wait for the last save, and write result.json."""
        if self._store is not None and self.run_dir is not None:
            saved = self.wait()
            status = "finished" if valid else "failed"
            write_json(self.run_dir / "result.json", {"status": status, "step": step, "saved": saved and valid})

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _metadata(self, stream: Stream) -> dict[str, Any]:
        config, program = self._config, stream.program
        params, train = program.signature()
        return {
            "schema": SCHEMA,
            "step": stream.steps,
            "strategy": config["strategy"],
            "seeds": None,
            "run": run_key(config),
            "versions": config["versions"],
            "model": params,
            "optimizer": train,
            "optimizer_settings": program.optimizer.settings(),
            "data": config["data"],
            "task": {},
        }
