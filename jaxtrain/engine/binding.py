"""A strategy and an optimizer bound to the model of a module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import brainstate

from ..core.arrays import ArrayBatch
from ..core.module import Module, Phases
from ..core.objective import Objective, phases_of
from ..core.state import (
    State,
    attributes_kept,
    drop_weak_types,
    long_term_states,
    parameters,
    state_objects,
    with_strong_types,
)
from ..strategies import Strategy
from ..strategies.base import Learner, ParameterReport, trained
from ..strategies.padding import inert
from . import contract
from .batch_split import BatchSplit
from .optimizer import Optimizer


@dataclass(frozen=True)
class Binding:
    """A module's objective, learner and optimizer, and the States that outlive a step.

    Parameters have their own names in ``states``; the rest is under ``model/``, ``optimizer/`` and ``learner/``.
    """

    module: Module
    strategy: Strategy
    objective: Objective
    phases: Phases
    """Phases of the example batch."""
    share: Any
    """The first device's share of the example batch, which programs are traced with."""
    learner: Learner
    parameter_reports: list[ParameterReport]
    optimizer: Optimizer
    parameters: list[str]
    long_term: dict[str, State]
    """States of the model other than parameters that outlive a sequence, without a prefix."""
    states: dict[str, State]
    specs: dict[str, Any]
    """How values are split over devices, by name, if they are split along the batch axis."""
    objects: list[tuple[Any, dict[str, State]]]
    """The nodes of the model, each with its attributes that are States."""

    def phases_of(self, batch: Any, step: Callable, carried: bool = False) -> Phases:
        """A batch split in time, in which values of weight 0 cannot reach ``step``'s loss."""
        return inert(phases_of(self.module, batch), step, self.learner.network, carried=carried)

    def assign(self, values: dict[str, Any]) -> None:
        """Assign values to the States of the same names."""
        for name in self.states.keys() & values.keys():
            # Through the host: copying on the device would compile.
            self.states[name].value = with_strong_types(values[name])


def environ(module: Module, *, fit: bool) -> AbstractContextManager:
    """The environment in which the module's methods and its model run."""
    return brainstate.environ.context(**module.environ, fit=fit)


def bind(module: Module, strategy: Strategy, encode: Callable, example: Any, split: BatchSplit, *,
         clip: float | None, accumulate: int) -> tuple[Binding, dict[str, Any]]:  # fmt: skip
    """Bind a strategy and the module's optimizer to the module's model.

    Args:
        module: The module, with its model built.
        strategy: The strategy. On several devices it is bound to one device's share of a batch.
        encode: The data's encoding of the inputs of one time step.
        example: A batch on the host, time-major.
        split: How batches are split over devices.
        clip: Largest global norm of a gradient, or None.
        accumulate: Number of batches per update.

    Returns:
        The binding, and the initial values of its States, for the whole batch.
    """
    with environ(module, fit=True):
        model = module.model
        drop_weak_types(parameters(model).values())
        objective, phases, share = Objective(module, encode), phases_of(module, example), split.share(example)
        own_phases = phases_of(module, share)
        learner = strategy.bind(objective, own_phases)
        if learner.carried and isinstance(example, ArrayBatch):
            raise ValueError(
                f"strategy {strategy.name!r} with stateful=True continues hidden states in the next batch, but the "
                "batches of an ArrayDataset hold independent sequences: use stateful=False"
            )
        chosen = trained(objective)
        reports = contract.report(learner, own_phases, chosen)
        optimizer = _optimizer(objective, strategy, chosen, reports, clip, accumulate)
        long_term, own = long_term_states(model), learner.states()
        states: dict[str, State] = {
            **parameters(model),
            **{f"model/{name}": state for name, state in long_term.items()},
            **{f"optimizer/{name}": state for name, state in optimizer.states().items()},
            **{f"learner/{name}": state for name, state in own.items()},
        }
        drop_weak_types([*states.values(), *learner.short_term_states()])
        values, specs = {name: state.value for name, state in states.items()}, {}
        if split.count > 1 and own:
            with attributes_kept(model):
                whole = strategy.bind(objective, phases).states()
                specs = split.state_specs(own, whole, strategy.name)
                values |= {f"learner/{name}": state.value for name, state in whole.items()}
        specs = {f"learner/{name}": spec for name, spec in specs.items()}
        binding = Binding(
            module=module, strategy=strategy, objective=objective, phases=phases, share=share, learner=learner,
            parameter_reports=reports, optimizer=optimizer, parameters=list(parameters(model)), long_term=long_term,
            states=states, specs=specs, objects=state_objects(model),
        )  # fmt: skip
        return binding, {name: with_strong_types(value) for name, value in values.items()}


def _optimizer(objective: Objective, strategy: Strategy, chosen: dict[str, State], reports: list[ParameterReport],
               clip: float | None, accumulate: int) -> Optimizer:  # fmt: skip
    """Create the optimizer for the parameters that the rule trains.

    A parameter without a gradient would still be moved by weight decay, so those that the rule does not train are
    left out.
    """
    untrained = {report.name for report in reports if report.trains == "no"}
    params = {name: state for name, state in chosen.items() if name not in untrained}
    if not params:
        raise ValueError(
            f"strategy {strategy.name!r} trains none of the parameters {list(chosen)}: use another strategy"
        )
    idle = {name: state for name, state in chosen.items() if name in untrained}
    return Optimizer(objective.module, params, clip=clip, accumulate=accumulate, idle=idle)
