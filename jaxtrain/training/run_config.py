"""What config.json holds of a run."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from .._version import __version__
from ..utils.files import jsonable

PACKAGES = ("jax", "brainstate", "braintools", "braintrace", "numpy", "orbax-checkpoint")


def recorded(
    config: Any,
    settings: dict[str, Any],
    described: dict[str, Any],
    auto: dict[str, Any],
    module: str,
    initial: str,
    parent: dict[str, Any] | None,
    processes: int,
) -> dict[str, Any]:
    """What config.json holds of a run."""
    return {
        "schema": 1,
        "config": jsonable(config),
        "fit": settings,
        "strategy": described["strategy"],
        "module": module,
        "initial": initial,
        "data": described["data"],
        "auto": auto,
        "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "parent": parent,
        "processes": processes,
    }


def versions() -> dict[str, str]:
    """The versions of Python, jaxtrain and the packages that a run depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "jaxtrain": __version__, **found}
