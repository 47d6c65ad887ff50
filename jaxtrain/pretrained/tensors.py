"""Reads and writes the values of a model as a safetensors file, under the names of checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import saiunit

from ..checkpoint.load import flat_values, long_term_of_model, of_seed, require_module
from ..checkpoint.run_directory import read_checkpoint
from ..core.module import Module
from ..core.ownership import alone, refuse_in_use
from ..core.state import State, leaf_names, long_term_states, parameters
from ..utils.extras import needed
from ..utils.files import write_atomic

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Arrays:
    """Values by name, without the prefix that checkpoints use. ``units`` is None if the source records no units."""

    values: dict[str, np.ndarray]
    units: dict[str, str] | None = None


@alone("jaxtrain.pretrained.save_safetensors")
def save_safetensors(module: Module, path: str | Path) -> Path:
    """Write a module's parameters and long-term states as a safetensors file.

    Names and dtypes are those of a checkpoint. The file holds the numbers of a quantity, and its metadata holds the
    units, as JSON under ``"units"``.

    Args:
        module: A module with a model.
        path: The file, which ends in ``.safetensors``. An existing file is replaced.

    Returns:
        The path.

    Raises:
        ValueError: The module has no model, or the path ends differently.
        ModuleNotFoundError: The package safetensors is not installed.
        RuntimeError: A run in progress trains this module.

    >>> path = jaxtrain.pretrained.save_safetensors(module, "trained.safetensors")
    """
    numpy_format, path = needed("safetensors.numpy", "safetensors"), Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: expected a name that ends in {SUFFIX}, by which jaxtrain.pretrained.load knows it")
    states = states_of_model(module, "save_safetensors")
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flat_values(states).items()}
    metadata = {"format": "jaxtrain", "units": json.dumps(units_of(states))}
    write_atomic(path, numpy_format.save(arrays, metadata=metadata))
    return path


def read_arrays(path: str | Path, seed: int | None) -> Arrays:
    """Read a safetensors file, a checkpoint, or the newest checkpoint of a run directory.

    Raises:
        ValueError: The file is damaged, or the checkpoint holds several seeds and ``seed`` is not one of them.
        FileNotFoundError: There is no such file or checkpoint.
    """
    if Path(path).suffix == SUFFIX:
        if seed is not None:
            raise ValueError(f"seed={seed}: a safetensors file holds the values of one seed; leave seed out")
        return _read_safetensors(Path(path))
    saved = of_seed(read_checkpoint(path), seed)
    if seeds := saved.meta.get("seeds"):
        raise ValueError(
            f"the checkpoint of step {saved.step} holds the seeds {seeds}: choose one with seed={seeds[0]}"
        )
    return Arrays({**saved.params, **long_term_of_model(saved)})


def _read_safetensors(path: Path) -> Arrays:
    library = needed("safetensors", "safetensors")
    try:
        with library.safe_open(path, "numpy") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            units = (file.metadata() or {}).get("units")
            return Arrays(values, None if units is None else json.loads(units))
    except (library.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}): copy or download it again") from error


def states_of_model(module: Module, what: str) -> dict[str, State]:
    """The parameters and long-term states of a module that nothing trains, by name."""
    require_module(module)
    refuse_in_use(module, f"jaxtrain.pretrained.{what}")
    if module.model is None:
        raise ValueError(
            f"{type(module).__name__} has no model yet: train it, or load it with jaxtrain.load(run_dir, module)"
        )
    return {**parameters(module.model), **long_term_states(module.model)}


def units_of(states: dict[str, Any]) -> dict[str, str]:
    """The unit of each leaf that has one, by the names of ``flatten``."""
    is_quantity = lambda leaf: isinstance(leaf, saiunit.Quantity)  # noqa: E731
    values = {name: state.value for name, state in states.items()}
    leaves = jax.tree.leaves(values, is_leaf=is_quantity)
    units = [str(leaf.unit) if is_quantity(leaf) else "" for leaf in leaves]
    return {name: unit for name, unit in zip(leaf_names(values), units, strict=True) if unit}
