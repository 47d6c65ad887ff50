"""Turns the fields of a dataclass into options: types, defaults, and help from the docstrings under them."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any

from .coerce import field_types


@dataclass(frozen=True)
class Option:
    """A field as the command line shows it."""

    type: Any
    default: Any
    help: str


def options(cls: type) -> dict[str, Option]:
    """The fields that ``__init__`` takes and whose annotations can be resolved, by name.

    The help of a field is the first paragraph of the docstring under it, in this class or in the one that it overrides.
    """
    types, docs = field_types(cls), _docs(cls)
    known = [field for field in fields(cls) if field.name in types]  # pyright: ignore[reportArgumentType]
    options = {}
    for field in known:
        default = field.default if field.default_factory is MISSING else field.default_factory()
        options[field.name] = Option(types[field.name], default, docs.get(field.name, ""))
    return options


def summary(cls: type) -> str:
    """The first line of a class's docstring, without its full stop."""
    return (cls.__doc__ or cls.__name__).strip().splitlines()[0].removesuffix(".")


def _docs(cls: type) -> dict[str, str]:
    """First paragraphs of the docstrings under fields, by name; empty if the source is not available."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        try:
            tree: Any = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        if not (tree.body and isinstance(tree.body[0], ast.ClassDef)):  # the file has changed since it was imported
            continue
        for statement, below in pairwise(tree.body[0].body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return docs
