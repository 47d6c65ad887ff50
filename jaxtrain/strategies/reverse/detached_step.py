"""One time step of a model as braintrace reads it, with the inputs of its traced weights held constant.

Reverse mode through such steps gives the gradient of a rule with a linear trace: braintrace's trace obeys
``e_t = D_t e_{t-1} + df_t (x) x_t`` with a block-diagonal ``D_t``. The derivative of the step equals ``D_t`` once every
path through a weight is detached. All code that depends on the structure of braintrace's graph is in this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import braintrace
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ...core.objective import Objective
from ...core.state import State, differentiable, name_of, states_of
from ..equations import ELEMENTWISE, Irreversible, bind, follow, origins, read
from ..independence import compare, way
from ..memory import find_memory
from ..network import Network, along
from ..products import DENSE, EMBEDDING
from ..step_graph import StepGraph

BATCHED = ("etp_mm", "etp_emb")
"""Primitives whose input has a batch axis; the others take the input of one sequence."""
REVERSIBLE = (*DENSE, *EMBEDDING, ELEMENTWISE, "etp_gmm", "etp_gmv", "etp_lora_mm", "etp_lora_mv")


class Relation:
    """One operation whose weights are traced: ``y = primitive(x, weights)``, and the hidden states that it reaches."""

    def __init__(self, found: Any, equation: Any, groups: set[int], trained: bool):
        self.equation, self.name = equation, found.primitive.name
        self.y_var, self.x_var = found.y_var, found.x_var
        self.paths = {name_of(path) for path in found.trainable_paths.values()}
        self.groups, self.direct = groups, False
        own = {id(var) for var in found.trainable_vars.values()}
        self.places = [i for i, var in enumerate(equation.invars) if id(var) in own]
        self.x_place = next((i for i, var in enumerate(equation.invars) if var is found.x_var), None)
        self.trained = trained
        self.batched = self.name in BATCHED

    @property
    def detached(self) -> bool:
        """Whether its weights are trained and have a trace."""
        return self.trained and not self.direct

    def attach(self, memory: frozenset[int]) -> None:
        """Set ``direct``: whether it reaches only readout memory, which reverse mode differentiates directly."""
        self.direct = bool(self.groups) and self.groups <= memory
        self.groups = self.groups if self.direct else self.groups - memory

    def alone(self, weights: list[Any], cotangent: Any) -> list[Any]:
        """Gradients of an element-wise weight from the cotangent of ``y``."""
        return jax.vjp(lambda w: bind(self.equation, w)[0], weights)[1](cotangent.reshape(self.y_var.aval.shape))[0]

    def product(self, x: Any, weights: list[Any]) -> Any:
        """``y`` for inputs with an additional leading axis, ``(N, ...)``."""

        def one(x):
            operands = [x if place == self.x_place else None for place in range(len(self.equation.invars))]
            for place, weight in zip(self.places, weights, strict=True):
                operands[place] = weight
            return bind(self.equation, operands)[0]

        return one(x) if self.batched else jax.vmap(one)(x)


class DetachedStep(StepGraph):
    """The time step of a network with the inputs of its traced weights held constant.

    It reads braintrace's graph, and checks that the derivative of the step is block-diagonal. ``KnownProducts``
    evaluates its equations.

    Attributes:
        relations: The operations with a traced weight.
        groups: The names of the hidden states of each of braintrace's groups.
        traced: The hidden states that have a trace.
        credited: These, and the readout memory that trained weights reach.
    """

    def __init__(self, objective: Objective, network: Network, u: Any, trained: Iterable[str], *,
                 per_sequence: bool = False, memory: bool = False):  # fmt: skip
        """Compile the model.

        Args:
            objective: The module, with its model and its loss.
            network: The model over a batch.
            u: Shapes and dtypes of the input.
            trained: Names of the trained parameters.
            per_sequence: Compile a batched model for one sequence and map it, so that every relation has a batch axis.
            memory: Find the groups of hidden states that are readout memory.

        Raises:
            Irreversible: The model does not fit.
        """
        self.network, mapped = network, network.vmapped or per_sequence
        as_batch, self.batch_size = per_sequence and not network.vmapped, jax.tree.leaves(u)[0].shape[0]
        axes = network.axes(self.batch_size) if mapped else None
        graph, out_tree = self._compile(objective, u, axes, as_batch)
        self.report, info = braintrace.CompilationReport(graph), graph.module_info
        states: list[State] = list(info.compiled_model_states)
        names = [name_of(info.state_id_to_path[id(state)]) for state in states]
        super().__init__(info.closed_jaxpr, states, names, out_tree, axes=axes, as_batch=as_batch)
        self.groups = self._differentiable(graph)
        self.hidden_of = {name: index for index, names in self.groups.items() for name in names}
        self.relations = self._relations(graph, set(trained))
        reached = {group for r in self.relations if r.trained for group in r.groups}
        self.memory = find_memory(self.jaxpr, self.short, self.groups, reached) if memory else frozenset()
        for relation in self.relations:
            relation.attach(self.memory)
        self._by_y = {id(r.y_var): i for i, r in enumerate(self.relations)}
        self._weight_equations = self._behind_weights()
        self.traced = [name for name, group in self.hidden_of.items() if group not in self.memory]
        direct = {group for r in self.relations if r.direct for group in r.groups}
        self.credited = [*self.traced, *(name for name, group in self.hidden_of.items() if group in direct)]
        for r in self.relations:
            if r.detached and r.name not in REVERSIBLE:
                raise Irreversible(f"{', '.join(sorted(r.paths))} acts by {r.name}, which has no reverse form here")
        self.check(group for group in self.groups if group not in self.memory)
        if self.mapped:
            self._try(u)

    # ----------------------------------------------------------------------------------------------- compiling

    def _compile(self, objective: Objective, u: Any, axes: Any, as_batch: bool) -> tuple[Any, Any]:
        """braintrace's graph of the model, for the whole batch or for one sequence, and the tree of its results."""
        first = slice(0, 1) if as_batch else 0
        whole = slice(None) if axes is None else first
        example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)[whole], u)
        held = {name: state.value for name, state in self.network.hidden.items()}
        try:
            if axes is not None:
                for name, state in self.network.hidden.items():
                    state.value = along(
                        lambda leaf, axis: leaf[(slice(None),) * axis + (first,)], held[name], axes[name]
                    )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph: Any = braintrace.compile_etrace_graph(objective.model, example, include_hidden_perturb=False)
            model: Any = graph.module_info.stateful_model
            return graph, model.get_out_treedef_by_cache(model.get_arg_cache_key(example, compile_if_miss=True))
        finally:
            for name, state in self.network.hidden.items():
                state.value = held[name]

    @property
    def chosen(self) -> list[int]:
        """The relations whose weights are trained and have a trace."""
        return [i for i, relation in enumerate(self.relations) if relation.detached]

    def _differentiable(self, graph: Any) -> dict[int, list[str]]:
        """The hidden states of each group, without integers and flags."""
        values = dict(zip(self.names, (state.value for state in self.states), strict=True))
        inexact = {name for name, value in values.items() if differentiable(value)}
        groups = {
            g.index: [name_of(path) for path in g.hidden_paths if name_of(path) in inexact] for g in graph.hidden_groups
        }
        return {index: names for index, names in groups.items() if names}

    def units_of(self, name: str) -> int | None:
        """The number of units of a hidden state ``(B, ...)``; None if its batch axis is not the first."""
        (leaf,) = jax.tree.leaves(self.network.hidden[name].value)
        first = self._axes[name] == [0] if self.mapped else leaf.shape[:1] == (self.batch_size,)
        return leaf.size // self.batch_size if first else None

    def _relations(self, graph: Any, trained: set[str]) -> list[Relation]:
        equations = {id(e.outvars[0]): e for e in self.jaxpr.eqns if len(e.outvars) == 1}
        relations = []
        for found in graph.hidden_param_op_relations:
            if found.control_flow_context is not None or id(found.y_var) not in equations:
                raise Irreversible("a traced weight acts within a loop inside the time step")
            paths = {name_of(path) for path in found.trainable_paths.values()}
            groups = {group.index for group in found.hidden_groups} & self.groups.keys()
            relations.append(Relation(found, equations[id(found.y_var)], groups, bool(paths & trained)))
        return relations

    def _behind_weights(self) -> list[Any]:
        """The equations that compute the weights of relations from parameters."""
        wanted = {
            id(r.equation.invars[place])
            for r in self.relations
            for place in r.places
            if not isinstance(r.equation.invars[place], Literal)
        }
        kept = []
        for equation in reversed(self.jaxpr.eqns):
            if any(id(var) in wanted for var in equation.outvars):
                kept.append(equation)
                wanted |= {id(var) for var in equation.invars if not isinstance(var, Literal)}
        computed = {id(var) for equation in kept for var in equation.outvars}
        free = wanted - computed - set(self.params) - {id(var) for var in self.jaxpr.constvars}
        if free:
            raise Irreversible("a traced weight is computed from more than parameters")
        return kept[::-1]

    # ------------------------------------------------------------------------------------------------ the rule

    def weights(self, params: dict[str, list[Any]]) -> list[list[Any]]:
        """Compute the weights of each relation from the leaves of the parameters. Reverse mode differentiates this."""
        env = {id(var): params[name][leaf] for var, (name, leaf) in self._named_params()}
        env |= {id(var): const for var, const in zip(self.jaxpr.constvars, self.consts, strict=True)}
        for equation in self._weight_equations:
            outs = bind(equation, [read(env, var) for var in equation.invars])
            env |= {id(var): out for var, out in zip(equation.outvars, outs, strict=True)}
        return [[read(env, r.equation.invars[place]) for place in r.places] for r in self.relations]

    def parameter_groups(self) -> dict[str, set[int]]:
        """The groups of hidden states that each parameter acts on through its relations."""
        groups: dict[str, set[int]] = {}
        for relation in self.relations:
            for name in relation.paths:
                groups.setdefault(name, set()).update(relation.groups)
        return groups

    def _named_params(self):
        return [(var, self.params[id(var)]) for var in self.jaxpr.invars if id(var) in self.params]

    def _try(self, u: Any) -> None:
        """Raise Irreversible if a time step cannot be run one sequence at a time, or gives another result then."""
        states = sum(len(ins) for *_, ins, _ in self.variables)
        own = [*self.jaxpr.invars[: len(self.jaxpr.invars) - states]]
        each = list(zip(self.variables, self._state_axes, strict=True))
        for (*_, ins, _), axes in each:
            own += [var for var, axis in zip(ins, axes, strict=True) if axis is not None]
        found = origins(self.jaxpr, dict.fromkeys(map(id, own), ""))
        for (_, name, _, outs), axes in each:
            if any(axis is None and found(var) for var, axis in zip(outs, axes, strict=True)):
                raise Irreversible(f"the sequences share the state {name!r}, which each of them changes")
        model = self.network.model
        one_by_one = way(lambda u: self.evaluate(u, self.equation_by_equation)[0], model, u)
        if self.as_batch:
            kept = {name: s.value for name, s in states_of(model).items() if name not in self.network.hidden}
            begin = {name: state.value for name, state in self.network.hidden.items()}
            reason = compare(way(self.network, model, u), one_by_one, kept, begin, u)
            if reason:
                raise Irreversible(reason)

    # ---------------------------------------------------------------------------------------------- evaluating

    def relation_of(self, equation: Any) -> Any:
        """The number of the relation that an equation computes, or None."""
        return self._by_y.get(id(equation.outvars[0])) if len(equation.outvars) == 1 else None

    # ------------------------------------------------------------------------------------------------ checking

    def check(self, groups: Iterable[int]) -> None:
        """Raise Irreversible if the derivative of these groups' hidden states is not block-diagonal, as braintrace
        assumes.

        The method follows the equations that compute their new values, and collects the hidden states (by group) and
        the relations that each value depends on.
        """
        news = {name: self.short[name][1] for group in groups for name in self.groups[group]}
        needed = {id(var) for outs in news.values() for var in outs if not isinstance(var, Literal)}
        path = []
        for equation in reversed(self.jaxpr.eqns):
            if any(id(var) in needed for var in equation.outvars):
                path.append(equation)
                if id(equation.outvars[0]) in self._by_y:
                    relation = self.relations[self._by_y[id(equation.outvars[0])]]
                    needed |= {id(equation.invars[place]) for place in relation.places}
                else:
                    needed |= {id(var) for var in equation.invars if not isinstance(var, Literal)}
        depends: dict[int, frozenset] = {
            id(var): frozenset((("hidden", self.hidden_of[name]),))
            for name in self.credited
            for var in self.short[name][0]
        }
        for equation in path[::-1]:
            number = self._by_y.get(id(equation.outvars[0]))
            if number is not None:
                depends[id(equation.outvars[0])] = frozenset((("relation", number),))
                continue
            follow(equation, depends)
        for name, outs in news.items():
            group, shape = self.hidden_of[name], outs[0].aval.shape
            for kind, number in frozenset().union(*(depends.get(id(var), frozenset()) for var in outs)):
                if kind == "hidden" and number != group:
                    raise Irreversible(
                        f"the hidden state {name!r} depends on another group without a weight in between"
                    )
                if kind == "relation":
                    relation = self.relations[number]
                    y = relation.y_var.aval.shape
                    if group not in relation.groups:
                        raise Irreversible(
                            f"{sorted(relation.paths)} reaches {name!r}, which braintrace does not trace"
                        )
                    if y not in (shape, shape[1:]):
                        raise Irreversible(
                            f"{', '.join(sorted(relation.paths))} has outputs of shape {y}, but the hidden state "
                            f"{name!r} has shape {shape}: positions are mixed between the two"
                        )
