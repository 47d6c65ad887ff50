"""What a rule of braintrace does to each parameter, from braintrace's own report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..state import name_of
from .base import Row


def describe(
    params: Iterable[str], report: Any, sizes: Mapping[str, int], acting: set[str], *, single: bool, window: int
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
            return Row(name, "in part", "one of its ways into the hidden state passes through another weight", size)
        if name in sizes:
            return Row(name, "yes", "", size)
        if name in chained:
            why = "reaches the hidden state only through another weight, so no trace of it is kept"
        else:
            why = "reaches the hidden state by no operation of braintrace (braintrace.nn), so no trace of it is kept"
        if single:
            return Row(name, "no", f"{why}: its gradient is exactly zero. Use vjp='multi-step'")
        return Row(name, "in part", f"{why}: its credit lies within one window of {window} scored time steps")

    return [row(name) for name in params]
