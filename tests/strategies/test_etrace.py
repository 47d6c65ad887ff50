"""The strategy etrace has every coordinate of braintrace's space of rules, or another strategy has it."""

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import braintrace
import pytest

from jaxtrain.strategies import ETrace

pytestmark = pytest.mark.full

ELSEWHERE = {"random_projection", "modulatory", "bootstrapped"}
"""What needs more than a gradient: uoro, three_factor, dni."""


def words(annotation: Any) -> set[str]:
    if isinstance(annotation, str):
        return {annotation}
    return set().union(*(words(part) for part in get_args(annotation)))


def test_upstream_an_update_schedule_is_no_choice_yet():
    """Where this fails, upstream has mended it: ETrace may have these two coordinates."""
    ours, theirs = ({field.name for field in fields(cls)} for cls in (ETrace, braintrace.ETraceConfig))
    assert theirs - ours == {"update_schedule", "window_size"}
    for schedule in ("window", "sequence_end"):
        with pytest.raises(ValueError, match="update_schedule.*per_step|per_step.*update_schedule|not implemented"):
            braintrace.ETraceConfig(update_schedule=schedule, window_size=2 if schedule == "window" else None)


def test_every_word_of_a_coordinate_is_taken_by_braintrace():
    """The words of ``ETrace`` are those that upstream's refusal of a wrong one lists, but what has a strategy of its
    own."""
    hints = get_type_hints(ETrace)
    for name in (
        "trace_factorization", "temporal_recursion", "recurrence_scope", "learning_signal", "trace_filter"
    ):  # fmt: skip
        with pytest.raises(ValueError) as raised:
            braintrace.ETraceConfig(**{name: "telepathy"})
        listed = {word for word in words(hints[name]) | ELSEWHERE if f"'{word}'" in str(raised.value)}
        assert listed - ELSEWHERE == words(hints[name]), name
        assert str(raised.value).count("'") == 2 * (len(listed) + 1), f"{raised.value}: a word that ETrace lacks"
