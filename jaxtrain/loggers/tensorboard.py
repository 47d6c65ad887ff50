"""TensorBoard: the rows of a run as curves, its configuration as text and hparams, its figures as images."""

from __future__ import annotations

import io
import json
import logging
import math
import numbers
import os
import re
import shlex
import socket
import struct
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np

from ..callbacks.base import Callback
from ..utils.files import jsonable, write_atomic
from .appender import LIMIT, Appender
from .jsonl import past

if TYPE_CHECKING:
    from ..callbacks.run import Run

log = logging.getLogger("jaxtrain")
METRICS = ("val/loss", "val/accuracy", "train/loss", "train/accuracy")
"""Tags that are columns of TensorBoard's HPARAMS page."""
BINS = 64
_OURS = re.compile(r"events\.out\.tfevents\.\d+\..+\.\d{20}\.\d+\.[0-9a-f]{6}")
_FIGURE = re.compile(r"(.+)-(\d{8,})\.png")


class TensorBoard(Callback):
    """Writes scalars, configuration, figures and histograms to ``run_dir/tensorboard`` with tensorboardX.

    A resumed run opens a new event file, writes the rows of metrics.jsonl up to the restored step again, and empties
    its older event files, so every step is shown once, also after a crash; without metrics.jsonl it cuts them behind
    the restored step. Event files of other writers stay as they are. A number that is not finite is shown as NaN
    (metrics.jsonl does not keep which it was). Figures are kept as ``run_dir/figures/<tag>-<step>.png``, a ``/`` of
    the tag as ``%2F``.
    ``flush_secs``: after how many seconds at most, between chunks, points are visible to a TensorBoard that watches.
    Points and figures that the disk does not take wait. Raises ValueError without a run directory, OSError at the end
    of a run for what could not be written.

    >>> callbacks = [JSONL(), TensorBoard()]    # then: tensorboard --logdir run_dir
    """

    rank = "record"

    def __init__(self, flush_secs: float = 10):
        if isinstance(flush_secs, bool) or not isinstance(flush_secs, int | float) or not flush_secs > 0:
            raise ValueError(f"TensorBoard: flush_secs is {flush_secs!r}; expected a number of seconds above 0")
        self.flush_secs = flush_secs
        self._writer: Appender | None = None
        self._flushed = 0.0
        self._figures: dict[Path, bytes] = {}
        """Those that are not on disk yet."""

    def on_fit_start(self, run: Run) -> None:
        if run.run_dir is None:
            raise ValueError("TensorBoard needs a run directory: Fit(run_dir=...)")
        self._close()
        if run.restored_step is None:
            for path, _, _ in _figures(run.run_dir):  # of a run that died before its first checkpoint
                path.unlink()
            before = event_files(run.run_dir)
            self._open(run)
            self._write_config(run, step=0)
            self.flush()
            for path in before:
                cut(path, None)

    def on_restore(self, run: Run) -> None:
        assert run.run_dir is not None
        rows = past(run)
        figures = []
        for path, tag, step in _figures(run.run_dir):
            if step > run.step:
                path.unlink()
            else:
                figures.append((path, tag, step))
        before = event_files(run.run_dir)
        histograms = _histograms(before, run.step) if rows else {}
        self._open(run)
        # An empty record says nothing about the past: what older event files show up to here stays.
        self._write_config(run, step=0 if rows else run.step)
        if rows:
            for row in rows:
                self._add(_scalars(row), row["step"])
            for path, tag, step in figures:
                self._add(_image(tag, path.read_bytes()), step)
            for event in histograms.values():
                self._write(event)
        self.flush()
        for path in before:  # now, since what they show is in the new one
            cut(path, None if rows else run.step)

    def on_row(self, run: Run, row: dict[str, Any]) -> None:
        self._add(_scalars(row), row["step"])
        self._flush_if_due()

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._flush_if_due()

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        assert run.run_dir is not None
        png = _render(figure)
        self._figures[run.run_dir / "figures" / f"{quote(tag, safe='')}-{run.step:08d}.png"] = png
        self._write_figures()
        self._add(_image(tag, png), run.step)

    def on_histogram(self, run: Run, tag: str, values: Any) -> None:
        self._add(_histogram(tag, values), run.step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush(sync=True)
            self._flushed = time.monotonic()
            self._write_figures()

    def on_fit_end(self, run: Run, status: str) -> None:
        self._close()

    def _write_figures(self) -> None:
        warned = len(self._figures) > 1
        for path, png in [*self._figures.items()]:
            try:
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, png)
            except OSError as error:
                if not warned:
                    log.warning("%s: %s; figures wait, and are tried again", path, error.strerror)
                while sum(map(len, self._figures.values())) > LIMIT:  # TensorBoard has them all the same
                    log.warning("%s: is given up", oldest := next(iter(self._figures)))
                    del self._figures[oldest]
                return
            del self._figures[path]

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        finally:
            self._write_figures()
            if self._figures:
                path = next(iter(self._figures))
                self._figures = {}
                raise OSError(None, "this figure is not written", str(path))

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= self.flush_secs:
            self.flush()

    def _open(self, run: Run) -> None:
        # Not tensorboardX.SummaryWriter, whose queue and thread make flush() no barrier, end silently at an error (a
        # full disk), and open a second file after close().
        assert run.run_dir is not None
        directory = run.run_dir / "tensorboard"
        directory.mkdir(exist_ok=True)
        # Readers take files in the order of their names, which carry whole seconds only: nanoseconds put a resume
        # within the same second behind the file that it replaces; pid and uuid keep two processes apart.
        suffix = f"{time.time_ns():020d}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{suffix}"
        self._writer = Appender(directory / name)
        # Without a SessionLog.START: by that a reader drops what is behind a step in every file, other writers' too.
        self._write(_event_proto().Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _add(self, summary: Any, step: int) -> None:
        if self._writer is None:
            raise RuntimeError(f"TensorBoard: values for step {step} after the end of the run; rows end at on_fit_end")
        self._write(_event_proto().Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        """One record of an event file: length, data, and a checksum of each."""
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
        # Not SummaryWriter.add_hparams: it makes a second run, named by the time.
        for part in summary.hparams(hparams(config), dict.fromkeys(METRICS, 0.0)):
            self._add(part, step)


def event_files(run_dir: Path) -> list[Path]:
    """The event files that this logger wrote, in the order of their names."""
    return sorted(path for path in (run_dir / "tensorboard").glob("*") if _OURS.fullmatch(path.name))


def events(path: Path) -> Iterator[tuple[int, Any]]:
    """The events of a file, each with the offset of its end, up to one that is torn or damaged."""
    from google.protobuf.message import DecodeError

    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (size,) = struct.unpack("<Q", head[:8])
            body = file.read(min(size, LIMIT))
            if len(body) < size or len(file.read(4)) < 4:
                return
            try:
                yield file.tell(), _event_proto().Event.FromString(body)
            except DecodeError:
                return


def cut(path: Path, step: int | None) -> None:
    """Leave of an event file what it holds up to a step; None: nothing."""
    end = 0
    for after, event in events(path):
        if not event.file_version and (step is None or event.step > step):
            break
        end = after
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(file).st_size > end:
            os.ftruncate(file, end)
    finally:
        os.close(file)


def _histograms(paths: list[Path], last: int) -> dict[tuple[str, int], Any]:
    """The events that hold a histogram of a step up to the last, by tag and step: no other file has them."""
    return {
        (event.summary.value[0].tag, event.step): event
        for path in paths
        for _, event in events(path)
        if event.step <= last and any(value.HasField("histo") for value in event.summary.value)
    }


def hparams(config: dict[str, Any]) -> dict[str, bool | float | str]:
    """Flat values for the HPARAMS page from what config.json holds.

    The keys are those of the recipe's config, or of Fit and the data where there is none; they do not depend on the
    values (None is "null"; the fields of a strategy are one text), because TensorBoard shows the columns of one run.
    """
    strategy = dict(config.get("strategy") or {})
    flat = {"module": config.get("module"), "strategy": strategy.pop("name", None), "strategy.fields": strategy}
    source = config.get("config") or {"fit": config.get("fit") or {}, "data": config.get("data") or {}}
    return {name: _hparam(value) for name, value in {**flat, **_flatten(source)}.items()}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _hparam(value: Any) -> bool | float | str:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return json.dumps(value, default=str)


def _event_proto() -> Any:
    from tensorboardX.proto import event_pb2

    return event_pb2


def _summary_proto() -> Any:
    from tensorboardX.proto import summary_pb2

    return summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


def _scalars(row: dict[str, Any]) -> Any:
    """All numbers of a row in one event."""
    proto = _summary_proto()
    values = []
    for tag, value in row.items():
        if tag == "nonfinite":
            continue
        if isinstance(value, list):  # a number of each seed: the mean has a curve of its own
            finite = [number for number in value if number is not None and math.isfinite(number)]
            ends = {"min": min(finite), "max": max(finite)} if finite else {}
            values += [proto.Value(tag=f"{tag}/{end}", simple_value=number) for end, number in ends.items()]
            continue
        if tag in row.get("nonfinite", ()):
            value = math.nan
        if tag == "step" or isinstance(value, bool) or not isinstance(value, numbers.Real):
            continue
        number = float(value)
        values.append(proto.Value(tag=tag, simple_value=number if math.isfinite(number) else math.nan))
    return proto(value=values)


def _image(tag: str, png: bytes) -> Any:
    proto = _summary_proto()
    width, height = struct.unpack(">II", png[16:24])
    image = proto.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return proto(value=[proto.Value(tag=tag, image=image)])


def _histogram(tag: str, values: Any) -> Any:
    from tensorboardX.proto import summary_pb2

    spread = values.max() - values.min()
    counts, edges = np.histogram(values, BINS if spread > 1e-9 * np.abs(values).max() else 1)
    histogram = summary_pb2.HistogramProto(  # pyright: ignore[reportAttributeAccessIssue]
        min=values.min(), max=values.max(), num=len(values), sum=values.sum(), sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:], bucket=counts,
    )  # fmt: skip
    return _summary_proto()(value=[_summary_proto().Value(tag=tag, histo=histogram)])


def _render(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:  # a figure made with pyplot would be kept for ever
        pyplot.close(figure)
    return buffer.getvalue()


def _figures(run_dir: Path) -> list[tuple[Path, str, int]]:
    """Figures kept in a run directory: (path, tag, step) in the order of their steps."""
    found = []
    for path in (run_dir / "figures").glob("*.png"):
        match = _FIGURE.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.append((path, unquote(match[1]), int(match[2])))
    return sorted(found, key=lambda item: (item[2], item[1]))
