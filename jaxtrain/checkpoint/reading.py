"""Reads one checkpoint and verifies all of it.

Orbax guarantees that a listed step was once complete, but not that its content is unchanged: it reads most flipped bits
back as numbers. Therefore every leaf has a sha256, the metadata has its own, and both are checked when they are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CorruptCheckpoint
from ..utils.digests import RESERVED, json_digest, leaf_digest
from . import orbax_noise
from .orbax_io import restore

ITEMS = ("params", "train")


@dataclass(frozen=True)
class Saved:
    """Content of a checkpoint: numpy arrays by name, and JSON metadata. Items that were not requested are empty."""

    step: int
    params: dict[str, np.ndarray]
    train: dict[str, np.ndarray]
    meta: dict[str, Any]


def read(path: Path, step: int, items: tuple[str, ...]) -> Saved:
    """Read the metadata and the ``items`` of a checkpoint. Raises CorruptCheckpoint if any of it is damaged."""
    meta = _fetch(path, step, "meta")
    if not isinstance(meta, dict) or not meta.keys() >= RESERVED:
        raise CorruptCheckpoint(step, "its metadata was not written by jaxtrain")
    if meta["digest"] != json_digest({key: value for key, value in meta.items() if key != "digest"}):
        raise CorruptCheckpoint(step, "its metadata differs from its digest")
    if meta["store"]["step"] != step:
        raise CorruptCheckpoint(step, f"its metadata belongs to step {meta['store']['step']}")
    arrays = {item: _read_item(path, step, item, meta) for item in items}
    return Saved(step, arrays.get("params", {}), arrays.get("train", {}), meta)


def _read_item(path: Path, step: int, item: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    # A template with the recorded dtypes and shapes: without one, Orbax needs the devices of the save.
    recorded = meta["store"][item].items()
    leaves = {name: np.empty(shape, getattr(ml_dtypes, dtype, dtype)) for name, (dtype, shape) in recorded}
    if stored := {name: leaf for name, leaf in leaves.items() if leaf.size}:
        leaves |= _fetch(path, step, item, stored)
    elif (path / item).exists():
        raise CorruptCheckpoint(step, f"it contains {item}, which its metadata does not list")
    for name, leaf in leaves.items():
        if leaf_digest(leaf) != meta["digests"][item].get(name):
            raise CorruptCheckpoint(step, f"leaf {name!r} of {item} differs from its digest")
    return leaves


def _fetch(path: Path, step: int, item: str, template: dict[str, np.ndarray] | None = None) -> Any:
    try:
        orbax_noise.begin(path)
        content = restore(path, item, template)
        orbax_noise.succeeded(path)
        return content
    except MemoryError:
        raise
    except Exception as error:  # anything from a KeyError to a bare Exception with 40 lines of text
        text = (str(error).strip().splitlines() or [""])[0]
        raise CorruptCheckpoint(step, f"{type(error).__name__}: {text[:160]}") from None
