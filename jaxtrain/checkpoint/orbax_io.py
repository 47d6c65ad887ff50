"""What a Store asks of Orbax: a manager that saves, for all processes together, and a reader, for each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import processes


def manager(directory: Path, keeper: Any, gone: str) -> Any:
    """``keeper.should_preserve`` says which steps stay; others are moved to the folder ``gone`` before they go."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import FixedIntervalPolicy

    # FixedIntervalPolicy(1), force: Orbax must have no opinion of its own on which steps are worth saving.
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=FixedIntervalPolicy(1),
        preservation_policy=keeper,
        step_format_fixed_length=8,
        cleanup_tmp_directories=True,
        todelete_subdir=gone,
    )
    return ocp.CheckpointManager(directory, options=options)


def reader() -> Any:
    """A context manager. Where several processes read, none waits for the others."""
    import orbax.checkpoint as ocp

    if processes.count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    own = processes.index()
    alone = ocp.options.MultiprocessingOptions(own, {own}, f"reader{own}")
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def to_save(leaf: Any, held: np.ndarray) -> Any:
    """What Orbax is given of a leaf: the copy ``held`` of it, or what lies in several processes as it is, so that each
    writes its own part."""
    return held if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated else leaf
