"""What a rule of braintrace does to each parameter, from braintrace's own report, and what would give it more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..state import name_of
from .base import Row
from .cadence import UpdateEvery

PARTLY = "one of its ways into the hidden state passes through another weight, and only the direct one is traced"


@dataclass(frozen=True)
class Reach:
    """How far back credit goes that no trace carries: ``within`` which time steps, and what gives ``more`` of it.
    ``besides``: what a parameter without any trace has instead. ``anyway``: what gives credit to what a single-step
    rule holds constant."""

    within: str = "one time step"
    more: str = "For more use drtrl with a window, or tbptt"
    besides: str = ""
    anyway: str = "Use drtrl with vjp='multi-step', or tbptt"

    @staticmethod
    def of_window(window: int, scored: int, update_every: UpdateEvery = "sequence") -> Reach:
        """Of a rule whose windows are ``window`` time steps of the ``scored`` ones of a whole sequence."""
        within = f"one window of {window} scored time step" + ("s" if window > 1 else "")
        larger, exact = "A larger window", "strategy='bptt'"
        if update_every != "sequence":  # what is advised must be what can be had
            larger, exact = f"{larger}, of which update_every is a multiple,", f"{exact}, which has no update_every,"
        if window >= scored:
            return Reach(within, f"Use {exact} for all")
        return Reach(within, f"{larger} gives it more, {exact} all")


ONE_STEP = Reach()


def describe(
    params: Iterable[str], report: Any, sizes: Mapping[str, int], acting: set[str], *, single: bool, reach: Reach
) -> list[Row]:
    """``sizes``: bytes of trace of each traced parameter. ``acting``: parameters that the new hidden states need.
    ``single``: whether the rule holds what it does not trace constant."""
    chained = {name_of(path) for path, why in report.excluded_weights if why == "relation_excluded_weight_to_weight"}
    partial = {
        name_of(d.weight_path) for d in report.diagnostics if d.kind.value == "relation_partial_path" and d.weight_path
    }

    def row(name: str) -> Row:
        size = sizes.get(name, 0)
        if name not in acting:
            return Row(name, "yes", "reaches the output without the hidden state: exact at every time step")
        if name in partial:
            other = f"no credit. {reach.anyway}" if single else f"credit within {reach.within}. {reach.more}"
            return Row(name, "in part", f"{PARTLY}: the other has {other}", size)
        if name in sizes:
            return Row(name, "yes", "", size)
        if name in chained:
            why = "reaches the hidden state only through another weight, so no trace of it is kept"
        else:
            why = "reaches the hidden state by no operation of braintrace (braintrace.nn), so no trace of it is kept"
        if single:
            return Row(name, "no", f"{why}: its gradient is exactly zero. {reach.anyway}")
        return Row(name, "in part", f"{why}: its credit lies within {reach.within}. {reach.besides or reach.more}")

    return [row(name) for name in params]
