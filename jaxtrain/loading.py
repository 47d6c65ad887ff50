"""A module's model: built under a seed, or given the parameters of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brainstate

from .checkpoint import Saved
from .module import Module
from .resume import read_checkpoint, refuse_differences
from .state import flatten, parameters, seeded, signature, unflatten


def load(path: str | Path, module: Module) -> Module:
    """Give a module the parameters of a checkpoint and return it, its model built where it has none.

    ``path``: a run directory (its newest readable checkpoint) or ``<run>/checkpoints/<step>``. Raises ValueError where
    the checkpoint is of another model, FileNotFoundError where there is none.
    """
    saved = read_checkpoint(path)
    require_module(module)
    build(module, 0)
    load_into(module, saved)
    return module


def load_into(module: Module, saved: Saved) -> None:
    states = parameters(module.model)
    template = {name: state.value for name, state in states.items()}
    recorded = {"step": saved.step, "model": signature(saved.params)}
    refuse_differences(recorded, {"model": signature(flatten(template))}, ("model",))
    for name, value in unflatten(template, saved.params).items():
        states[name].value = value


def build(module: Module, seed: int) -> None:
    """Build a module's model under a seed, unless it has one already."""
    if module.model is None:
        with brainstate.environ.context(**module.environ, fit=True), seeded(seed):
            module.model = module.build()
    if not isinstance(module.model, brainstate.nn.Module):
        raise TypeError(
            f"the model of {type(module).__name__} is a {type(module.model).__name__}; expected a brainstate.nn.Module"
        )


def require_module(module: Any) -> None:
    if not isinstance(module, Module):
        raise TypeError(f"expected a jaxtrain.Module object, got {module!r}")
