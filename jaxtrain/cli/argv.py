"""Reads option values from a command line according to their types. Does not import JAX.

argparse prints its usage above an error, and does not know types such as `"auto" | int`. Here a mistake raises a
ConfigError of one line.
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


def read_options(argv: Sequence[str], options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read `--name value`, `--name=value`, and, for booleans, `--name` and `--no-name`.

    Args:
        argv: The words of the command line.
        options: Types by option name, such as `max_steps` or `strategy.window`.

    Returns:
        The values by option name, and the words that do not belong to an option.

    Raises:
        ConfigError: An option has no value, or a value does not fit its type.
    """
    rest, values, unknown = list(argv), {}, []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        off = name.removeprefix("no_")
        if flag.startswith("--no") and off != name and options.get(off) is bool and not equals:
            values[off] = False
        elif not flag.startswith("--") or name not in options:
            unknown.append(word)
        elif options[name] is bool and not equals:
            values[name] = True
        else:
            members = _members(options[name])
            several = any(get_origin(member) in (list, tuple) for member in members)
            words = [value] if equals else []
            while not equals and rest and not rest[0].startswith("--") and (several or not words):
                words.append(rest.pop(0))
            values[name] = _read(words, options[name], flag, several)
    return values, unknown


def _members(option: Any) -> tuple[Any, ...]:
    return get_args(option) if get_origin(option) in (Union, types.UnionType) else (option,)


def _read(words: list[str], option: Any, flag: str, several: bool) -> Any:
    """The value of an option: text, a number or a boolean, or a list of these."""
    if not is_plain(option):
        raise ConfigError(f"{flag}: a value of type {spell(option)} cannot be given as a flag; set it in the recipe")
    if not (words or several):
        raise ConfigError(f"{flag}: no value; expected {spell(option)}")
    readings: list[Any] = [words, [literal(word) for word in words]] if several else []
    readings += [words[0], literal(words[0])] if len(words) == 1 else []
    if words not in (["none"], ["None"]):  # coerce knows whether these are text
        for member in _members(option):  # `int | str` reads 5 as a number, `str | int` as text
            for reading in readings:
                try:
                    return coerce(reading, member, flag)
                except ConfigError:
                    continue
    return coerce(readings[-1], option, flag)
