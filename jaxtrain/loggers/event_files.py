"""TensorBoard's event files: protocol buffers in frames with checksums."""

from __future__ import annotations

import math
import numbers
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .appender import LIMIT

BINS = 64
"""Number of bins of a histogram."""


_OURS = re.compile(r"events\.out\.tfevents\.\d+\..+\.\d{20}\.\d+\.[0-9a-f]{6}")


def event_files(run_dir: Path) -> list[Path]:
    """The event files written by this logger, sorted by name."""
    return sorted(path for path in (run_dir / "tensorboard").glob("*") if _OURS.fullmatch(path.name))


def events(path: Path) -> Iterator[tuple[int, Any]]:
    """The events of a file, each with the offset of its end, up to the first that is incomplete or damaged."""
    from google.protobuf.message import DecodeError

    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (size,) = struct.unpack("<Q", head[:8])
            body = file.read(min(size, LIMIT))
            if len(body) < size or len(file.read(4)) < 4:
                return
            try:
                yield file.tell(), event_proto().Event.FromString(body)
            except DecodeError:
                return


def truncate(path: Path, step: int | None) -> None:
    """Truncate an event file after its last event up to ``step``; None removes all events."""
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


def event_proto() -> Any:
    from tensorboardX.proto import event_pb2

    return event_pb2


def summary_proto() -> Any:
    from tensorboardX.proto import summary_pb2

    return summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


def numbers_of(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a log entry by tag; a list, with one number per seed, as ``/min`` and ``/max``. Nonfinite: NaN."""
    found = {}
    for tag, value in entry.items():
        if tag in ("nonfinite", "step"):
            continue
        if isinstance(value, list):  # one number per seed; their mean has its own curve
            finite = [number for number in value if number is not None and math.isfinite(number)]
            found |= {f"{tag}/min": min(finite), f"{tag}/max": max(finite)} if finite else {}
        elif tag in entry.get("nonfinite", ()):
            found[tag] = math.nan
        elif not isinstance(value, bool) and isinstance(value, numbers.Real):
            found[tag] = float(value) if math.isfinite(float(value)) else math.nan
    return found


def scalars(entry: dict[str, Any]) -> Any:
    """One event summary with all numbers of a log entry."""
    proto = summary_proto()
    return proto(value=[proto.Value(tag=tag, simple_value=number) for tag, number in numbers_of(entry).items()])


def image(tag: str, png: bytes) -> Any:
    proto = summary_proto()
    width, height = struct.unpack(">II", png[16:24])
    image = proto.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return proto(value=[proto.Value(tag=tag, image=image)])


def histogram(tag: str, values: Any) -> Any:
    from tensorboardX.proto import summary_pb2

    spread = values.max() - values.min()
    counts, edges = np.histogram(values, BINS if spread > 1e-9 * np.abs(values).max() else 1)
    histogram = summary_pb2.HistogramProto(  # pyright: ignore[reportAttributeAccessIssue]
        min=values.min(), max=values.max(), num=len(values), sum=values.sum(), sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:], bucket=counts,
    )  # fmt: skip
    return summary_proto()(value=[summary_proto().Value(tag=tag, histo=histogram)])
