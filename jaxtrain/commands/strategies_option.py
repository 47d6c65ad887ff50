"""The option ``--strategies``: names of strategies, each with values for its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cli.argv import literal
from ..errors import ConfigError
from ..strategies import registry
from ..utils.fields import options


@dataclass(frozen=True)
class StrategySpec:
    """A strategy and the fields given for it. ``text``: how the user wrote it, which is its name in tables."""

    text: str
    name: str
    fields: Mapping[str, Any]

    def all_fields(self, defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The value of every field. ``defaults``: by strategy, for a spec without fields; those of a recipe."""
        plain = {name: option.default for name, option in options(registry.lookup(self.name)).items()}
        return plain | dict(self.fields or defaults.get(self.name, {}))


def parse_strategies(text: str) -> list[StrategySpec]:
    """Parse strategies separated by commas, with optional fields: ``"drtrl:window=5,vjp=multi-step,pp_prop"``.

    A value is read as a number or a boolean if possible; words separated by spaces are a list. Raises ConfigError for
    an unknown name or field, or a value of the wrong type.
    """
    parts: list[tuple[str, list[str]]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, first = part.partition(":")
        if not colon and "=" in part:  # another field of the previous strategy
            if not parts:
                raise ConfigError(f"--strategies {text!r}: {part!r} precedes any strategy; expected NAME:FIELD=VALUE")
            parts[-1][1].append(part)
        else:
            parts.append((name.strip(), [first] if colon else []))
    if not parts:
        raise ConfigError(f"--strategies {text!r}: expected names of strategies, separated by commas")
    return [_spec(name, fields) for name, fields in parts]


def _spec(name: str, items: list[str]) -> StrategySpec:
    where, fields = f"--strategies {name}", {}
    for item in items:
        field, _, value = (part.strip() for part in item.partition("="))
        if not (field and value):
            raise ConfigError(f"{where}: {item!r}; expected FIELD=VALUE")
        words = [literal(word) for word in value.split()]
        fields[field.replace("-", "_")] = words[0] if len(words) == 1 else words
    strategy = registry.lookup(name)
    fields = registry.check(strategy, fields, where)
    try:
        strategy(**fields)
    except ValueError as error:  # fields that do not fit together
        raise ConfigError(f"{where}: {error}") from None
    return StrategySpec(f"{name}:{','.join(items)}" if items else name, strategy.name, fields)
