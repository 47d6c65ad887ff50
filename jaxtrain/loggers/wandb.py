"""WandB: log entries, configuration and figures for Weights & Biases."""

from __future__ import annotations

import io
import os
import secrets
from typing import TYPE_CHECKING, Any, Literal

from ..callbacks.base import Callback
from ..utils.extras import needed
from ..utils.files import jsonable
from .event_files import BINS, numbers_of
from .jsonl import restored_entries
from .tensorboard import render

if TYPE_CHECKING:
    from ..callbacks.run import Run


class WandB(Callback):
    """Sends log entries, configuration, figures and status to Weights & Biases, with the package ``wandb``.

    Its files are in ``run_dir/wandb``, with the id of the W&B run in ``run_dir/wandb/id``. A resumed run continues the
    W&B run of that id. Log entries that the server has are not sent again. Without a server (``mode="offline"``), every
    start writes a new folder, with the entries of metrics.jsonl up to the restored step first: the newest folder holds
    the whole history, without figures and histograms of earlier starts.

    >>> callbacks = [WandB(project="copying", mode="offline")]    # then: wandb sync run_dir/wandb/latest-run

    Args:
        project: Name of the W&B project; None: as W&B decides, by WANDB_PROJECT.
        mode: "online", "offline" or "disabled"; None: as WANDB_MODE says, or else online.
        options: Further arguments of ``wandb.init``, such as ``name``, ``group``, ``tags`` and ``settings``.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        ValueError: The run has no run directory.
    """

    rank = "record"

    def __init__(
        self, project: str | None = None, mode: Literal["online", "offline", "disabled"] | None = None, **options: Any
    ):
        self._wandb = needed("wandb", "wandb")
        self._options = {"project": project, "mode": mode, **options}
        self._run: Any = None

    def on_fit_start(self, run: Run) -> None:
        if run.run_dir is None:
            raise ValueError("WandB needs a run directory: Fit(run_dir=...)")
        self._finish(1)
        if run.restored_step is None:
            self._start(run)

    def on_restore(self, run: Run) -> None:
        self._start(run)
        for entry in restored_entries(run):
            self.on_log(run, entry)

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        self._send(numbers_of(row), row["step"])

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        from PIL import Image  # comes with matplotlib

        self._send({tag: self._wandb.Image(Image.open(io.BytesIO(render(figure))))}, run.step)

    def on_histogram(self, run: Run, tag: str, values: Any) -> None:
        self._send({tag: self._wandb.Histogram(values, num_bins=BINS)}, run.step)

    def on_fit_end(self, run: Run, status: str) -> None:
        if self._run is not None:
            self._run.summary["status"] = status
        self._finish(0 if status in ("finished", "stopped") else 1)

    def _start(self, run: Run) -> None:
        assert run.run_dir is not None
        path = run.run_dir / "wandb" / "id"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        mode = self._options["mode"] or os.environ.get("WANDB_MODE", "online")
        resume = {"resume": "allow"} if mode == "online" else {}  # without a server, wandb warns of it
        own = {"id": path.read_text(), "dir": run.run_dir, "config": jsonable(run.config), "reinit": "create_new"}
        self._run = self._wandb.init(**{**own, **resume, **self._options})
        self._first = self._run.step  # after the last step that the server has

    def _send(self, values: dict[str, Any], step: int) -> None:
        if self._run is None:
            raise RuntimeError(f"WandB: values for step {step} after on_fit_end; the run is finished")
        if step >= self._first:
            self._run.log(values, step=step)
        else:  # W&B accepts no earlier steps; a run that has ended and is tested later has its test at its last step
            self._run.summary.update({tag: value for tag, value in values.items() if tag.startswith("test/")})

    def _finish(self, code: int) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=code)
