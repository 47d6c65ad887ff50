"""The contents of config.json, which describe a run."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from .._version import __version__
from ..engine.program import Program
from ..utils.files import jsonable
from .settings import FitSettings

PACKAGES = ("jax", "brainstate", "braintools", "braintrace", "numpy", "orbax-checkpoint")


def run_config(
    settings: FitSettings,
    program: Program,
    described: dict[str, Any],
    initial: str,
    config: Any,
    parent: dict[str, Any] | None,
) -> dict[str, Any]:
    """The contents of config.json, without the number of ``steps``.

    Args:
        settings: The settings of the run.
        program: The programs of the run.
        described: Descriptions of the strategy and of the data.
        initial: Origin of the initial values, "seed" or "values".
        config: What the user stores with the run.
        parent: The run that this run is a fork of, or None.
    """
    return {
        "schema": 1,
        "config": jsonable(config),
        "fit": settings.as_json(),
        "strategy": described["strategy"],
        "module": type(program.module).__name__,
        "initial": initial,
        "data": described["data"],
        "auto": program.auto,
        "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "parent": parent,
        "processes": program.devices.processes,
    }


def versions() -> dict[str, str]:
    """Versions of Python, jaxtrain and the packages that it depends on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "jaxtrain": __version__, **packages}
