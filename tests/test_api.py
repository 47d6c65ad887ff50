"""The public API: names and signatures, compared with tests/api.txt.

A change of the API is a change of that file, which a reviewer sees. ``python tests/test_api.py`` writes it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LISTING = Path(__file__).with_name("api.txt")
NAMESPACES = ("", "callbacks", "cli", "datasets", "distributed", "errors", "loggers", "metrics", "nn", "period",
              "pretrained", "projections", "strategies")  # fmt: skip

PARTS = ("ReadsOutputs",)
"""Base classes that hold some of the methods of a class."""


def signature(value: Any) -> str:
    """The signature as written; the defaults of sentinels and functions without their addresses."""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):  # a class whose constructor takes whatever its base does
        return "(...)"
    return text.replace("jaxtrain.", "")


def members(name: str, cls: type) -> Iterator[str]:
    """The public methods and properties that a class itself defines, or a part of it that is in a file of its own."""
    parts = [base for base in cls.__mro__ if base is cls or base.__name__ in PARTS]
    for own, value in sorted({own: value for part in reversed(parts) for own, value in vars(part).items()}.items()):
        if own.startswith("_"):
            continue
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(value, property):
            yield f"{name}.{own}"
        elif inspect.isfunction(value):
            yield f"{name}.{own}{signature(value)}"


def listing() -> list[str]:
    lines: list[str] = []
    seen: set[int] = set()
    for namespace in NAMESPACES:
        module: Any = importlib.import_module(".".join(filter(None, ("jaxtrain", namespace))))
        for own in sorted(getattr(module, "__all__", ())):
            value, name = getattr(module, own), ".".join(filter(None, (module.__name__, own)))
            if inspect.ismodule(value) or id(value) in seen:
                continue
            seen.add(id(value))
            callable_ = inspect.isclass(value) or inspect.isfunction(value)
            lines.append(name + (signature(value) if callable_ else ""))
            if inspect.isclass(value):
                lines += members(name, value)
    return lines


def test_the_top_level_stays_small():
    import jaxtrain

    names = [name for name in jaxtrain.__all__ if not inspect.ismodule(getattr(jaxtrain, name))]
    assert len(names) <= 16, names


def test_the_api_is_as_listed():
    assert listing() == LISTING.read_text().splitlines(), "if intended: python tests/test_api.py"


if __name__ == "__main__":
    LISTING.write_text("\n".join(listing()) + "\n")
