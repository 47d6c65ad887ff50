"""All calls of Orbax: a manager that saves for all processes together, and reads that each process makes on its own.

Orbax takes a second to import, so it is not imported before the first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import processes
from .retention import Retention
from .step_folders import DELETED


def open_manager(directory: Path, retention: Retention) -> Any:
    """Create the CheckpointManager of a directory. Old steps are moved to the folder ``DELETED``, then deleted."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import FixedIntervalPolicy

    # FixedIntervalPolicy(1), with force=True in save(), keeps Orbax from choosing which steps to save.
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=FixedIntervalPolicy(1),
        preservation_policy=retention,
        step_format_fixed_length=8,
        cleanup_tmp_directories=True,
        todelete_subdir=DELETED,
    )
    return ocp.CheckpointManager(directory, options=options)


def start_save(
    manager: Any,
    step: int,
    meta: dict[str, Any],
    arrays: Mapping[str, Mapping[str, Any]],
    host: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Start to save ``meta`` and the ``arrays`` of each item, whose copies on the host are ``host``."""
    import orbax.checkpoint as ocp

    args: dict[str, Any] = {"meta": ocp.args.JsonSave(meta)}
    for item, leaves in host.items():  # Orbax refuses empty arrays and trees; the metadata suffices
        if stored := {name: _spanning(arrays[item][name], leaf) for name, leaf in leaves.items() if leaf.size}:
            args[item] = ocp.args.StandardSave(stored)
    manager.save(step, args=ocp.args.Composite(**args), force=True)


def _spanning(leaf: Any, host: np.ndarray) -> Any:
    """The copy on the host, unless the array spans processes. Of such an array, each process writes its own part."""
    return host if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated else leaf


def restore(path: Path, item: str, template: dict[str, np.ndarray] | None = None) -> Any:
    """Read one item of a checkpoint: arrays with the dtypes and shapes of ``template``, or JSON if there is none.

    With several processes, each reads without waiting for the others.
    """
    import orbax.checkpoint as ocp

    args = ocp.args.JsonRestore() if template is None else ocp.args.StandardRestore(template)
    own = processes.index()
    alone = ocp.options.MultiprocessingOptions(own, {own}, f"reader{own}")
    options = alone if processes.count() > 1 else ocp.options.MultiprocessingOptions()
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=options))
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        return reader.restore(path, args=ocp.args.Composite(**{item: args}))[item]
