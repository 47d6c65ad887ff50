"""Loads part of a checkpoint, or of a safetensors file, into another module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..checkpoint.load import assign, build, create_long_term_states, flat_values, require_module
from ..core.module import Module
from ..core.ownership import alone, refuse_in_use
from ..core.state import long_term_states, parameters, signature
from ..utils.logging import log
from .tensors import Arrays, read_arrays, units_of

type Only = str | Iterable[str] | Callable[[str], bool]
"""Names, prefixes or globs, or a function of a name."""

SHOWN = 4
"""Names in a line of the report; a network may have hundreds."""


@dataclass(frozen=True)
class Loaded:
    """What ``load`` did with each value of the source and of the module.

    Attributes:
        module: The module.
        loaded: Names in the source by names in the module.
        skipped: Why a value of the source was not loaded, by its name there.
        as_built: Names in the module of what keeps its value.

    >>> Loaded(module, {"readout.weight": "head"}, {}, ("rnn.W_z",)).as_built
    ('rnn.W_z',)
    """

    module: Module
    loaded: dict[str, str]
    skipped: dict[str, str]
    as_built: tuple[str, ...]

    def __str__(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        skipped = [f"skipped ({reason}) {_some(names)}" for reason, names in by_reason.items()]
        return "\n".join([f"loaded {_some([*self.loaded])}", *skipped, f"as built {_some([*self.as_built])}"])


@alone("jaxtrain.pretrained.load")
def load(path: str | Path, module: Module, *, only: Only | None = None, rename: Mapping[str, str] | None = None,
         seed: int | None = None) -> Loaded:  # fmt: skip
    """Load what fits of a checkpoint's parameters and long-term states into another module.

    The rest of the module keeps its values. If the module has no model, it is built under seed 0 first. Values of
    another floating dtype are converted to the module's. ``jaxtrain.load`` restores a module of the same model, and
    refuses any difference.

    Args:
        path: A run directory, whose newest readable checkpoint is read, ``<run>/checkpoints/<step>``, or a file
            ``*.safetensors``.
        module: The module to load into.
        only: What to load, by names of the module: a name, a prefix (``"trunk"`` stands for ``trunk.*``), a glob,
            several of these, or a function of a name. None: everything.
        rename: Prefixes of names in the source and their replacements in the module, ``{"old.trunk": "trunk"}``. The
            longest prefix that fits is replaced. ``""`` is the prefix of all names.
        seed: The seed to load, if the run trained several seeds.

    Returns:
        What was loaded, skipped and left as built. It is logged, too.

    Raises:
        ValueError: Nothing was loaded, an ``only`` or ``rename`` applies to no name, or two values have the same new
            name.
        FileNotFoundError: There is no such file or checkpoint.
        ModuleNotFoundError: The file needs the package safetensors, which is not installed.
        RuntimeError: A run in progress trains this module.

    Example::

        jaxtrain.pretrained.save_safetensors(module, "trained.safetensors")
        loaded = jaxtrain.pretrained.load("trained.safetensors", MyModule(), only=lambda name: name.startswith("rnn"))
        print(loaded.as_built)  # the readout keeps its new values
    """
    refuse_in_use(module, "jaxtrain.pretrained.load")
    require_module(module)
    source = read_arrays(path, seed)
    build(module, 0)
    new_names = _renamed(source.values, rename or {})
    create_long_term_states(module, set(new_names.values()) - flat_values(parameters(module.model)).keys())
    states = {**parameters(module.model), **long_term_states(module.model)}
    own = flat_values(states)
    selected = _selected(own, only)
    units = units_of(states)
    skipped: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value in source.values.items():
        target = new_names[name]
        if target not in own:
            skipped[name] = "missing in the module"
        elif target not in selected:
            skipped[name] = "not selected"
        elif difference := _difference(value, own[target], source, name, units.get(target, "")):
            skipped[name] = difference
        else:
            values[target] = value.astype(own[target].dtype)
    loaded = {new_names[name]: name for name in source.values if name not in skipped}
    report = Loaded(module, loaded, skipped, tuple(name for name in own if name not in loaded))
    if not loaded:
        raise ValueError(
            f"nothing of {path} was loaded into {type(module).__name__}, whose names are {_some([*own])}:\n{report}\n"
            "use rename={'prefix there': 'prefix here'}, or another only"
        )
    assign(states, {**own, **values})
    log.info("%s\n%s", path, report)
    return report


def _difference(value: np.ndarray, own: Any, source: Arrays, name: str, unit: str) -> str | None:
    """Why a value cannot take the place of the module's own, or None."""
    if value.shape != own.shape:
        return f"shape {list(value.shape)}, in the module {list(own.shape)}"
    both_floating = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (value.dtype, own.dtype))
    if value.dtype != own.dtype and not both_floating:
        there, here = signature({"there": value, "here": own}).values()
        return f"dtype {there}, in the module {here}"
    if source.units is not None and source.units.get(name, "") != unit:
        return f"unit {source.units.get(name) or 'none'}, in the module {unit or 'none'}"
    return None


def _renamed(names: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """The name in the module of each name in the source."""
    result: dict[str, str] = {}
    origin: dict[str, str] = {}
    used = set()
    for name in names:
        fitting = [prefix for prefix in rename if _begins(name, prefix)]
        if fitting:
            prefix = max(fitting, key=len)
            used.add(prefix)
            rest = name[len(prefix) :].removeprefix(".")
            result[name] = ".".join(filter(None, (rename[prefix], rest)))
        else:
            result[name] = name
        if other := origin.get(result[name]):
            raise ValueError(f"rename: {other!r} and {name!r} would both be {result[name]!r} in the module")
        origin[result[name]] = name
    if unused := [prefix for prefix in rename if prefix not in used]:
        raise ValueError(f"rename: no name in the source begins with {unused}; its names are {_some(list(result))}")
    return result


def _selected(names: Iterable[str], only: Only | None) -> set[str]:
    if only is None:
        return set(names)
    if callable(only):
        return {name for name in names if only(name)}
    chosen: set[str] = set()
    for pattern in [only] if isinstance(only, str) else only:
        fitting = {name for name in names if _begins(name, pattern) or fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"only={pattern!r} selects nothing; the module's names are {_some(list(names))}")
        chosen |= fitting
    return chosen


def _begins(name: str, prefix: str) -> bool:
    return prefix in ("", name) or name.startswith(f"{prefix}.")


def _some(names: list[str]) -> str:
    """The number of names, and the first of them."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}" + (": " + ", ".join(names[:SHOWN]) + more if names else "")
