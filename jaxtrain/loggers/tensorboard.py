"""TensorBoard: the rows of a run as curves, its configuration as text and hparams, its figures as images."""

from __future__ import annotations

import io
import json
import math
import numbers
import os
import re
import shlex
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ..callback import Callback
from ..files import jsonable, write_atomic
from .jsonl import FILE, read_rows

if TYPE_CHECKING:
    from ..run import Run

METRICS = ("val/loss", "val/accuracy", "train/loss", "train/accuracy")
"""Tags that are columns of TensorBoard's HPARAMS page."""
_FIGURE = re.compile(r"(.+)-(\d{8,})\.png")


class TensorBoard(Callback):
    """Writes scalars, configuration and figures to ``run_dir/tensorboard`` with tensorboardX.

    A resumed run opens a new event file, hides all that was there before and writes the rows of metrics.jsonl up to
    the restored step again, so every step is shown once, also after a crash; without metrics.jsonl it hides only
    what came after the restored step. A number that is not finite is shown as NaN (metrics.jsonl does not keep which
    it was). Figures are kept as ``run_dir/figures/<tag>-<step>.png``, a ``/`` of the tag as ``%2F``.
    ``flush_secs``: after how many seconds at most, between chunks, points are visible to a TensorBoard that watches.
    Raises ValueError without a run directory.

    >>> callbacks = [JSONL(), TensorBoard()]    # then: tensorboard --logdir run_dir
    """

    rank = "record"

    def __init__(self, flush_secs: float = 10):
        if not flush_secs > 0:
            raise ValueError(f"TensorBoard: flush_secs is {flush_secs!r}; expected a number of seconds above 0")
        self.flush_secs = flush_secs
        self._writer: Any = None
        self._flushed = 0.0

    def on_fit_start(self, run: Run) -> None:
        if run.run_dir is None:
            raise ValueError("TensorBoard needs a run directory: Fit(run_dir=...)")
        self._close()
        if run.restored_step is None:
            for path, _, _ in _figures(run.run_dir):  # of a run that died before its first checkpoint
                path.unlink()
            self._open(run, purge_step=0)
            self._write_config(run, step=0)
            self.flush()

    def on_restore(self, run: Run) -> None:
        assert run.run_dir is not None
        record = run.run_dir / FILE
        rows = [row for row in read_rows(record) if row["step"] <= run.row_limit] if record.exists() else []
        figures = []
        for path, tag, step in _figures(run.run_dir):
            if step > run.step:
                path.unlink()
            else:
                figures.append((path, tag, step))
        if rows:
            self._open(run, purge_step=0)
            self._write_config(run, step=0)
            for row in rows:
                self._add(_scalars(row), row["step"])
            for path, tag, step in figures:
                self._add(_image(tag, path.read_bytes()), step)
        else:  # an empty record says nothing about the past: what older event files show up to here stays
            self._open(run, purge_step=run.step + 1)
            self._write_config(run, step=run.step)
        self.flush()

    def on_row(self, run: Run, row: dict[str, Any]) -> None:
        self._add(_scalars(row), row["step"])
        self._flush_if_due()

    def on_chunk_end(self, run: Run, metrics: dict[str, Any]) -> None:
        self._flush_if_due()

    def on_figure(self, run: Run, tag: str, figure: Any) -> None:
        assert run.run_dir is not None
        png = _render(figure)
        path = run.run_dir / "figures" / f"{quote(tag, safe='')}-{run.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, png)
        self._add(_image(tag, png), run.step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()
            self._flushed = time.monotonic()

    def on_fit_end(self, run: Run, status: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= self.flush_secs:
            self.flush()

    def _open(self, run: Run, purge_step: int) -> None:
        # The writer behind tensorboardX.SummaryWriter, without its queue and thread: flush() is a barrier, an error
        # (a full disk) is raised here instead of ending the thread, and nothing opens a second file after close().
        from tensorboardX.event_file_writer import EventsWriter

        assert run.run_dir is not None
        directory = run.run_dir / "tensorboard"
        directory.mkdir(exist_ok=True)
        # Readers take files in the order of their names, which carry whole seconds only: nanoseconds put a resume
        # within the same second behind the file that it replaces; pid and uuid keep two processes apart.
        suffix = f".{time.time_ns():020d}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        self._writer = EventsWriter(str(directory / "events"), suffix)
        proto = _event_proto()
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._writer.write_event(proto.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def _add(self, summary: Any, step: int) -> None:
        if self._writer is None:
            raise RuntimeError(f"TensorBoard: values for step {step} after the end of the run; rows end at on_fit_end")
        self._writer.write_event(_event_proto().Event(wall_time=time.time(), step=step, summary=summary))

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
