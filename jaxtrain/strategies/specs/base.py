"""What every strategy has: checked options, and a method that binds it to a module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import ConfigError
from ...utils.coerce import coerce, field_types, is_plain, spell

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner
    from ..update_schedule import UpdateSchedule

Batching = Literal["auto", "batched", "vmap"]
UpdateEvery = Literal["sequence"] | int


@dataclass(frozen=True)
class Strategy(ABC):
    """How gradients are made.

    A strategy is a frozen dataclass. Its fields are its options; they are compared on resume. The first line of the
    class's docstring, and the first paragraph of the docstring under each field, are their help on the command line.

    Fields of plain types (numbers, text, ``Literal``, tuples of them) are checked against their annotations, those with
    ``init=False`` and those whose annotation cannot be looked up apart; raises ValueError. A class with a
    ``__post_init__`` of its own calls this one first.
    """

    name: ClassVar[str]

    def __post_init__(self):
        for name, hint in field_types(type(self)).items():
            if is_plain(hint):
                value = getattr(self, name)
                try:
                    checked = coerce(value, hint, name)
                except ConfigError:
                    raise ValueError(f"{type(self).__name__}({name}={value!r}): expected {spell(hint)}") from None
                object.__setattr__(self, name, checked)  # a float that was given as 1, a pair as a list

    @abstractmethod
    def bind(self, objective: Objective, example: Phases) -> Learner:
        """The rule for one module and one shape of batch; called once, outside any trace."""

    def config(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def resolve(self, auto: dict[str, Any]) -> Strategy:
        """The strategy with what every "auto" became in an earlier part of the run."""
        names = [field.name for field in fields(self) if field.init]
        return replace(self, **{name: auto[name] for name in names if name in auto and getattr(self, name) == "auto"})


@dataclass(frozen=True)
class WithUpdates(Strategy):
    """A strategy that chooses when to update the weights, and whether state continues across sequences."""

    update_every: UpdateEvery = "sequence"
    """update the weights every N scored time steps, or once per sequence

    With a number, the optimizer and its schedule advance within the sequence. Time steps that weigh nothing make no
    update.
    """
    stateful: bool = False
    """continue each sequence from the hidden states and traces of the previous one

    Otherwise each sequence starts from fresh ones. ``Phases.reset`` clears those of single sequences of a batch.
    """
    batching: Batching = "auto"
    """batched: hidden states have a batch axis; vmap: the model is mapped over the sequences of a batch

    The gradients are the same. "auto" takes what the rule and the model allow, and the faster where both work.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.update_every != "sequence" and self.update_every < 1:
            raise ValueError(
                f"{type(self).__name__}(update_every={self.update_every!r}): expected 'sequence' or a number of time "
                "steps, 1 or more"
            )

    def cadence(self) -> UpdateSchedule:
        from ..update_schedule import UpdateSchedule

        return UpdateSchedule(self.update_every, self.stateful)

    def _check_length(self, time: int) -> None:
        """Raises ValueError where a learning phase of ``time`` time steps has no whole update."""
        if self.update_every != "sequence" and self.update_every > time:
            raise ValueError(
                f"{type(self).__name__}(update_every={self.update_every}): the learning phase has only {time} time "
                f"steps; give {time} or less, or 'sequence'"
            )

    def _check_multiple(self, window: int) -> None:
        """Raises ValueError where updates do not come at the ends of windows."""
        if self.update_every != "sequence" and self.update_every % window:
            raise ValueError(
                f"{type(self).__name__}(window={window}, update_every={self.update_every}): an update comes at the end "
                "of a window, so update_every must be a multiple of it"
            )
