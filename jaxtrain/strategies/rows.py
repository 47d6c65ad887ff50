"""What a rule does to each parameter: which of its ways to the loss carry credit, and what would add more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..state import name_of
from .base import Row
from .cadence import UpdateEvery
from .flow import Flow

PARTLY = "one of its ways into the hidden state passes through another weight, and only the direct one is traced"
UNUSED = (
    "the loss has no derivative with respect to it: the model never uses it, or only behind stop_gradient, an integer "
    "or a comparison"
)


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
NO_START = "Use bptt, or tbptt with carry='reset'"
"""What trains an initial state."""


@dataclass(frozen=True)
class Traces:
    """The traces that a rule keeps.

    Attributes:
        states: for each traced parameter, the hidden states that its trace belongs to.
        sizes: bytes of trace of each traced parameter.
        chained: parameters that reach a hidden state only through another weight.
        partial: traced parameters that also reach it through another weight.
    """

    states: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    chained: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()

    @staticmethod
    def of(report: Any, states: Mapping[str, frozenset[str]], sizes: Mapping[str, int]) -> Traces:
        """``report``: braintrace's own."""
        chained = "relation_excluded_weight_to_weight"
        excluded = frozenset(name_of(path) for path, why in report.excluded_weights if why == chained)
        partial = [d.weight_path for d in report.diagnostics if d.kind.value == "relation_partial_path"]
        return Traces(states, sizes, excluded, frozenset(name_of(path) for path in partial if path))


def describe_window(params: Iterable[str], flow: Flow, steps: int, what: str, start: str = "") -> list[Row]:
    """Rows of a rule that differentiates ``steps`` time steps (``what``) together and keeps no trace.

    Args:
        start: what would train an initial state; empty where the rule does.
    """
    inside = flow.within(steps)

    def row(name: str) -> Row:
        begun = flow.begins(name)
        if not begun and name not in flow.within(None):
            return Row(name, "no", UNUSED)
        if name in inside:
            return _without_start(Row(name), begun, start)
        if begun & inside and not start:
            return Row(name)
        if begun and start and name not in flow.within(None):
            return _without_start(Row(name, "no"), begun, start)
        late = f"more than the {steps} time steps of {what} later"
        return Row(name, "no", f"acts on the loss by {_listed(flow.through(name) | begun)} alone, {late}")

    return [row(name) for name in params]


def _without_start(row: Row, begun: frozenset[str], start: str) -> Row:
    """What becomes of a parameter's row where it also makes (or, with "no", only makes) the initial states ``begun``,
    and ``start`` says what would train them; where it is empty, the rule does."""
    if not begun or not start:
        return row
    makes = f"makes the initial value of {_listed(begun)}"
    if row.trains == "no":
        return Row(row.name, "no", f"{makes}: its gradient is exactly zero. {start}", row.bytes)
    return Row(row.name, "in part", f"{makes}, and has no credit for that. {start}", row.bytes)


def describe(
    params: Iterable[str], flow: Flow, traces: Traces, *, window: int, single: bool, reach: Reach, start: str = "",
) -> list[Row]:  # fmt: skip
    """Rows of a rule with traces.

    Args:
        window: scored time steps that are differentiated together.
        single: whether the rule holds what it does not trace constant.
        reach: what to say of credit without a trace.
        start: what would train an initial state; empty where the rule does.
    """
    inside = flow.output if single else flow.within(window)
    direct = flow.direct if single else inside
    grouped = frozenset().union(*traces.states.values())

    def ways(name: str) -> Row:
        """By its use in time steps."""
        size, through = traces.sizes.get(name, 0), flow.through(name)
        if not through:
            return Row(name, "yes", "reaches the output without the hidden state: exact at every time step")
        carried = traces.states.get(name, frozenset()) & through
        lost = through - carried
        some = name in direct or bool(carried & inside)
        if some and not lost and name not in traces.partial:
            return Row(name, "yes", "", size)
        if name in traces.partial and some and lost <= grouped:
            other = f"no credit. {reach.anyway}" if single else f"credit within {reach.within}. {reach.more}"
            return Row(name, "in part", f"{PARTLY}: the other has {other}", size)
        if carried or not flow.into(name) & grouped:
            what = f"its credit does not pass {_listed(lost)}, of which no trace of it is kept"
        elif name in traces.chained:
            what = "reaches the hidden state only through another weight, so no trace of it is kept"
        else:
            what = "reaches the hidden state by no operation of braintrace (braintrace.nn), so no trace of it is kept"
        more = reach.anyway if single else reach.more
        if not some:
            return Row(name, "no", f"{what}: its gradient is exactly zero. {more}", size)
        if carried:
            return Row(name, "in part", f"{what}. {more}", size)
        within = "one time step, beside the hidden state" if single else reach.within
        return Row(name, "in part", f"{what}: its credit lies within {within}. {reach.besides or more}", size)

    def row(name: str) -> Row:
        begun, stepping = flow.begins(name), name in flow.within(None)
        if not stepping and not begun:
            return Row(name, "no", UNUSED)
        if not begun:
            return ways(name)
        if not stepping:
            return _without_start(Row(name, "no" if start else "yes"), begun, start)
        found = ways(name)
        if found.trains != "no":
            return _without_start(found, begun, start)
        alone = f"has credit for the initial value of {_listed(begun)} alone: {found.why}"
        return found if start else Row(name, "in part", alone, found.bytes)

    return [row(name) for name in params]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
