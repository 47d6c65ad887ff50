"""TensorBoard: log entries as curves, the configuration as text and hparams, figures as images."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import socket
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ..callbacks.arguments import expect, is_number
from ..callbacks.base import Callback
from ..utils.files import jsonable, write_atomic
from .appender import Appender
from .event_files import event_files, event_proto, events, histogram, image, scalars, truncate
from .hparams import hparams
from .jsonl import restored_entries

if TYPE_CHECKING:
    from ..callbacks.run import Run

log = logging.getLogger("jaxtrain")
METRICS = ("val/loss", "val/accuracy", "train/loss", "train/accuracy")
"""Tags that are always columns of TensorBoard's HPARAMS page; those of the run's own metrics follow."""
_FIGURE = re.compile(r"(.+)-(\d{8,})\.png")


class TensorBoard(Callback):
    """Writes scalars, configuration, figures and histograms to ``run_dir/tensorboard`` with tensorboardX.

    A resumed run opens a new event file, writes the entries of metrics.jsonl up to the restored step again, and empties
    its older event files. So every step is shown once, even after a crash. Without metrics.jsonl, the older event files
    are truncated after the restored step. Event files of other writers are not changed.

    A nonfinite number is shown as NaN, because metrics.jsonl does not record which one it was. Figures are kept as
    ``run_dir/figures/<tag>-<step>.png``, with each ``/`` of the tag as ``%2F``. Points and figures that the disk does
    not accept are retried until the end of the run.

    >>> callbacks = [JSONL(), TensorBoard()]    # then: tensorboard --logdir run_dir

    Args:
        flush_secs: Longest time in seconds, between chunks, until a running TensorBoard sees new points.

    Raises:
        ValueError: ``flush_secs`` is invalid, or the run has no run directory.
        OSError: At the end of the run, if something could not be written.
    """

    rank = "record"

    def __init__(self, flush_secs: float = 10):
        known = is_number(flush_secs) and flush_secs > 0
        expect(known, "TensorBoard", "flush_secs", flush_secs, "a number of seconds above 0")
        self.flush_secs = flush_secs
        self._writer: Appender | None = None
        self._flushed = 0.0

    def on_fit_start(self, run: Run) -> None:
        if run.run_dir is None:
            raise ValueError("TensorBoard needs a run directory: Fit(run_dir=...)")
        self._close()
        if run.restored_step is None:
            for path, _, _ in _figures(run.run_dir):  # left by a run that died before its first checkpoint
                path.unlink()
            before = event_files(run.run_dir)
            self._open(run)
            self._write_config(run, step=0)
            self.flush()
            for path in before:
                truncate(path, None)

    def on_restore(self, run: Run) -> None:
        assert run.run_dir is not None
        entries = restored_entries(run)
        figures = []
        for path, tag, step in _figures(run.run_dir):
            if step > run.step:
                path.unlink()
            else:
                figures.append((path, tag, step))
        before = event_files(run.run_dir)
        histograms = _histograms(before, run.step) if entries else {}
        self._open(run)
        # Without log entries, what older event files show up to this step is kept.
        self._write_config(run, step=0 if entries else run.step)
        if entries:
            for entry in entries:
                self._add(scalars(entry), entry["step"])
            for path, tag, step in figures:
                self._add(image(tag, path.read_bytes()), step)
            for event in histograms.values():
                self._write(event)
        self.flush()
        for path in before:  # only now: the new file holds what they show
            truncate(path, None if entries else run.step)

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        self._add(scalars(row), row["step"])
        self._flush_if_due()

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._flush_if_due()

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        assert run.run_dir is not None
        png = render(figure)
        path = run.run_dir / "figures" / f"{quote(tag, safe='')}-{run.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, png)  # before the event: if this fails, the whole call is repeated later
        self._add(image(tag, png), run.step)

    def on_histogram(self, run: Run, tag: str, values: Any) -> None:
        self._add(histogram(tag, values), run.step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush(sync=True)
            self._flushed = time.monotonic()

    def on_fit_end(self, run: Run, status: str) -> None:
        self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= self.flush_secs:
            self.flush()

    def _open(self, run: Run) -> None:
        # Not tensorboardX.SummaryWriter: because of its queue and thread, flush() is no barrier, an error (a full
        # disk) ends it silently, and it opens a second file after close().
        assert run.run_dir is not None
        directory = run.run_dir / "tensorboard"
        directory.mkdir(exist_ok=True)
        # Readers sort files by name, and names have whole seconds only. Nanoseconds sort a resumed run behind the
        # file that it replaces, even within one second; pid and uuid distinguish processes.
        suffix = f"{time.time_ns():020d}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{suffix}"
        self._writer = Appender(directory / name)
        # No SessionLog.START: it makes a reader drop later steps from every file, those of other writers too.
        self._write(event_proto().Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _add(self, summary: Any, step: int) -> None:
        if self._writer is None:
            raise RuntimeError(f"TensorBoard: values for step {step} after on_fit_end; the file is closed")
        self._write(event_proto().Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        """Write one record of an event file: length and data, each with a checksum."""
        from tensorboardX.record_writer import masked_crc32c

        def checked(data: bytes) -> bytes:
            return data + struct.pack("<I", masked_crc32c(data))

        assert self._writer is not None
        data = event.SerializeToString()
        self._writer.write(checked(struct.pack("<Q", len(data))) + checked(data))

    def _write_config(self, run: Run, step: int) -> None:
        from tensorboardX import summary

        config = jsonable(run.config)
        text = f"```json\n{json.dumps(config, indent=2)}\n```"
        if config.get("command"):
            text = f"`{shlex.join(map(str, config['command']))}`\n\n{text}"
        self._add(summary.text("config", text), step)
        # Not SummaryWriter.add_hparams: it creates a second run, named after the time.
        for part in summary.hparams(hparams(config), dict.fromkeys([*METRICS, *run.tags], 0.0)):
            self._add(part, step)


def _histograms(paths: list[Path], last: int) -> dict[tuple[str, int], Any]:
    """The events that hold a histogram of a step up to ``last``, by tag and step. No other file holds histograms."""
    return {
        (event.summary.value[0].tag, event.step): event
        for path in paths
        for _, event in events(path)
        if event.step <= last and any(value.HasField("histo") for value in event.summary.value)
    }


def render(figure: Any) -> bytes:
    """A figure of matplotlib as PNG. It is closed if pyplot knows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:  # pyplot would keep its figures alive
        pyplot.close(figure)
    return buffer.getvalue()


def _figures(run_dir: Path) -> list[tuple[Path, str, int]]:
    """Figures of a run directory: (path, tag, step), sorted by step."""
    found = []
    for path in (run_dir / "figures").glob("*.png"):
        match = _FIGURE.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.append((path, unquote(match[1]), int(match[2])))
    return sorted(found, key=lambda item: (item[2], item[1]))
