"""Models for which a rule cannot be computed backward in time."""

from __future__ import annotations

import braintrace

from ..equations import ELEMENTWISE, Irreversible
from ..network import Network
from ..specs.backward_rule import BackwardRule
from .blocks import leaf
from .detached_step import DetachedStep


def require_reversible(rule: BackwardRule, step: DetachedStep, network: Network, learns_starts: bool) -> None:
    """Raise Irreversible for a model whose gradient needs braintrace's trace.

    Args:
        rule: The rule.
        step: The detached time step.
        network: The model over a batch.
        learns_starts: Whether a trained parameter determines an initial state.
    """
    if rule == BackwardRule():
        return
    if not step.chosen:
        raise Irreversible("no weight has a trace")
    values = [leaf(network.hidden[name].value) for name in step.traced]
    if any(each.dtype.itemsize < 4 for each in (*values, *(r.y_var.aval for r in step.relations))):
        raise Irreversible("its recurrence has less than 32 bits")
    if rule.own_recurrence or rule.rank_one:
        _require_uncoupled(step)
    if not rule.needs_factors:
        return
    if learns_starts:
        raise Irreversible("an initial state is learned")
    for i in step.chosen:
        _require_units(step, i)


def _require_uncoupled(step: DetachedStep) -> None:
    """Raise Irreversible if braintrace makes one group of several: for rules with recurrent mixing, it joins hidden
    states of equal shape that weights connect."""
    module = step.report.graph.module_info
    coupled, _ = braintrace.find_hidden_groups_from_minfo(module, include_recurrent_mixing=True)
    if [group.hidden_paths for group in step.report.graph.hidden_groups] != [group.hidden_paths for group in coupled]:
        raise Irreversible("weights connect hidden states of equal shape, which then are one group")


def _require_units(step: DetachedStep, i: int) -> None:
    """Raise Irreversible unless relation ``i`` has one output per unit of the hidden states that it acts on."""
    relation = step.relations[i]
    paths, y = ", ".join(sorted(relation.paths)), relation.y_var.aval
    sizes = {step.units_of(n) for group in relation.groups for n in step.groups[group]}
    alone = relation.name == ELEMENTWISE or (step.mapped and not step.as_batch)
    batch = 1 if alone else y.shape[0]
    if sizes != {y.size // batch}:
        raise Irreversible(f"{paths} or the hidden state that it acts on has other axes than sequences and units")
