"""What config.json holds of a run."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from .._version import __version__
from ..utils.files import jsonable
from .workload import Workload

PACKAGES = ("jax", "brainstate", "braintools", "braintrace", "numpy", "orbax-checkpoint")


def recorded(
    workload: Workload, described: dict[str, Any], initial: str, config: Any, parent: dict[str, Any] | None
) -> dict[str, Any]:
    """What config.json holds of a run."""
    program = workload.program
    return {
        "schema": 1,
        "config": jsonable(config),
        "fit": workload.settings.as_json(),
        "strategy": described["strategy"],
        "module": type(program.module).__name__,
        "initial": initial,
        "data": described["data"],
        "auto": program.auto,
        "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "parent": parent,
        "processes": workload.processes,
    }


def versions() -> dict[str, str]:
    """The versions of Python, jaxtrain and the packages that a run depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "jaxtrain": __version__, **found}
