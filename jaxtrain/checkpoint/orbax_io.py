"""The Orbax objects that a Store uses: a manager that saves for all processes together, and a reader per process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import processes


def manager(directory: Path, keeper: Any, gone: str) -> Any:
    """Create the CheckpointManager of a directory.

    ``keeper.should_preserve`` decides which steps are kept. The others are moved to the folder ``gone`` before they are
    deleted.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import FixedIntervalPolicy

    # FixedIntervalPolicy(1), with force=True in save(), keeps Orbax from choosing which steps to save.
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=FixedIntervalPolicy(1),
        preservation_policy=keeper,
        step_format_fixed_length=8,
        cleanup_tmp_directories=True,
        todelete_subdir=gone,
    )
    return ocp.CheckpointManager(directory, options=options)


def reader() -> Any:
    """Create a context manager that reads. With several processes, each reads without waiting for the others."""
    import orbax.checkpoint as ocp

    if processes.count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    own = processes.index()
    alone = ocp.options.MultiprocessingOptions(own, {own}, f"reader{own}")
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def to_save(leaf: Any, held: np.ndarray) -> Any:
    """What Orbax receives for a leaf: the host copy ``held``, or an array that spans processes itself.

    Each process writes its own part of such an array.
    """
    return held if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated else leaf
