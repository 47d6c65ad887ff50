"""The report before step 0: parameters and how the rule trains them, memory, work, and resolved options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from ..core.module import Module, Phases
from ..core.objective import phases_of
from ..core.state import State
from ..data.eval_loader import EvalLoader
from ..strategies.base import Learner, ParameterReport, scored
from ..utils.memory import shown
from .binding import environ


def time_steps(learner: Learner, phases: Phases) -> Any:
    """One time step as it runs in the warm-up, in training and in an evaluation. Called while tracing."""
    objective, network, first = learner.objective, learner.network, _first(scored(phases)[:4])
    if phases.warmup is not None:
        objective.warmup(network, _first(phases.warmup))
    return objective.learn(network, *first), objective.evaluate(network, *first)


def _first(sequences: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], sequences)


def flops(jaxpr: Any) -> float:
    """Floating-point operations of a jaxpr.

    Products count by their contraction, everything else counts one per element of the result. The body of a scan counts
    once per time step, unlike in XLA's estimate, which counts the body of a loop once whatever its length.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # without the constants of a closed jaxpr
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    inner = [value for value in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(value)]
    if name == "cond":
        return max((flops(branch) for branch in inner), default=0.0)
    if inner:
        return params.get("length", 1) * sum(flops(body) for body in inner)
    size = sum(math.prod(out.aval.shape) for out in equation.outvars if hasattr(out.aval, "shape"))
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        return 2.0 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2.0 * size * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return float(size)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "jaxpr") or hasattr(value, "eqns")


def compiled_memory(compiled: Any) -> dict[str, int]:
    """The compiler's report of a program's memory, in bytes; empty if the backend has none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return {}
    alive = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {"peak_bytes": int(alive + analysis.temp_size_in_bytes), "temporary_bytes": int(analysis.temp_size_in_bytes)}


def val_sizes(module: Module, val: Iterable[EvalLoader]) -> dict[str, tuple[int, int, int]]:
    """Warm-up time steps, scored time steps and sequences of the first batch of each set of validation data."""
    with environ(module, fit=False):
        return {loader.name: phases_of(module, loader.examples[0]).sizes for loader in val}


def describe_parameters(params: Mapping[str, State], reports: list[ParameterReport]) -> dict[str, dict[str, Any]]:
    """For each parameter: its size, whether the rule trains it, why not, and the bytes of its trace."""
    by_name = {report.name: report for report in reports}
    table = {}
    for name, state in params.items():
        leaves = jax.tree.leaves(state.value)
        report = by_name.get(name) or ParameterReport(name, "no", "excluded by Module.trainable")
        table[name] = {
            "count": sum(leaf.size for leaf in leaves),
            "bytes": sum(leaf.nbytes for leaf in leaves),
            "trains": report.trains,
            "why": report.why,
            "trace_bytes": report.bytes,
        }
    return table


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines for the terminal."""
    table = report["parameters"]
    total = sum(entry["count"] for entry in table.values())
    strategy = report["strategy"]
    fields = ", ".join(f"{key}={value}" for key, value in strategy.items() if key != "name")
    out = [
        f"strategy   {strategy['name']}" + (f" ({fields})" if fields else ""),
        f"sequence   {report['warmup']} warm-up + {report['learning']} scored time steps, {report['batch']} sequences",
        f"parameters {total:,} ({shown(sum(entry['bytes'] for entry in table.values()))})",
    ]
    if "batch_first" in report:  # absent from the report of a program without a run
        axes = "axis 0 is the batch, axis 1 time" if report["batch_first"] else "axis 0 is time, axis 1 the batch"
        source = "not stated" if report["batch_first"] is None else f"batch_first={report['batch_first']}"
        out.append(f"layout     {axes} ({source})")
    for name, (warm, time, sequences) in report.get("val", {}).items():
        kind, _, of = name.partition("/")
        kind, which = "validation" if kind == "val" else kind, f", {of}" if of else ""
        out.append(f"{kind:<10} {warm} warm-up + {time} scored time steps, {sequences} sequences{which}")
    if report["seeds"] is not None:
        out.append(
            f"seeds      {', '.join(map(str, report['seeds']))}, side by side; parameters are counted for one seed"
        )
    seeds, count, why = report["seeds"], report["devices"], report.get("why_devices")
    if count > 1 or why:
        share = f"{report['batch'] // count} sequences" if seeds is None else f"{len(seeds) // count} seeds"
        each = f", {share} each; memory is per device" if count > 1 else ""
        out.append(f"devices    {count}{each}" + (f" (auto: {why})" if why else ""))
    width = max(len(name) for name in table)
    for name, entry in table.items():
        trace = f"  trace {shown(entry['trace_bytes'])}" if entry["trace_bytes"] else ""
        note = "" if entry["trains"] == "yes" else f"  trained: {entry['trains']}"
        out.append(f"  {name:<{width}}  {entry['count']:>9,}{trace}{note}")
        if entry["trains"] != "yes":
            out.append(f"  {'':<{width}}  {entry['why']}")
    if report["trace_bytes"]:
        out.append(f"traces     {shown(report['trace_bytes'])}")
    if "peak_bytes" in report["memory"]:
        memory = report["memory"]
        out.append(f"memory     {shown(memory['peak_bytes'])} peak, {shown(memory['temporary_bytes'])} of it temporary")
    out.append(f"work       {report['flops'] / 1e6:,.1f} MFLOP per step")
    out.append("resolved   " + ", ".join(f"{key}={value}" for key, value in report["auto"].items()))
    out.append(f"compiled   in {report['compile_seconds']:.1f} s")
    out += [f"note       {note}" for note in report["notes"]]
    return out
