"""The text of a recipe's ``--help``. Does not import JAX."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from ..errors import ConfigError
from ..strategies import registry
from ..utils.coerce import spell
from ..utils.fields import Option, options, summary
from .config import Options
from .summary import flat, short

if TYPE_CHECKING:
    from ..strategies import Strategy

MOST_USED = """
    strategy preset max_steps batch_size lr cell hidden seed seeds devices run_dir resume config dry_run
""".split()
"""Options that come first, in this order, if a recipe has them."""
LOGS = "logging and checkpoints"
TITLES = {"NetworkOptions": "network", "TrainingOptions": "training", "Options": LOGS}
"""Groups of the other options, by the class that introduced them. Those of a recipe's own follow the first group."""
WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", type(None): "none", bool: "true|false"}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in two columns. Paragraphs are wrapped, except those of commands and other lines with spaces in front."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "max_help_position": 30})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            textwrap.indent(text, indent)
            if any(line.startswith((" ", "python ", "jaxtrain ")) for line in text.splitlines())
            else textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
            for text in text.split("\n\n")
        ]
        lines = "\n\n".join(paragraphs).splitlines()
        # A comment that does not fit beside its command goes below it.
        return "\n".join(re.sub(r" {2,}#", "\n  #", line) if len(line) > width else line for line in lines)


class Parser(argparse.ArgumentParser):
    """A parser of argparse for the help texts of recipes and commands. A mistake raises a ConfigError of one line."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, formatter_class=_Formatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def recipe_help(
    config: Options, strategy: type[Strategy], presets: Mapping[str, Any], flags: Mapping[str, Option], prog: str
) -> str:
    """All options but the fields of strategies, the most used ones first.

    Args:
        config: The values that are shown as defaults.
        strategy: The strategy of this command line.
        presets: Option values by preset name.
        flags: Options that every recipe has but no Config.
        prog: The path of the recipe.
    """
    Config, known = type(config), dict(flags)
    for name, option in options(Config).items():
        known[name] = dataclasses.replace(option, default=getattr(config, name))
    del known["strategy_fields"]
    known["strategy"] = Option(Literal["NAME"], strategy.name, f"{known['strategy'].help}; one of the list below")
    own, rest = "this recipe", [name for name in known if name not in MOST_USED]
    groups = {title: [name for name in rest if _title(Config, name, own) == title] for title in (own, *TITLES.values())}
    groups["several processes"] = [name for name in flags if name in rest]

    parser = Parser(
        prog, usage=_plain(f"python {prog} [OPTIONS]"), description=_plain(_about(Config, prog)), add_help=False
    )
    _add(parser, "most used", {name: known[name] for name in MOST_USED if name in known})
    _add(parser, own, {name: known[name] for name in groups.pop(own)})
    kinds = [registry.lookup(name) for name in registry.REGISTRY]
    strategies = {kind.name: summary(kind) + " (default)" * (kind is strategy) for kind in kinds}
    parser.add_argument_group(
        "strategies (--strategy NAME --help shows what one does, and its fields)", _table(strategies)
    )
    if presets:
        values = {name: ", ".join(f"{key}={value}" for key, value in flat(preset)) for name, preset in presets.items()}
        parser.add_argument_group("presets", _table(values))
    for title, names in groups.items():
        _add(parser, title, {name: known[name] for name in names})
    return parser.format_help()


def strategy_help(strategy: type[Strategy], fields: Mapping[str, Any], prog: str) -> str:
    """The fields of a strategy with the values of this command line: ``--strategy NAME --help``."""
    usage = f"python {prog} --strategy {strategy.name} [--strategy.FIELD VALUE]"
    about = inspect.cleandoc(strategy.__doc__ or "").partition("\n\nArgs:")[0].replace("``", "")
    parser = Parser(prog, usage=_plain(usage), description=_plain(f"{strategy.name}: {about}"), add_help=False)
    known = {name: dataclasses.replace(option, default=fields[name]) for name, option in options(strategy).items()}
    _add(parser, f"fields of {strategy.name}", {f"strategy.{name}": option for name, option in known.items()})
    parser.epilog = "--help without --strategy shows all other options"
    return parser.format_help()


def _title(Config: type[Options], name: str, own: str) -> str:
    """The group of an option, by the class that introduced it; "" if that is no Config."""
    for base in reversed(Config.__mro__):
        if name in getattr(base, "__dataclass_fields__", ()):
            title = TITLES.get(base.__name__, own)
            return LOGS if title == "training" and name.endswith("_every") else title
    return ""


def _about(Config: type[Options], prog: str) -> str:
    """What the recipe is and what to type: the docstring of its file, or that of its Config."""
    if text := sys.modules[Config.__module__].__doc__:
        return inspect.cleandoc(text)
    text = inspect.cleandoc(Config.__doc__ or "")
    generated = text.startswith(f"{Config.__name__}(")  # by dataclass
    return "" if generated else f"{text}\n\npython {prog} --strategy drtrl"


def _add(parser: argparse.ArgumentParser, title: str, known: Mapping[str, Option]) -> None:
    group = parser.add_argument_group(title)
    for name, option in known.items():
        flag = "--" + name.replace("_", "-")
        text = _plain(f"{option.help} (default: {_shown(option.default)})".strip())
        if option.type is bool and not option.default:
            group.add_argument(flag, action="store_true", help=text)
        elif option.type is bool:
            group.add_argument(flag, f"--no-{flag[2:]}", action="store_true", help=text)
        else:
            group.add_argument(flag, metavar=_metavar(option.type), help=text)


def _plain(text: str) -> str:
    """Text without placeholders of argparse."""
    return text.replace("%", "%%")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    return short(value)


def _metavar(annotation: Any) -> str:
    """The values of an option in short: ``INT``, ``FLOAT|none``, ``auto|INT``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _metavar(args[0])
    if origin in (Union, types.UnionType):
        return "|".join(map(_metavar, args))
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (list, tuple) and args:
        return f"{_metavar(args[0])} ..."
    return WORDS.get(annotation) or spell(annotation)


def _table(entries: Mapping[str, str]) -> str:
    width, column = shutil.get_terminal_size().columns - 4, max(map(len, entries)) + 2
    lines = [
        textwrap.fill(text, width, initial_indent=name.ljust(column), subsequent_indent=" " * column)
        for name, text in entries.items()
    ]
    return _plain("\n".join(lines))
