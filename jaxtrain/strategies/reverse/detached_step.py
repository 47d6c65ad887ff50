"""One time step of a model as braintrace reads it, with the inputs of its traced weights held constant.

Reverse mode through such steps gives D-RTRL's gradient: braintrace's trace obeys ``e_t = D_t e_{t-1} + df_t (x) x_t``
with a block-diagonal ``D_t``. The derivative of the step equals ``D_t`` once every path through a weight is detached.
All code that depends on the structure of braintrace's graph, and of a jaxpr, is in this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import islice
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ...core.objective import Objective
from ...core.state import SHORT, State, differentiable, name_of, states_of
from ..equations import ELEMENTWISE, Irreversible, bind, follow, origins, read
from ..independence import compare, way
from ..memory import find_memory
from ..network import Network, along

DENSE = ("etp_mm", "etp_mv")
EMBEDDING = ("etp_emb", "etp_emb_v")
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

    def attach(self, memory: frozenset[int]) -> None:
        """Set ``direct``: whether it reaches only readout memory, which reverse mode differentiates directly."""
        self.direct = bool(self.groups) and self.groups <= memory
        self.groups = self.groups if self.direct else self.groups - memory

    def alone(self, weights: list[Any]) -> Any:
        """``y`` of an element-wise weight."""
        return bind(self.equation, weights)[0]

    def product(self, x: Any, weights: list[Any]) -> Any:
        """``y`` for inputs with an additional leading axis, ``(N, ...)``."""

        def one(x):
            operands = [x if place == self.x_place else None for place in range(len(self.equation.invars))]
            for place, weight in zip(self.places, weights, strict=True):
                operands[place] = weight
            return bind(self.equation, operands)[0]

        return one(x) if self.batched else jax.vmap(one)(x)


class DetachedStep:
    """The time step of a network with the inputs of its traced weights held constant.

    ``step(u, weights, perturbations)`` runs the time step on the network's States. The perturbations are added to the
    outputs ``y`` of relations, so their cotangents are those of ``y``. ``alone(u, perturbations)`` is the step of the
    single-step rule.
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
        self.network, self.mapped = network, network.vmapped or per_sequence
        self._as_batch = per_sequence and not network.vmapped
        self.batch_size = jax.tree.leaves(u)[0].shape[0]
        self._axes, self._through = network.axes(self.batch_size) if self.mapped else {}, memory
        graph, self._out_tree = self._compile(objective, u)
        self.report = braintrace.CompilationReport(graph)
        info: Any = graph.module_info
        closed = info.closed_jaxpr
        self.jaxpr, self.consts = closed.jaxpr, closed.consts
        self.states: list[State] = list(info.compiled_model_states)
        self.names = [name_of(info.state_id_to_path[id(state)]) for state in self.states]
        self._outs, self._state_outs = info.num_var_out, info.num_var_state
        self.groups = self._differentiable(graph)
        self._hidden_of = {name: index for index, names in self.groups.items() for name in names}
        self._number_variables()
        self.relations = self._relations(graph, set(trained))
        reached = {group for r in self.relations if r.trained for group in r.groups}
        self.memory = find_memory(self.jaxpr, self._short, self.groups, reached) if memory else frozenset()
        for relation in self.relations:
            relation.attach(self.memory)
        self._by_y = {id(r.y_var): i for i, r in enumerate(self.relations)}
        self._weight_equations = self._behind_weights()
        self.traced = [name for name, group in self._hidden_of.items() if group not in self.memory]
        direct = {group for r in self.relations if r.direct for group in r.groups}
        self._credited = [*self.traced, *(name for name, group in self._hidden_of.items() if group in direct)]
        for r in self.relations:
            if r.trained and not r.direct and r.name not in REVERSIBLE:
                raise Irreversible(f"{', '.join(sorted(r.paths))} acts by {r.name}, which has no reverse form here")
        self.check(group for group in self.groups if group not in self.memory)
        if self.mapped:
            self._try(u)

    # ----------------------------------------------------------------------------------------------- compiling

    def _example(self, u: Any) -> Any:
        own = 0 if self.network.vmapped else slice(0, 1) if self.mapped else slice(None)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)[own], u)

    def _compile(self, objective: Objective, u: Any) -> tuple[Any, Any]:
        """braintrace's graph of the model, for the whole batch or for one sequence, and the tree of its results."""
        example = self._example(u)
        held = {name: state.value for name, state in self.network.hidden.items()}
        try:
            if self.mapped:
                for name, state in self.network.hidden.items():
                    state.value = self._first(held[name], self._axes[name])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = braintrace.compile_etrace_graph(objective.model, example, include_hidden_perturb=False)
            model: Any = graph.module_info.stateful_model
            return graph, model.get_out_treedef_by_cache(model.get_arg_cache_key(example, compile_if_miss=True))
        finally:
            for name, state in self.network.hidden.items():
                state.value = held[name]

    def _first(self, value: Any, axes: list[int | None]) -> Any:
        """The part of a hidden state that belongs to the first sequence."""
        keep = slice(0, 1) if self._as_batch else 0
        return along(lambda leaf, axis: leaf[(slice(None),) * axis + (keep,)], value, axes)

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

    def _number_variables(self) -> None:
        """Find the variables of each state's leaves before and after the time step, and those of parameters,
        ``{id(var): (name, leaf)}``."""
        sizes = [len(jax.tree.leaves(state.value)) for state in self.states]
        invars = iter(self.jaxpr.invars[len(self.jaxpr.invars) - sum(sizes) :])
        outvars = iter(self.jaxpr.outvars[self._outs : self._outs + self._state_outs])
        self._variables = [
            (state, name, list(islice(invars, size)), list(islice(outvars, size)))
            for state, name, size in zip(self.states, self.names, sizes, strict=True)
        ]
        self._params = {
            id(var): (name, leaf)
            for state, name, ins, _ in self._variables
            if isinstance(state, brainstate.ParamState)
            for leaf, var in enumerate(ins)
        }
        self._short = {name: (ins, outs) for state, name, ins, outs in self._variables if isinstance(state, SHORT)}
        self._state_axes = [self._axes.get(name, [None] * len(ins)) for _, name, ins, _ in self._variables]

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
        free = wanted - computed - set(self._params) - {id(var) for var in self.jaxpr.constvars}
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
        return [(var, self._params[id(var)]) for var in self.jaxpr.invars if id(var) in self._params]

    def step(self, u: Any, weights: dict[int, list[Any]], perturbations: dict[int, Any]) -> tuple[Any, dict[int, Any]]:
        """Run one time step on the model's States.

        Args:
            u: The input, ``(B, ...)``.
            weights: Weights by number of the relation; the others are the model's own.
            perturbations: Perturbations by number of the relation.

        Returns:
            The outputs ``(B, ...)``, and the inputs ``x`` of the perturbed relations.
        """

        def run(u, values, weights, perturbations):
            env = self._env(u, values)
            seen = self._evaluate(env, weights, perturbations, detach=True)
            return *self._results(env), seen

        return self._map_sequences(run, u, weights, perturbations, through=False)

    def alone(self, u: Any, perturbations: dict[str, Any]) -> Any:
        """Run one time step of braintrace's single-step rule.

        The new hidden states of traced groups are held constant, apart from ``perturbations``, which are added to them.
        So parameters affect the output only on other paths. Readout memory is differentiated through its own past.
        """

        def run(u, values, _, perturbations):
            if self._as_batch:
                perturbations = {
                    name: along(jnp.expand_dims, value, self._axes[name]) for name, value in perturbations.items()
                }
            frozen = self._env(jax.lax.stop_gradient(u), [jax.lax.stop_gradient(value) for value in values])
            self._evaluate(frozen, {}, {}, detach=False, hidden=perturbations)
            env = self._env(u, values)
            self._evaluate(env, {}, {}, detach=False, given=frozen)
            return *self._results(env), None

        axes = {
            name: jax.tree.structure(perturbation).unflatten(self._axes[name])
            for name, perturbation in perturbations.items()
            if self.mapped
        }
        return self._map_sequences(run, u, {}, perturbations, perturbation_axes=axes, through=self._through)[0]

    def _map_sequences(
        self, run: Any, u: Any, weights: Any, perturbations: Any, *, through: bool, perturbation_axes: Any = 0
    ) -> tuple[Any, Any]:
        """Call ``run`` for the whole batch or for each sequence, and write the new values to the States."""
        leaves, tree = jax.tree.flatten([state.value for state in self.states])
        if not self.mapped:
            out, new, seen = run(u, tree.unflatten(leaves), weights, perturbations)
        else:
            axes = [axis for own in self._state_axes for axis in own]
            keep = lambda leaf, axis: leaf  # noqa: E731
            add, drop = (jnp.expand_dims, jnp.squeeze) if self._as_batch else (keep, keep)

            def one(u, leaves, weights, perturbations):
                u = jax.tree.map(lambda leaf: add(leaf, 0), u)
                out, new, seen = run(u, tree.unflatten(along(add, leaves, axes)), weights, perturbations)
                return jax.tree.map(lambda leaf: drop(leaf, 0), out), along(drop, jax.tree.leaves(new), axes), seen

            call: Any = jax.vmap(one, in_axes=(0, axes, None, perturbation_axes), out_axes=(0, axes, 0))
            out, new, seen = call(u, leaves, weights, perturbations)
            new = tree.unflatten(new)
        for name, state, value in zip(self.names, self.states, new, strict=True):
            if not isinstance(state, brainstate.ParamState):
                # Without readout memory, credit passes back in time only through hidden states of traced groups.
                state.value = value if through or name in self._credited else jax.lax.stop_gradient(value)
        return out, seen

    def _try(self, u: Any) -> None:
        """Raise Irreversible if a time step cannot be run one sequence at a time, or gives another result then."""
        states = sum(len(ins) for *_, ins, _ in self._variables)
        own = [*self.jaxpr.invars[: len(self.jaxpr.invars) - states]]
        each = list(zip(self._variables, self._state_axes, strict=True))
        for (*_, ins, _), axes in each:
            own += [var for var, axis in zip(ins, axes, strict=True) if axis is not None]
        found = origins(self.jaxpr, dict.fromkeys(map(id, own), ""))
        for (_, name, _, outs), axes in each:
            if any(axis is None and found(var) for var, axis in zip(outs, axes, strict=True)):
                raise Irreversible(f"the sequences share the state {name!r}, which each of them changes")
        model = self.network.model
        one_by_one = way(lambda u: self.step(u, {}, {})[0], model, u)
        if self._as_batch:
            kept = {name: s.value for name, s in states_of(model).items() if name not in self.network.hidden}
            begin = {name: state.value for name, state in self.network.hidden.items()}
            reason = compare(way(self.network, model, u), one_by_one, kept, begin, u)
            if reason:
                raise Irreversible(reason)

    # ---------------------------------------------------------------------------------------------- evaluating

    def _env(self, u: Any, values: list[Any]) -> dict[int, Any]:
        given = jax.tree.leaves((u, values))
        env = {id(var): value for var, value in zip(self.jaxpr.invars, given, strict=True)}
        return env | {id(var): const for var, const in zip(self.jaxpr.constvars, self.consts, strict=True)}

    def _evaluate(self, env, weights, perturbations, *, detach: bool, hidden=None, given=None) -> dict[int, Any]:
        """Evaluate the step into ``env``, and return the inputs of perturbed relations.

        Args:
            env: Values by id of the variable.
            weights: Weights by number of the relation; the others are the model's own.
            perturbations: Perturbations by number of the relation.
            detach: Whether to hold the inputs of traced weights constant.
            hidden: Perturbations of new hidden states, by name.
            given: An environment to take the new hidden states from.
        """
        news = {id(self._short[name][1][0]): name for name in self.traced}
        seen = {}
        for equation in self.jaxpr.eqns:
            operands = [read(env, var) for var in equation.invars]
            number = self._by_y.get(id(equation.outvars[0])) if len(equation.outvars) == 1 else None
            if number is not None:
                relation = self.relations[number]
                if relation.x_place is not None:
                    if number in perturbations:
                        seen[number] = operands[relation.x_place]
                    if detach:
                        operands[relation.x_place] = jax.lax.stop_gradient(operands[relation.x_place])
                if number in weights:
                    for place, weight in zip(relation.places, weights[number], strict=True):
                        operands[place] = weight
            outs = bind(equation, operands)
            if number is not None and number in perturbations:
                outs = [outs[0] + perturbations[number]]
            for var, out in zip(equation.outvars, outs, strict=True):
                name = news.get(id(var))
                if name is not None and hidden is not None and name in hidden:
                    out = out + hidden[name]
                if name is not None and given is not None:
                    out = given[id(var)]
                env[id(var)] = out
        return seen

    def _results(self, env: dict[int, Any]) -> tuple[Any, list[Any]]:
        outs = [read(env, var) for var in self.jaxpr.outvars[: self._outs + self._state_outs]]
        out, new = self._out_tree.unflatten(outs)
        return out, list(new)

    # ------------------------------------------------------------------------------------------------ checking

    def check(self, groups: Iterable[int]) -> None:
        """Raise Irreversible if the derivative of these groups' hidden states is not block-diagonal, as braintrace
        assumes.

        The method follows the equations that compute their new values, and collects the hidden states (by group) and
        the relations that each value depends on.
        """
        news = {name: self._short[name][1] for group in groups for name in self.groups[group]}
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
            id(var): frozenset((("hidden", self._hidden_of[name]),))
            for name in self._credited
            for var in self._short[name][0]
        }
        for equation in path[::-1]:
            number = self._by_y.get(id(equation.outvars[0]))
            if number is not None:
                depends[id(equation.outvars[0])] = frozenset((("relation", number),))
                continue
            follow(equation, depends)
        for name, outs in news.items():
            group, shape = self._hidden_of[name], outs[0].aval.shape
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
