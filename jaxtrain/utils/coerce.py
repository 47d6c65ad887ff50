"""Checks values from a user or a file against a dataclass; every mistake gives a one-line error.

This module does not import JAX.
"""

import difflib
import json
import numbers
import sys
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, SupportsInt, TypeGuard, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """Text such as `"expected a, b or c; did you mean 'b'?"`. The question appears only if an option is similar."""
    names = [str(option) for option in options]
    listed = ", ".join(names[:-1]) + (" or " if names[1:] else "") + names[-1] if names else "nothing"
    # Wrong case, and dashes for underscores, are the most common typos.
    plain = {name.lower().replace("-", "_"): name for name in names}
    given = str(word).lower().replace("-", "_")
    close = difflib.get_close_matches(given, plain, n=1) or [name for name in plain if given and name.startswith(given)]
    return f"expected {listed}" + (f"; did you mean {plain[close[0]]!r}?" if close else "")


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Convert `value` to the type `annotation`.

    Only lossless conversions are made: an int may become a float, but text and booleans never become numbers. Numbers
    of other libraries become Python numbers, so that JSON can hold them. `"None"` means None if None is allowed,
    because TOML has no null and the command line uses this spelling.

    Args:
        value: The value.
        annotation: A type annotation.
        where: Where the value comes from; the message begins with it.

    Raises:
        ConfigError: The value does not fit the type.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        return coerce(value, args[0], where)
    if origin in (Union, types.UnionType):
        if type(None) in args and (value in (None, "None") or (value == "none" and not takes_none(annotation))):
            return None
        for member in args:
            try:
                return coerce(value, member, where)
            except ConfigError:
                continue
    elif origin is Literal:
        given = int(value) if _is_whole(value) else value
        for choice in args:
            if type(choice) is type(given) and choice == given:
                return choice
        raise ConfigError(f"{where} = {value!r}: {did_you_mean(value, args)}")
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        inner = args if _is_fixed(annotation) else (args[:1] or (Any,)) * len(value)
        if len(inner) == len(value):
            return origin(coerce(value[i], inner[i], f"{where}[{i}]") for i in range(len(value)))
    elif (origin or annotation) is dict and isinstance(value, Mapping):
        inner = args[1] if args else Any
        return {key: coerce(item, inner, f"{where}.{key}") for key, item in value.items()}
    elif annotation is Path and isinstance(value, str | Path):
        return Path(value)
    elif annotation is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    elif annotation is int and _is_whole(value):
        return int(value)
    elif isinstance(annotation, type) and type(value) is annotation:
        return value
    raise ConfigError(f"{where} = {value!r} is {_kind(value)}; expected {spell(annotation)}")


def _is_whole(value: Any) -> TypeGuard[SupportsInt]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_fixed(annotation: Any) -> bool:
    """Return True if a tuple's annotation has one type per position: `tuple[int, float]`, not `tuple[int, ...]`."""
    args = get_args(annotation)
    return get_origin(annotation) is tuple and bool(args) and args[-1] is not ...


def field_types(cls: type) -> dict[str, Any]:
    """Types of the dataclass fields that `__init__` takes, by name, omitting those whose annotation cannot be resolved.

    An annotation cannot be resolved if it is imported only for type checkers, or defined within a function.
    """
    hints = {}
    for field in fields(cls):  # pyright: ignore[reportArgumentType]
        if not field.init:
            continue
        # A subclass shares the Field object of the class that defined it; that class's module resolves the annotation.
        owner = next(base for base in reversed(cls.__mro__) if is_dataclass(base) and field in fields(base))
        alone = types.SimpleNamespace(__annotations__={field.name: field.type})
        module = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        try:
            # The module's names take precedence over the class's own, as get_type_hints does for a class.
            hints.update(get_type_hints(alone, dict(vars(owner)), module))
        except Exception:  # an annotation is any expression and may raise anything
            continue
    return hints


def is_plain(annotation: Any) -> bool:
    """Return True if `coerce` supports the type: types that a file can hold, and combinations of them."""
    args = [arg for arg in get_args(annotation) if arg is not ...]
    if get_origin(annotation) is Literal or annotation in (bool, int, float, str, type(None), Path):
        return True
    return get_origin(annotation) in (Annotated, Union, types.UnionType, list, tuple, dict) and all(
        map(is_plain, args[:1] if get_origin(annotation) is Annotated else args)
    )


def takes_none(annotation: Any) -> bool:
    """Return True if the word "none" is a value of its own rather than a spelling of None."""
    members = [annotation, *get_args(annotation)]
    return any(get_origin(member) is Literal and "none" in get_args(member) for member in members)


def spell(annotation: Any) -> str:
    """The type in readable form: `int`, `float or None`, `'auto' or int`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return spell(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(spell(member) for member in args)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in args)
    if _is_fixed(annotation):
        return f"({', '.join(map(spell, args))})"
    if origin in (list, tuple) and args:
        return f"a list of {spell(args[0])}"
    if annotation is type(None):
        return "None"
    return {str: "text", bool: "true or false"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", type(None): "null", dict: "a table", list: "a list"}
    return names.get(type(value), type(value).__name__)


def overlay[T](config: T, values: Mapping[str, Any], where: str) -> T:
    """Return a copy of the dataclass `config`, updated with `values`.

    Args:
        config: A dataclass object; its dataclass fields are updated recursively.
        values: New values by field name; dashes in names count as underscores.
        where: Where the values come from, for messages.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type.
    """
    hints = get_type_hints(type(config), include_extras=True)
    names = [field.name for field in fields(config) if field.init]  # pyright: ignore[reportArgumentType]
    changes = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in names:
            raise ConfigError(f"{where}: unknown key {given!r}; {did_you_mean(given, names)}")
        if is_dataclass(current := getattr(config, name)) and isinstance(value, Mapping):
            changes[name] = overlay(current, value, f"{where}: {name}")
        else:
            changes[name] = coerce(value, hints[name], f"{where}: {name}")
    return replace(config, **changes)  # pyright: ignore[reportArgumentType]


def read_config(path: Path) -> dict[str, Any]:
    """Read the mapping in a JSON or TOML file.

    For a run directory or its config.json, the recipe's part is returned.

    Raises:
        ConfigError: The file does not exist, cannot be parsed, or holds no configuration.
    """
    path = path.expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.suffix not in (".json", ".toml"):
        raise ConfigError(f"{path}: expected a .json or .toml file")
    try:
        text = path.read_text()
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # errors of both parsers, and bytes that are not text
        raise ConfigError(f"{path}: is not valid {path.suffix[1:].upper()}: {error}") from None
    if isinstance(value, dict) and "config" in value:
        value = value["config"]
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: contains no configuration of a recipe; expected a table of option = value")
    return value


def as_count(value: Any, name: str, required: bool = False) -> Any:
    """Return the argument ``name`` of ``Fit``.

    Raises ValueError unless it is an int from 1 to 2**31 - 1, or None if it is not ``required``.
    """
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        least = "below 2**31" if isinstance(value, int) and value > 1 else "1 or more"
        raise ValueError(f"Fit({name}={value!r}): expected a whole number, {least}")
    return value
