"""A module's model: built under a seed, or given the values of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brainstate

from .checkpoint import Saved
from .module import Module
from .resume import read_checkpoint, refuse_differences
from .state import State, flatten, lasting, parameters, seeded, signature, strong, unflatten

LASTING = "model/"
"""What names of lasting states begin with in a checkpoint."""


def load(path: str | Path, module: Module) -> Module:
    """Give a module the values of a checkpoint and return it, its model built where it has none.

    Restored are the parameters and the states that outlive a sequence (running statistics, a model's own random
    states). ``path``: a run directory (its newest readable checkpoint) or ``<run>/checkpoints/<step>``. Raises
    ValueError where the checkpoint is of another model, FileNotFoundError where there is none.
    """
    saved = read_checkpoint(path)
    require_module(module)
    build(module, 0)
    load_into(module, saved)
    return module


def load_into(module: Module, saved: Saved) -> None:
    """Parameters and lasting states, or nothing where any of them is another model's."""
    refuse_other_parameters(module, saved)
    kept = {name: leaf for name, leaf in saved.train.items() if name.startswith(LASTING)}
    states = _lasting(module)
    _refuse(saved, kept, states)
    _assign(parameters(module.model), saved.params)
    _assign(states, kept)


def refuse_other_parameters(module: Module, saved: Saved) -> None:
    """Raise ValueError where a checkpoint's parameters are of other names, shapes or dtypes."""
    _refuse(saved, saved.params, parameters(module.model))


def _refuse(saved: Saved, flat: dict[str, Any], states: Any) -> None:
    recorded = {"step": saved.step, "model": signature(flat)}
    refuse_differences(recorded, {"model": signature(_flat(states))}, ("model",), "give the module of that run")


def _lasting(module: Module) -> dict[str, State]:
    return {f"{LASTING}{name}": state for name, state in lasting(module.model).items()}


def _flat(states: Any) -> dict[str, Any]:
    return flatten({name: strong(state.value) for name, state in states.items()})


def _assign(states: Any, flat: dict[str, Any]) -> None:
    template = {name: strong(state.value) for name, state in states.items()}
    for name, value in unflatten(template, flat).items():
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
