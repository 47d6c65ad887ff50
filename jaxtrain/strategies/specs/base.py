"""Base classes of strategies: checked options, and a method that binds a strategy to a module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import ConfigError
from ...utils.coerce import coerce, field_types, is_plain, spell
from ...utils.foreign_arguments import ForeignArguments

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner
    from ..update_schedule import UpdateSchedule

Batching = Literal["auto", "batched", "vmap"]
UpdateEvery = Literal["sequence"] | int


@dataclass(frozen=True)
class Reach:
    """Texts for the parameter report: how far back credit without a trace reaches, and which options extend it.

    Attributes:
        within: The time steps that give credit.
        more: Advice that gives more credit.
        besides: What a parameter without any trace has in addition.
        anyway: Advice that gives credit to what a single-step rule holds constant.
        memory: Advice that passes credit through readout memory; "" if there is none.
        exact: Advice that gives all credit.
    """

    within: str = "one time step only"
    more: str = "For more use drtrl with a window, or tbptt"
    besides: str = ""
    anyway: str = "Use drtrl with vjp='multi-step', or tbptt"
    memory: str = "a rule with readout_memory=True, such as drtrl or eprop"
    exact: str = "strategy='bptt'"

    @staticmethod
    def of_window(window: int, scored: int, update_every: UpdateEvery = "sequence") -> Reach:
        """The reach of windows of ``window`` time steps in a sequence with ``scored`` scored ones."""
        steps = "one scored time step" if window == 1 else f"{window} scored time steps"
        within = f"{steps} only (window={window})"
        larger, exact = "A larger window", Reach.exact
        if update_every != "sequence":  # advise only what these options allow
            larger, exact = f"{larger}, of which update_every is a multiple,", f"{exact}, which has no update_every,"
        if window >= scored:
            return Reach(within, f"Use {exact} for all credit", exact=exact.rstrip(","))
        return Reach(within, f"{larger} extends the credit; {exact} gives full credit", exact=exact.rstrip(","))


ONE_STEP = Reach()


@dataclass(frozen=True)
class Strategy(ABC):
    """A method of computing gradients.

    A strategy is a frozen dataclass and its fields are its options. A resumed run must use the same options. On the
    command line, the first line of the class docstring describes the strategy, and the first paragraph of the
    docstring under a field describes that option.

    Fields of plain types (numbers, text, ``Literal``, and tuples of these) are checked against their annotations when
    an object is created. Fields with ``init=False`` and fields whose annotation cannot be resolved are not checked.
    A subclass that defines ``__post_init__`` must call ``super().__post_init__()`` first.

    Attributes:
        name: The name of the strategy, for example in ``Fit(strategy="drtrl")``.

    Raises:
        ValueError: A field has a value of the wrong type.

    Example::

        @dataclass(frozen=True)
        class Plain(Strategy):
            name: ClassVar[str] = "plain"

            def bind(self, objective, example):
                return jaxtrain.BPTT(batching="batched").bind(objective, example)
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
                object.__setattr__(self, name, checked)  # 1 becomes 1.0 for a float, and a list becomes a tuple

    @abstractmethod
    def bind(self, objective: Objective, example: Phases) -> Learner:
        """Create the learner for one module and one batch shape.

        The trainer calls this method once, outside of any trace.

        Args:
            objective: The module, with its model and its loss.
            example: A batch of the shape that the learner will receive.

        Returns:
            The learner, which computes gradients of this module.

        Raises:
            ValueError: The strategy does not support this module or this batch shape.
        """

    def config(self) -> dict[str, Any]:
        """Return the name and all options, as plain values that JSON can hold."""
        return {"name": self.name, **asdict(self)}

    def resolve(self, auto: dict[str, Any]) -> Strategy:
        """Return this strategy with its "auto" options replaced.

        Args:
            auto: The resolved values by field name, from ``Learner.resolved()`` of an earlier part of the run.
        """
        names = [field.name for field in fields(self) if field.init]
        return replace(self, **{name: auto[name] for name in names if name in auto and getattr(self, name) == "auto"})

    def _require(self, valid: bool, field: str, expected: str) -> None:
        """Raise ValueError with the value of a field and what was expected instead, unless it is ``valid``."""
        if not valid:
            raise ValueError(f"{type(self).__name__}({field}={getattr(self, field)!r}): expected {expected}")

    def _require_steps(self, field: str) -> None:
        self._require(getattr(self, field) >= 1, field, "a whole number of time steps, at least 1")

    def _require_fraction(self, field: str) -> None:
        self._require(0 <= getattr(self, field) < 1, field, "a number in [0, 1)")


@dataclass(frozen=True)
class ScheduledStrategy(ForeignArguments, Strategy):
    """A strategy that can update the weights within a sequence and continue states across sequences.

    Args:
        update_every: Scored time steps per update, at least 1, or "sequence".
        stateful: Continue each sequence from the hidden states and traces of the previous one.
        batching: "batched", "vmap" or "auto".

    Raises:
        ValueError: A field has a value of the wrong type or out of range.
    """

    update_every: UpdateEvery = "sequence"
    """update the weights every N scored time steps, or once per sequence

    With a number, the optimizer and its schedule advance within the sequence. An interval whose time steps all have
    weight 0 makes no update.
    """
    stateful: bool = False
    """continue each sequence from the hidden states and traces of the previous one

    Otherwise each sequence starts from initial states and empty traces. ``Phases.reset`` resets individual sequences
    of a batch.
    """
    batching: Batching = "auto"
    """batched: hidden states have a batch axis; vmap: the model is mapped over the sequences of a batch

    The gradients are the same. "auto" selects a mode that the rule and the model support, and the faster one if both
    work.
    """

    def __post_init__(self):
        super().__post_init__()
        valid = self.update_every == "sequence" or self.update_every >= 1
        self._require(valid, "update_every", "'sequence' or a number of time steps, 1 or more")

    def update_schedule(self) -> UpdateSchedule:
        """Return when gradients become weight updates, and whether states continue across sequences."""
        from ..update_schedule import UpdateSchedule

        return UpdateSchedule(self.update_every, self.stateful)

    def _check_length(self, time: int) -> None:
        """Raise ValueError if the learning phase, of ``time`` time steps, is shorter than one update interval."""
        if self.update_every != "sequence" and self.update_every > time:
            raise ValueError(
                f"{type(self).__name__}(update_every={self.update_every}): the learning phase has only {time} time "
                f"steps; give {time} or less, or 'sequence'"
            )

    def _check_multiple(self, window: int) -> None:
        """Raise ValueError if an update would fall within a window."""
        if self.update_every != "sequence" and self.update_every % window:
            raise ValueError(
                f"{type(self).__name__}(window={window}, update_every={self.update_every}): an update comes at the end "
                "of a window, so update_every must be a multiple of it"
            )
