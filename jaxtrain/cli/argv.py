"""The words of a command line, checked against the types of its options before they are parsed. No JAX in here."""

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..errors import ConfigError
from ..utils.coerce import did_you_mean

KINDS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("text", str),
    Path: ("a path", Path),
}
"""What is asked for, and what reads it; raises ValueError."""


def readable(words: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The words as tyro takes them: `none` as it spells it, None, where an option may be none.

    `options`: types by name, `max_steps` or `strategy.window`; those that take no word are left to tyro, as is how many
    words a list or a pair has. Raises ConfigError for an option without its value, or with one that its type cannot
    hold.
    """
    if "--help" in words or "-h" in words:
        return list(words)
    rest, made = list(words), []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        option = options.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        read = _readings(option)
        if read is None:
            made.append(word)
            continue
        several, values = _several(option), [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and (several or not values):
            values.append(rest.pop(0))
        if not values and not several:
            raise ConfigError(f"{flag}: no value; {_expected('', read)}")
        if values == ["none"] and "None" in read and "none" not in read:
            values = ["None"]
        for value in values:
            if not any(_reads(one, value) for one in read.values()):
                raise ConfigError(f"{flag} {value}: {_expected(value, read)}")
        made += [f"{flag}={values[0]}"] if equals else [flag, *values]
    return made


def _readings(annotation: Any) -> dict[str, Callable[[str], Any]] | None:
    """What a word may be for a type, and what reads it; raises ValueError or KeyError. None: it takes no word."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _readings(args[0])
    if origin in (Union, types.UnionType, list, tuple):
        members = [Literal[True, False] if member is bool else member for member in args if member is not ...]
        each = [_readings(member) for member in members]
        return None if None in each else {name: one for read in each if read for name, one in read.items()}
    if origin is Literal or annotation is type(None):
        return {str(choice): {str(choice): choice}.__getitem__ for choice in args or (None,)}
    return dict([KINDS[annotation]]) if annotation in KINDS else None


def _several(annotation: Any) -> bool:
    """Whether a type takes several words."""
    origin, args = get_origin(annotation), get_args(annotation)
    return origin in (list, tuple) or (origin in (Annotated, Union, types.UnionType) and any(map(_several, args)))


def _reads(read: Callable[[str], Any], value: str) -> bool:
    try:
        read(value)
    except (ValueError, KeyError):
        return False
    return True


def _expected(value: str, read: Mapping[str, Any]) -> str:
    names = ["none" if name == "None" and "none" not in read else name for name in read]
    choices = [name for name in names if name not in dict(KINDS.values())]
    question = did_you_mean(value, choices).partition("; ")[2]
    return did_you_mean("", names) + (f"; {question}" if question else "")
