"""Adapts a checkpoint's optimizer state to a fork that trains other parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..core.state import signature
from ..utils.logging import log
from .reading import Saved

OPTIMIZER_PREFIX = "optimizer/"


def with_trained_parameters(saved: Saved, params: Iterable[str], live: dict[str, Any], forked: bool) -> Saved:
    """Fit a checkpoint to a fork of which ``Module.trainable`` selects other parameters.

    Optimizer state of parameters that are trained before and after is kept, that of newly trained parameters is fresh,
    and that of others is dropped. What parameters share, such as counts, continues. A checkpoint of another optimizer
    is returned as it is, and so is one that fits.

    Args:
        saved: The checkpoint.
        params: Names of all parameters.
        live: The run's own state other than parameters, before the checkpoint is loaded.
        forked: Whether the run is a fork.

    Raises:
        ValueError: Other parameters are trained, and the run is not a fork.
    """
    before, now = _kinds(saved.train, params), _kinds(live, params)
    newly, no_longer = now.keys() - before.keys(), before.keys() - now.keys()
    same_optimizer = len({frozenset(kinds) for kinds in (*before.values(), *now.values())}) <= 1 and before and now
    if not same_optimizer or not newly | no_longer:
        return saved
    changes = {"newly trained": sorted(newly), "no longer trained": sorted(no_longer)}
    text = "; ".join(f"{what}: {', '.join(names)}" for what, names in changes.items() if names)
    if not forked:
        raise ValueError(
            f"the checkpoint of step {saved.step} is of a run that trains other parameters ({text}): continue as a "
            "fork, with resume='<run>/checkpoints/<step>' and a new run_dir"
        )
    dropped = {leaf for name in no_longer for leaf in before[name].values()}
    fresh = {leaf: live[leaf] for name in newly for leaf in now[name].values()}

    def changed(leaves: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        return {leaf: value for leaf, value in leaves.items() if leaf not in dropped} | new

    log.info("fork: %s; optimizer state is kept for the others", text)
    optimizer = changed(saved.meta["optimizer"], signature(fresh))  # saved.train also holds arrays of callbacks
    return replace(saved, train=changed(saved.train, fresh), meta={**saved.meta, "optimizer": optimizer})


def _kinds(train: dict[str, Any], params: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each parameter with optimizer state, its leaves by kind.

    An example is ``{"w": {"state.0.mu": "optimizer/state.0.mu.w"}}``.
    """
    found: dict[str, dict[str, str]] = {}
    for leaf in train:
        own = [name for name in params if leaf.startswith(OPTIMIZER_PREFIX) and leaf.endswith(f".{name}")]
        if own:
            name = max(own, key=len)
            found.setdefault(name, {})[leaf.removeprefix(OPTIMIZER_PREFIX).removesuffix(f".{name}")] = leaf
    return found
