"""Lazy exports of a package, as listed in its stub, __init__.pyi."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Create ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose stub has lines ``from .a import b as b``.

    Importing the package then imports none of its modules, and therefore neither JAX nor numpy (PEP 562).

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of its ``__init__.py``.
    """
    homes: dict[str, tuple[int, str | None, str]] = {}
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            homes.update({alias.asname or alias.name: (node.level, node.module, alias.name) for alias in node.names})

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        level, module, own = homes[name]
        if module is None:
            return import_module("." * level + own, package)
        return getattr(import_module("." * level + module, package), own)

    return get, lambda: sorted(homes), [*homes]
