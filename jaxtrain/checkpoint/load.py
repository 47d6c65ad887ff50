"""Build a module's model under a seed, and load the values of a checkpoint into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import brainstate

from ..callbacks.state_arrays import PREFIX
from ..core.module import Module
from ..core.objective import environ_explained
from ..core.ownership import alone, refuse_in_use
from ..core.state import (
    State,
    create_hidden,
    flatten,
    long_term_states,
    parameters,
    seeded,
    signature,
    unflatten,
    with_strong_types,
)
from .comparison import refuse_differences
from .reading import Saved
from .run_directory import read_checkpoint

MODEL_PREFIX = "model/"
"""Prefix of the names of a model's long-term states in a checkpoint."""


@alone("jaxtrain.load")
def load(path: str | Path, module: Module, *, seed: int | None = None) -> Module:
    """Load a checkpoint into a module, building its model if it has none.

    The parameters are restored, and the states that outlive a sequence (running statistics, a model's own random
    states).

    Args:
        path: A run directory, whose newest readable checkpoint is loaded, or ``<run>/checkpoints/<step>``.
        module: The module to load into.
        seed: The seed to load, if the run trained several seeds.

    Returns:
        ``module``.

    Raises:
        ValueError: The checkpoint belongs to another model or does not contain ``seed``.
        FileNotFoundError: There is no checkpoint.
        RuntimeError: A run in progress trains this module.
        TypeError: ``module`` is not a ``jaxtrain.Module``.

    Example::

        fit.run(module, data)  # with Fit(run_dir="runs/demo")
        trained = jaxtrain.load("runs/demo", MyModule())
    """
    refuse_in_use(module, "jaxtrain.load")
    saved = of_seed(read_checkpoint(path), seed)
    require_module(module)
    build(module, 0)
    create_long_term_states(module, long_term_of_model(saved))
    load_into(module, saved)
    return module


def create_long_term_states(module: Module, names: Iterable[str]) -> None:
    """Run the model's ``init_state`` if it may be what creates the long-term states of these names."""
    if set(names) - flat_values(long_term_states(module.model)).keys():
        with brainstate.environ.context(**module.environ, fit=True), seeded(0):
            create_hidden(module.model, 1, False)


def of_seed(saved: Saved, seed: int | None) -> Saved:
    """One seed of a checkpoint that holds several. Raises ValueError if it does not contain the seed."""
    if seed is None:
        return saved
    seeds = saved.meta.get("seeds") or []
    if seed not in seeds:
        content = seeds or "one seed; leave seed out"
        raise ValueError(f"seed={seed}: the checkpoint of step {saved.step} holds {content}")
    index = seeds.index(seed)
    own = {name: leaf for name, leaf in saved.train.items() if not name.startswith(PREFIX)}
    params, train = ({n: leaf[index] for n, leaf in flat.items()} for flat in (saved.params, own))
    return replace(saved, params=params, train=train, meta={**saved.meta, "seeds": None})


def load_into(module: Module, saved: Saved) -> None:
    """Load parameters and long-term states into a module; change nothing if any of them belongs to another model."""
    refuse_other_parameters(module, saved)
    values = {f"{MODEL_PREFIX}{name}": leaf for name, leaf in long_term_of_model(saved).items()}
    states = _long_term_states(module)
    _refuse(saved, values, states)
    assign(parameters(module.model), saved.params)
    assign(states, values)


def long_term_of_model(saved: Saved) -> dict[str, Any]:
    """The model's long-term states in a checkpoint, by their names in the model."""
    own = {name: leaf for name, leaf in saved.train.items() if name.startswith(MODEL_PREFIX)}
    return {name.removeprefix(MODEL_PREFIX): leaf for name, leaf in own.items()}


def refuse_other_parameters(module: Module, saved: Saved) -> None:
    """Raise ValueError if a checkpoint's parameters have other names, shapes or dtypes, or belong to several seeds."""
    if seeds := saved.meta.get("seeds"):
        raise ValueError(
            f"the checkpoint of step {saved.step} holds the seeds {seeds}: load one with "
            f"jaxtrain.load(path, module, seed={seeds[0]}), and use that module without a checkpoint"
        )
    _refuse(saved, saved.params, parameters(module.model))


def _refuse(saved: Saved, flat: dict[str, Any], states: Any) -> None:
    recorded = {"step": saved.step, "model": signature(flat)}
    refuse_differences(recorded, {"model": signature(flat_values(states))}, ("model",), "pass the module of that run")


def _long_term_states(module: Module) -> dict[str, State]:
    return {f"{MODEL_PREFIX}{name}": state for name, state in long_term_states(module.model).items()}


def flat_values(states: Any) -> dict[str, Any]:
    """A copy of the values of States, by the names of checkpoints."""
    return flatten({name: with_strong_types(state.value) for name, state in states.items()})


def assign(states: Any, flat: dict[str, Any]) -> None:
    """Give States the values in ``flat``, which has the names of ``flat_values``."""
    template = {name: with_strong_types(state.value) for name, state in states.items()}
    for name, value in unflatten(template, flat).items():
        states[name].value = value


def build(module: Module, seed: int) -> None:
    """Build a module's model under a seed, unless it already has one."""
    if module.model is None:
        named = environ_explained(f"the model of {type(module).__name__}")
        with brainstate.environ.context(**module.environ, fit=True), seeded(seed), named:
            module.model = module.build()
    if not isinstance(module.model, brainstate.nn.Module):
        raise TypeError(
            f"the model of {type(module).__name__} is a {type(module.model).__name__}; expected a brainstate.nn.Module"
        )


def build_each(module: Module, seeds: Sequence[int], *, several: bool, resumed: bool) -> list[Module]:
    """A module with a model for each seed: ``module`` itself for the first, shallow copies of it for the others.

    A model that the module already has is kept. With one seed, training starts from it. When a run of several seeds is
    resumed, it serves all seeds, because their values come from the checkpoint.

    Args:
        module: The module.
        seeds: The seeds to build under.
        several: Whether the run trains several seeds.
        resumed: Whether the values will come from a checkpoint.

    Raises:
        ValueError: The module has a model, and a new run of several seeds would start every seed from its values.
    """
    if module.model is not None:
        if several and not resumed:
            raise ValueError(
                f"Fit(seeds=...): {type(module).__name__} has a model already, whose values every seed would start "
                "from; pass a new module"
            )
        each = [module] * len(seeds)
    else:
        each = [module, *(_shallow_copy(module) for _ in seeds[1:])]
    for one, seed in zip(each, seeds, strict=True):
        build(one, seed)
    return each


def _shallow_copy(module: Module) -> Module:
    """Unlike ``copy.copy``, it does not depend on methods that a user may have written for pickling."""
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    return twin


def require_module(module: Any) -> None:
    if not isinstance(module, Module):
        hint = f"; did you mean {module.__name__}()?" if isinstance(module, type) else ""
        raise TypeError(f"expected a jaxtrain.Module object, got {module!r}{hint}")
