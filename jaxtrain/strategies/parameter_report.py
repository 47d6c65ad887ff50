"""The parameter report: which paths from a parameter to the loss carry credit under a rule, and what would add more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..core.state import name_of
from .base import ParameterReport
from .flow import Flow
from .specs.base import Reach

PARTLY = "one of its paths into the hidden state passes through another weight, and only the direct one is traced"
UNUSED = (
    "the loss has no derivative with respect to it: the model never uses it, or only behind stop_gradient, an integer "
    "or a comparison"
)
WITHOUT_REVERSE = "Use bptt, or tbptt with stateful=False and update_every='sequence'"
START = "Use bptt, tbptt, or drtrl with engine='reverse', each with stateful=False and update_every='sequence'"
"""Advice for training an initial state."""
WHOLE = "segment='sequence'"
"""Advice for making a sequence one segment of reverse mode."""

Verdict = tuple[Literal["yes", "in part", "no"], str]
"""Whether a parameter trains, and why."""
TRAINS: Verdict = "yes", ""


@dataclass(frozen=True)
class Traces:
    """What a rule stores about the past of each parameter.

    Attributes:
        states: For each traced parameter, the hidden states that its trace belongs to.
        groups: Sets of hidden states that share their credit.
        sizes: Bytes of trace for each traced parameter.
        chained: Parameters that reach a hidden state only through another weight.
        partial: Traced parameters that also reach it through another weight.
        memory: States through which credit passes back without a trace.
        memory_end: Where credit through ``memory`` ends, with advice; empty if it spans the whole sequence.
        credits_initial_state: Whether initial states receive credit.
        advice: What gives them credit otherwise.
        credits_resets: Whether the initial states after ``Phases.reset`` receive some credit.
    """

    states: Mapping[str, frozenset[str]]
    groups: tuple[frozenset[str], ...]
    sizes: Mapping[str, int]
    chained: frozenset[str]
    partial: frozenset[str]
    memory: frozenset[str] = frozenset()
    memory_end: str = ""
    credits_initial_state: bool = False
    advice: str = START
    credits_resets: bool = False

    @staticmethod
    def of(report: Any, groups: Mapping[str, set[int]], names: Mapping[int, Iterable[str]], sizes: Mapping[str, int],
           **more: Any) -> Traces:  # fmt: skip
        """Create an object from braintrace's compilation report.

        Args:
            report: The compilation report.
            groups: For each traced parameter, its groups of hidden states.
            names: For each group, the names of its states.
            sizes: Bytes of trace for each traced parameter.
            **more: Further attributes.
        """
        reason = "relation_excluded_weight_to_weight"
        chained = frozenset(name_of(path) for path, why in report.excluded_weights if why == reason)
        partial = [d.weight_path for d in report.diagnostics if d.kind.value == "relation_partial_path"]
        together = {group: frozenset(states) for group, states in names.items()}
        states = {name: frozenset().union(*(together[g] for g in own)) for name, own in groups.items()}
        direct = frozenset(name_of(path) for path in partial if path)
        return Traces(states, tuple(together.values()), sizes, chained, direct, **more)


def describe_window(
    params: Iterable[str], flow: Flow, steps: int, what: str, advice: str = "", credits_resets: bool = False
) -> list[ParameterReport]:
    """The report of a rule that differentiates ``steps`` time steps together and keeps no trace.

    Args:
        params: Names of the parameters.
        flow: The dependence analysis of the model.
        steps: Time steps that are differentiated together.
        what: Their name in messages, for example "the window".
        advice: What trains an initial state; empty if the rule does.
        credits_resets: Whether the initial states after ``Phases.reset`` receive credit anyway.
    """
    inside, late = flow.within(steps), f"after {what} of {steps} time step{'s' * (steps > 1)}"

    def by_steps(name: str) -> Verdict:
        return (
            TRAINS if name in inside else ("no", f"affects the loss only through {_listed(flow.through(name))}, {late}")
        )

    def by_start(begun: frozenset[str]) -> Verdict:
        if advice:
            return _no_start(begun, advice, credits_resets)
        return TRAINS if begun & inside else ("no", f"{_determines(begun)}, which affects the loss {late}")

    return _reports(params, flow, {}, by_steps, by_start)


def describe(
    params: Iterable[str], flow: Flow, traces: Traces, *, window: int, single: bool, reach: Reach
) -> list[ParameterReport]:
    """The report of a rule with traces.

    Args:
        params: Names of the parameters.
        flow: The dependence analysis of the model.
        traces: What the rule stores.
        window: Scored time steps that are differentiated together.
        single: Whether the rule holds untraced weights constant (``vjp="single-step"``).
        reach: Texts about credit without a trace.
    """
    inside = flow.output if single else flow.within(window)
    direct = flow.direct if single else inside
    grouped = frozenset().union(*traces.states.values())
    # A state that feeds back into the traced states is not readout memory.
    memory = frozenset(name for name in traces.memory if not flow.after([name]) & (grouped - traces.memory))
    inside |= memory & flow.within(None)
    more = reach.anyway if single else reach.more

    def past(lost: frozenset[str]) -> str:
        """Advice that passes credit through states without a trace."""
        if reach.memory and not traces.memory and not flow.after(lost) & (grouped - lost):
            what = _listed(lost)
            return f"Use {reach.memory}, unless {what} belongs to a second recurrent layer; or {reach.exact}"
        return f"Use {reach.exact}" if single else reach.more

    def by_steps(name: str) -> Verdict:
        through = flow.through(name)
        if not through:
            return "yes", "reaches the output without the hidden state: exact at every time step"
        traced = traces.states.get(name, frozenset()) & through
        lost = through - traced - memory
        # Reverse mode also passes through memory before the units, from the losses of one window.
        some = name in direct or bool((traced | (flow.into(name) & traces.memory)) & inside)
        if some and not lost and name not in traces.partial:
            if traces.memory_end and through & memory:
                return "in part", f"its credit through {_listed(through & memory)} {traces.memory_end}"
            return TRAINS
        if name in traces.partial and some and lost <= grouped:
            other = f"has no credit. {reach.anyway}" if single else f"gets credit from {reach.within}. {reach.more}"
            return "in part", f"{PARTLY}: the other {other}"
        if traced or not flow.into(name) & grouped:
            what = f"its credit does not pass through {_listed(lost or traced)}, of which no trace is kept"
            zero = "" if some else ": its gradient is exactly zero"
            return "in part" if some else "no", f"{what}{zero}. {past(lost)}"
        outside = "through no operation of braintrace (braintrace.nn)"
        by = "only through another weight" if name in traces.chained else outside
        what = f"reaches the hidden state {by}, so no trace of it is kept"
        if not some:
            return "no", f"{what}: its gradient is exactly zero. {more}"
        within = "one time step only, on paths that bypass the hidden state" if single else reach.within
        return "in part", f"{what}: it gets credit from {within}. {reach.besides or more}"

    def by_start(begun: frozenset[str]) -> Verdict:
        if not traces.credits_initial_state:
            return _no_start(begun, traces.advice, traces.credits_resets)
        credited = memory.union(*(group for group in traces.groups if group & begun))
        reached = begun | flow.after(begun)
        lost = reached & flow.within(None) - credited
        some = bool(begun & credited and reached & credited & inside)
        if some and not lost:
            return TRAINS
        why = f"{_determines(begun)}; its credit does not pass through {_listed(lost)}. {past(lost)}"
        return "in part" if some else "no", why

    return _reports(params, flow, traces.sizes, by_steps, by_start)


def _reports(
    params: Iterable[str],
    flow: Flow,
    sizes: Mapping[str, int],
    by_steps: Callable[[str], Verdict],
    by_start: Callable[[frozenset[str]], Verdict],
) -> list[ParameterReport]:
    """Combine the verdicts on a parameter's use in time steps and in the initial states."""

    def one(name: str) -> ParameterReport:
        begun = flow.begins(name)
        verdicts = [by_steps(name)] if name in flow.within(None) else []
        verdicts += [by_start(begun)] if begun else []
        if not verdicts:
            return ParameterReport(name, "no", UNUSED)
        trains = verdicts[0][0] if verdicts[0][0] == verdicts[-1][0] else "in part"
        reasons = [why for verdict, why in verdicts if why and (verdict != "yes" or len(verdicts) == 1)]
        return ParameterReport(name, trains, "; ".join(reasons), sizes.get(name, 0))

    return [one(name) for name in params]


def _no_start(begun: frozenset[str], advice: str, credits_resets: bool) -> Verdict:
    """The verdict on initial states without credit, except by resets within a window or segment."""
    why = f"{_determines(begun)}, and receives no credit for it. {advice}"
    return ("in part", f"{why}. Only resets near the loss give it credit") if credits_resets else ("no", why)


def _determines(begun: frozenset[str]) -> str:
    return f"determines the initial value of {_listed(begun)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
