"""The options that every recipe has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..strategies import registry

if TYPE_CHECKING:
    from ..strategies import Strategy

    StrategyName = str
else:
    StrategyName = Literal[(*registry.available(), *registry.ALIASES)]

NOT_SAVED = ("run_dir", "progress")
"""Options of one start of the program. They do not affect what is trained, so config.json does not hold them."""


def update_strategy_names() -> None:
    """Add strategies registered since the import to the choices of ``--strategy``.

    Annotations are strings that are resolved when they are used, so it is enough to replace the name they refer to.
    """
    globals()["StrategyName"] = Literal[(*registry.available(), *registry.ALIASES)]


@dataclasses.dataclass(frozen=True)
class Options:
    """Base class of every recipe's Config. Subclass it as a frozen dataclass; each field becomes a flag.

    `rule_defaults`: by strategy name, field values that this recipe uses unless a preset, a file or a flag sets them.

    >>> Options(strategy="drtrl", strategy_fields={"window": 5}).make_strategy().window
    5
    """

    rule_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    strategy: StrategyName = "drtrl"
    """how gradients are computed"""
    strategy_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """fields of the strategy, as set by --strategy.FIELD"""
    run_dir: str | None = None
    """run directory; none: a new numbered directory under checkpoints/"""
    progress: bool = True
    """show a progress bar"""

    def make_strategy(self) -> Strategy:
        """Create the strategy to pass to `Fit`.

        Returns:
            The strategy with the fields of `rule_defaults`, overridden by `strategy_fields`.

        Raises:
            ValueError: The strategy or a field is unknown, or a value is invalid.
        """
        defaults = self.checked_defaults().get(registry.lookup(self.strategy).name, {})
        return registry.make_strategy(self.strategy, **{**defaults, **self.strategy_fields})

    @classmethod
    def checked_defaults(cls) -> dict[str, dict[str, Any]]:
        """Return `rule_defaults` with aliases replaced by strategy names.

        Raises:
            ConfigError: A strategy or a field is unknown, or a value has the wrong type.
        """
        strategies = [(registry.lookup(name), fields) for name, fields in cls.rule_defaults.items()]
        return {kind.name: registry.check(kind, fields, f"rule_defaults: {kind.name}") for kind, fields in strategies}

    def saved(self) -> dict[str, Any]:
        """Return the options as config.json holds them: a plain dict without `run_dir` and `progress`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in NOT_SAVED}
