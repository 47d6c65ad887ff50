"""What a rule does to each parameter: which of its ways to the loss carry credit, and what would add more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.state import name_of
from .base import ParameterReport
from .flow import Flow
from .specs.rule import Reach

PARTLY = "one of its ways into the hidden state passes through another weight, and only the direct one is traced"
UNUSED = (
    "the loss has no derivative with respect to it: the model never uses it, or only behind stop_gradient, an integer "
    "or a comparison"
)
WITHOUT_REVERSE = "Use bptt, or tbptt with stateful=False and update_every='sequence'"
START = "Use bptt, tbptt, or drtrl with engine='reverse', each with stateful=False and update_every='sequence'"
"""What trains an initial state."""
WHOLE = "segment='sequence'"
"""What makes a sequence one segment of reverse mode."""

MEMORY = "readout_memory=True (unless that is a second recurrent layer)"
"""What passes credit through states between the traced units and the loss."""


@dataclass(frozen=True)
class Traces:
    """What a rule keeps of the past for each parameter.

    Attributes:
        states: for each traced parameter, the hidden states that its trace belongs to.
        groups: hidden states whose credit is carried together.
        sizes: bytes of trace of each traced parameter.
        chained: parameters that reach a hidden state only through another weight.
        partial: traced parameters that also reach it through another weight.
        memory: states through which credit goes back without a trace.
        cut: where credit through ``memory`` ends, and what gives it more; empty where it passes the whole sequence.
        start: whether the beginning of a sequence has credit.
        starting: what would give it some.
        again: whether a beginning by ``Phases.reset`` has some.
    """

    states: Mapping[str, frozenset[str]]
    groups: tuple[frozenset[str], ...]
    sizes: Mapping[str, int]
    chained: frozenset[str]
    partial: frozenset[str]
    memory: frozenset[str] = frozenset()
    cut: str = ""
    start: bool = False
    starting: str = START
    again: bool = False

    @staticmethod
    def of(report: Any, groups: Mapping[str, set[int]], names: Mapping[int, Iterable[str]], sizes: Mapping[str, int],
           **more: Any) -> Traces:  # fmt: skip
        """``report``: braintrace's own. ``groups``: of each traced parameter. ``names``: of each group's states."""
        chained = "relation_excluded_weight_to_weight"
        excluded = frozenset(name_of(path) for path, why in report.excluded_weights if why == chained)
        partial = [d.weight_path for d in report.diagnostics if d.kind.value == "relation_partial_path"]
        together = {group: frozenset(states) for group, states in names.items()}
        states = {name: frozenset().union(*(together[g] for g in own)) for name, own in groups.items()}
        direct = frozenset(name_of(path) for path in partial if path)
        return Traces(states, tuple(together.values()), sizes, excluded, direct, **more)


def describe_window(
    params: Iterable[str], flow: Flow, steps: int, what: str, start: str = "", again: bool = False
) -> list[ParameterReport]:
    """Rows of a rule that differentiates ``steps`` time steps (``what``) together and keeps no trace.

    Args:
        start: what would train an initial state; empty where the rule does.
        again: whether a beginning by ``Phases.reset`` has credit all the same.
    """
    inside, late = flow.within(steps), f"more than the {steps} time steps of {what} later"

    def by_steps(name: str) -> ParameterReport:
        if name in inside:
            return ParameterReport(name)
        return ParameterReport(name, "no", f"acts on the loss by {_listed(flow.through(name))} alone, {late}")

    def by_start(name: str, begun: frozenset[str]) -> ParameterReport:
        makes = f"makes the initial value of {_listed(begun)}"
        if start:
            return _again(ParameterReport(name, "no", f"{makes}, and has no credit for that. {start}"), again)
        return (
            ParameterReport(name)
            if begun & inside
            else ParameterReport(name, "no", f"{makes}, which acts on the loss {late}")
        )

    return [_both(name, flow, by_steps, by_start) for name in params]


def _again(row: ParameterReport, again: bool) -> ParameterReport:
    """The row of a rule that credits beginnings by ``Phases.reset`` within its windows or segments."""
    return replace(row, trains="in part", why=f"{row.why}. Only resets near the loss have some") if again else row


def _both(
    name: str,
    flow: Flow,
    by_steps: Callable[[str], ParameterReport],
    by_start: Callable[[str, frozenset[str]], ParameterReport],
) -> ParameterReport:
    """The row of a parameter by its use in time steps, in the initial states, or in both."""
    begun = flow.begins(name)
    rows = [by_steps(name)] if name in flow.within(None) else []
    rows += [by_start(name, begun)] if begun else []
    if not rows:
        return ParameterReport(name, "no", UNUSED)
    trains = rows[0].trains if rows[0].trains == rows[-1].trains else "in part"
    reasons = [row.why for row in rows if row.why and (row.trains != "yes" or len(rows) == 1)]
    return ParameterReport(name, trains, "; ".join(reasons), rows[0].bytes)


def describe(
    params: Iterable[str], flow: Flow, traces: Traces, *, window: int, single: bool, reach: Reach
) -> list[ParameterReport]:
    """Rows of a rule with traces.

    Args:
        window: scored time steps that are differentiated together.
        single: whether the rule holds what it does not trace constant.
        reach: what to say of credit without a trace.
    """
    inside = flow.output if single else flow.within(window)
    direct = flow.direct if single else inside
    grouped = frozenset().union(*traces.states.values())
    # What feeds back into the traced states is no memory behind them.
    memory = frozenset(name for name in traces.memory if not flow.after([name]) & (grouped - traces.memory))
    inside |= memory & flow.within(None)
    more = reach.anyway if single else reach.more

    def past(lost: frozenset[str]) -> str:
        """What passes credit through states without a trace."""
        if not traces.memory and not flow.after(lost) & (grouped - lost):
            return f"Use drtrl with {MEMORY}, or strategy='bptt'"
        return "Use strategy='bptt'" if single else reach.more

    def by_steps(name: str) -> ParameterReport:
        size, through = traces.sizes.get(name, 0), flow.through(name)
        if not through:
            return ParameterReport(name, "yes", "reaches the output without the hidden state: exact at every time step")
        carried = traces.states.get(name, frozenset()) & through
        lost = through - carried - memory
        # Reverse mode goes back through memory in front of the units, too, from the losses of one window.
        some = name in direct or bool((carried | (flow.into(name) & traces.memory)) & inside)
        if some and not lost and name not in traces.partial:
            if traces.cut and through & memory:
                return ParameterReport(
                    name, "in part", f"its credit through {_listed(through & memory)} {traces.cut}", size
                )
            return ParameterReport(name, "yes", "", size)
        if name in traces.partial and some and lost <= grouped:
            other = f"no credit. {reach.anyway}" if single else f"credit within {reach.within}. {reach.more}"
            return ParameterReport(name, "in part", f"{PARTLY}: the other has {other}", size)
        if carried or not flow.into(name) & grouped:
            what = f"its credit does not pass {_listed(lost or carried)}, of which no trace is kept"
            zero = "" if some else ": its gradient is exactly zero"
            return ParameterReport(name, "in part" if some else "no", f"{what}{zero}. {past(lost)}", size)
        if name in traces.chained:
            what = "reaches the hidden state only through another weight, so no trace of it is kept"
        else:
            what = "reaches the hidden state by no operation of braintrace (braintrace.nn), so no trace of it is kept"
        if not some:
            return ParameterReport(name, "no", f"{what}: its gradient is exactly zero. {more}", size)
        within = "one time step, beside the hidden state" if single else reach.within
        return ParameterReport(
            name, "in part", f"{what}: its credit lies within {within}. {reach.besides or more}", size
        )

    def by_start(name: str, begun: frozenset[str]) -> ParameterReport:
        makes = f"makes the initial value of {_listed(begun)}"
        if not traces.start:
            return _again(
                ParameterReport(name, "no", f"{makes}, and has no credit for that. {traces.starting}"), traces.again
            )
        carried = memory.union(*(group for group in traces.groups if group & begun))
        lost = (begun | flow.after(begun)) & flow.within(None) - carried
        some = bool(begun & carried and (begun | flow.after(begun)) & carried & inside)
        if some and not lost:
            return ParameterReport(name)
        why = f"{makes}; its credit does not pass {_listed(lost)}. {past(lost)}"
        return ParameterReport(name, "in part" if some else "no", why)

    return [_both(name, flow, by_steps, by_start) for name in params]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
