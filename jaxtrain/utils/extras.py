"""Packages that only some users need: the extras of jaxtrain."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def data_in(module: str, *path: str, package: str, extra: str, instead: str) -> Path:
    """Return the path of data in an installed package, which is not imported. ``instead``: what else the user can do.

    Raises:
        ConfigError: The package is not installed.
    """
    if (spec := find_spec(module)) is None or spec.origin is None:
        raise ConfigError(f'the package {package} is not installed: pip install "jaxtrain[{extra}]", or {instead}')
    return Path(spec.origin).parent.joinpath(*path)


def needed(name: str, extra: str) -> Any:
    """Import a package that is an extra of jaxtrain."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(f"this needs the package {extra}: pip install 'jaxtrain[{extra}]'") from None
