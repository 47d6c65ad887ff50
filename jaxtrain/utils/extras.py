"""Packages that only some users need: the extras of jaxtrain."""

from importlib import import_module
from typing import Any


def needed(name: str, extra: str) -> Any:
    """Import a package that is an extra of jaxtrain."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(f"this needs the package {extra}: pip install 'jaxtrain[{extra}]'") from None
