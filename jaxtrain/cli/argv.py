"""Checks the values on a command line against the types of their options. Does not import JAX.

tyro reports a bad value in a box of several lines. This check comes first and raises a ConfigError of one line.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from ..errors import ConfigError
from ..utils.coerce import coerce, is_plain, spell


def literal(word: str) -> Any:
    """Return the number or boolean that a word spells, or else the word."""
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def checked(argv: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Check the values in `argv` and return the words as tyro expects them: it spells `none` as `None`.

    Unknown flags and types that `coerce` does not support are left to tyro. With `--help` nothing is checked.

    Args:
        argv: The words of the command line.
        options: Types by option name, such as `max_steps` or `strategy.window`.

    Raises:
        ConfigError: An option has no value, or a value does not fit its type.
    """
    if "--help" in argv or "-h" in argv:
        return list(argv)
    rest, words = list(argv), []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        option = options.get(flag[2:].replace("-", "_"), bool) if flag.startswith("--") else bool
        members = get_args(option) if get_origin(option) in (Union, types.UnionType) else (option,)
        if option is bool or not is_plain(option) or any(get_origin(member) is dict for member in members):
            words.append(word)
            continue
        several = any(get_origin(member) in (list, tuple) for member in members)
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and (several or not values):
            values.append(rest.pop(0))
        if not values and not several:
            raise ConfigError(f"{flag}: no value; expected {spell(option)}")
        if _read(values, option, flag, several) is None:
            values = ["None"]
        words += [f"{flag}={values[0]}"] if equals else [flag, *values]
    return words


def _read(words: list[str], option: Any, flag: str, several: bool) -> Any:
    """The value of an option: text, a number or a boolean, or a list of these. Raises ConfigError if none fits."""
    readings: list[Any] = [words, [literal(word) for word in words]] if several else []
    readings += [words[0], literal(words[0])] if len(words) == 1 else []
    for reading in readings[:-1]:
        try:
            return coerce(reading, option, flag)
        except ConfigError:
            continue
    return coerce(readings[-1], option, flag)
