"""One time step of a model as braintrace reads it, with the inputs of its traced weights held constant.

Reverse mode through such steps gives D-RTRL's gradient: braintrace's trace obeys ``e_t = D_t e_{t-1} + df_t (x) x_t``
with a block-diagonal ``D_t``, which is what the step's derivative becomes once every path through a weight is cut.
Everything that depends on the shape of braintrace's graph, and of a jaxpr, stands in this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ..module import Objective
from ..state import State, name_of
from .base import Network

DENSE = ("etp_mm", "etp_mv")
EMBEDDING = ("etp_emb", "etp_emb_v")
ELEMENTWISE = "etp_elemwise"
BATCHED = ("etp_mm", "etp_emb")
"""Primitives whose input carries an axis of lanes; the others take one lane's."""
REVERSIBLE = (*DENSE, *EMBEDDING, ELEMENTWISE, "etp_gmm", "etp_gmv", "etp_lora_mm", "etp_lora_mv")

POINTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj convert_element_type copy copy_p "
    "cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt heaviside_surrogate_gradient imag integer_pow "
    "is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow real rem round rsqrt select_n "
    "sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
RESHAPES = frozenset(("broadcast_in_dim", "expand_dims", "reshape", "squeeze"))


class Irreversible(Exception):
    """What in a model keeps the reverse form from giving D-RTRL's gradient."""


class Relation:
    """One operation whose weights are traced: ``y = primitive(x, weights)``, and the hidden states that it reaches."""

    def __init__(self, found: Any, equation: Any, trained: bool):
        self.equation, self.name = equation, found.primitive.name
        self.y_var, self.x_var = found.y_var, found.x_var
        self.paths = {name_of(path) for path in found.trainable_paths.values()}
        self.groups = {group.index for group in found.hidden_groups}
        own = {id(var) for var in found.trainable_vars.values()}
        self.places = [i for i, var in enumerate(equation.invars) if id(var) in own]
        self.x_place = next((i for i, var in enumerate(equation.invars) if var is found.x_var), None)
        self.trained = trained
        self.batched = self.name in BATCHED

    def alone(self, weights: list[Any]) -> Any:
        """``y`` of an element-wise weight."""
        return bind(self.equation, weights)[0]

    def product(self, x: Any, weights: list[Any]) -> Any:
        """``y`` for inputs with one further leading axis, ``(N, ...)``."""

        def one(x):
            operands = [x if place == self.x_place else None for place in range(len(self.equation.invars))]
            for place, weight in zip(self.places, weights, strict=True):
                operands[place] = weight
            return bind(self.equation, operands)[0]

        return one(x) if self.batched else jax.vmap(one)(x)


class Cut:
    """The cut step of a network.

    ``step(u, weights, nudges)`` runs the network's time step on its States; ``nudges`` are added to the outputs ``y``
    of relations, so that their cotangents are those of ``y``. ``alone(u, nudges)`` is the single-step rule's step.
    """

    def __init__(self, objective: Objective, network: Network, u: Any, trained: Iterable[str], *, lanes: bool = False):
        """``lanes=True``: a batched model is compiled for one lane and mapped, so that every relation has lanes."""
        self.network, self.mapped, self._as_batch = network, network.vmapped or lanes, lanes and not network.vmapped
        self.lanes = jax.tree.leaves(u)[0].shape[0]
        graph, self._out_tree = self._compile(objective, u)
        self.report = braintrace.CompilationReport(graph)
        info: Any = graph.module_info
        closed = info.closed_jaxpr
        self.jaxpr, self.consts = closed.jaxpr, closed.consts
        self.states: list[State] = list(info.compiled_model_states)
        self.names = [name_of(info.state_id_to_path[id(state)]) for state in self.states]
        self.groups = {group.index: [name_of(path) for path in group.hidden_paths] for group in graph.hidden_groups}
        self._outs, self._state_outs = info.num_var_out, info.num_var_state
        self._hidden_of = {name: index for index, names in self.groups.items() for name in names}
        self._number_variables()
        self.relations = self._relations(graph, set(trained))
        self._by_y = {id(r.y_var): i for i, r in enumerate(self.relations)}
        self._weight_equations = self._behind_weights()
        self._check()

    # ----------------------------------------------------------------------------------------------- compiling

    def _example(self, u: Any) -> Any:
        cut = 0 if self.network.vmapped else slice(0, 1) if self.mapped else slice(None)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)[cut], u)

    def _compile(self, objective: Objective, u: Any) -> tuple[Any, Any]:
        """braintrace's graph of the model, for the whole batch or for one lane, and the tree of what a call returns."""
        example = self._example(u)
        held = {name: state.value for name, state in self.network.hidden.items()}
        try:
            if self.mapped:
                for name, state in self.network.hidden.items():
                    state.value = jax.tree.map(lambda leaf: leaf[:1] if self._as_batch else leaf[0], held[name])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = braintrace.compile_etrace_graph(objective.model, example, include_hidden_perturb=False)
            model: Any = graph.module_info.stateful_model
            return graph, model.get_out_treedef_by_cache(model.get_arg_cache_key(example, compile_if_miss=True))
        finally:
            for name, state in self.network.hidden.items():
                state.value = held[name]

    def _number_variables(self) -> None:
        """Which invars are a state's leaves: ``{id(var): (state name, leaf)}``, and the outvars of hidden states."""
        sizes = [len(jax.tree.leaves(state.value)) for state in self.states]
        invars = self.jaxpr.invars[len(self.jaxpr.invars) - sum(sizes) :]
        outvars = self.jaxpr.outvars[self._outs : self._outs + self._state_outs]
        self._params, self._inputs, self._news = {}, {}, {}
        first = 0
        for name, state, size in zip(self.names, self.states, sizes, strict=True):
            own = slice(first, first + size)
            if isinstance(state, brainstate.ParamState):
                self._params |= {id(var): (name, leaf) for leaf, var in enumerate(invars[own])}
            elif isinstance(state, brainstate.HiddenState):
                self._inputs |= {id(var): name for var in invars[own]}
                self._news[name] = list(outvars[own])
            first += size

    def _relations(self, graph: Any, trained: set[str]) -> list[Relation]:
        equations = {id(e.outvars[0]): e for e in self.jaxpr.eqns if len(e.outvars) == 1}
        relations = []
        for found in graph.hidden_param_op_relations:
            if found.control_flow_context is not None or id(found.y_var) not in equations:
                raise Irreversible("a traced weight acts within a loop inside the time step")
            paths = {name_of(path) for path in found.trainable_paths.values()}
            relations.append(Relation(found, equations[id(found.y_var)], bool(paths & trained)))
        return relations

    def _behind_weights(self) -> list[Any]:
        """The equations between parameters and what a relation takes as its weights."""
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
        made = {id(var) for equation in kept for var in equation.outvars}
        free = wanted - made - set(self._params) - {id(var) for var in self.jaxpr.constvars}
        if free:
            raise Irreversible("a traced weight is made from more than parameters")
        return kept[::-1]

    # ------------------------------------------------------------------------------------------------ the rule

    def weights(self, params: dict[str, list[Any]]) -> list[list[Any]]:
        """What each relation takes as its weights, from the leaves of the parameters. To be differentiated."""
        env = {id(var): params[name][leaf] for var, (name, leaf) in self._named_params()}
        env |= {id(var): const for var, const in zip(self.jaxpr.constvars, self.consts, strict=True)}
        for equation in self._weight_equations:
            outs = bind(equation, [read(env, var) for var in equation.invars])
            env |= {id(var): out for var, out in zip(equation.outvars, outs, strict=True)}
        return [[read(env, r.equation.invars[place]) for place in r.places] for r in self.relations]

    def _named_params(self):
        return [(var, self._params[id(var)]) for var in self.jaxpr.invars if id(var) in self._params]

    def step(self, u: Any, weights: dict[int, list[Any]], nudges: dict[int, Any]) -> tuple[Any, dict[int, Any]]:
        """One time step: the model's States are written; gives its outputs ``(B, ...)`` and the inputs ``x`` of the
        nudged relations. ``weights``, ``nudges``: by number of the relation; weights left out are the model's own.
        """

        def run(u, values, weights, nudges):
            env = self._env(u, values)
            seen = self._evaluate(env, weights, nudges, cut=True)
            return *self._results(env), seen

        return self._over_lanes(run, u, weights, nudges)

    def alone(self, u: Any, nudges: dict[str, Any]) -> Any:
        """One time step whose output depends on the parameters only where they do not act through the new hidden
        states, and on ``nudges``, which are added to the new hidden states: braintrace's single-step rule."""

        def run(u, values, _, nudges):
            frozen = self._env(jax.lax.stop_gradient(u), [jax.lax.stop_gradient(value) for value in values])
            self._evaluate(frozen, {}, {}, cut=False, hidden=nudges)
            env = self._env(u, values)
            self._evaluate(env, {}, {}, cut=False, given=frozen)
            return *self._results(env), None

        if self._as_batch:
            nudges = jax.tree.map(lambda leaf: leaf[:, None], nudges)
        return self._over_lanes(run, u, {}, nudges)[0]

    def _over_lanes(self, run: Any, u: Any, weights: Any, nudges: Any) -> tuple[Any, Any]:
        values = [state.value for state in self.states]
        if not self.mapped:
            out, new, seen = run(u, values, weights, nudges)
        else:
            own = [0 if isinstance(state, brainstate.HiddenState) else None for state in self.states]
            call: Any = jax.vmap(run, in_axes=(0, own, None, 0), out_axes=(0, own, 0))
            if self._as_batch:
                one = lambda tree: jax.tree.map(lambda leaf: leaf[:, None], tree)  # noqa: E731
                values = [one(value) if axis == 0 else value for value, axis in zip(values, own, strict=True)]
                out, new, seen = call(one(u), values, weights, nudges)
                drop = lambda tree: jax.tree.map(lambda leaf: leaf[:, 0], tree)  # noqa: E731
                out, new = drop(out), [drop(v) if a == 0 else v for v, a in zip(new, own, strict=True)]
            else:
                out, new, seen = call(u, values, weights, nudges)
        for name, state, value in zip(self.names, self.states, new, strict=True):
            if not isinstance(state, brainstate.ParamState):
                # Credit goes back in time through hidden states alone.
                state.value = value if name in self._hidden_of else jax.lax.stop_gradient(value)
        return out, seen

    # ---------------------------------------------------------------------------------------------- evaluating

    def _env(self, u: Any, values: list[Any]) -> dict[int, Any]:
        given = jax.tree.leaves((u, values))
        env = {id(var): value for var, value in zip(self.jaxpr.invars, given, strict=True)}
        return env | {id(var): const for var, const in zip(self.jaxpr.constvars, self.consts, strict=True)}

    def _evaluate(self, env, weights, nudges, *, cut: bool, hidden=None, given=None) -> dict[int, Any]:
        """Fills ``env``; gives the inputs of nudged relations.

        ``hidden``: what to add to new hidden states. ``given``: an environment whose new hidden states are taken.
        """
        news = {id(var): name for name, (var, *_) in self._news.items()}
        seen = {}
        for equation in self.jaxpr.eqns:
            operands = [read(env, var) for var in equation.invars]
            number = self._by_y.get(id(equation.outvars[0])) if len(equation.outvars) == 1 else None
            if number is not None:
                relation = self.relations[number]
                if relation.x_place is not None:
                    if number in nudges:
                        seen[number] = operands[relation.x_place]
                    if cut:
                        operands[relation.x_place] = jax.lax.stop_gradient(operands[relation.x_place])
                if number in weights:
                    for place, weight in zip(relation.places, weights[number], strict=True):
                        operands[place] = weight
            outs = bind(equation, operands)
            if number is not None and number in nudges:
                outs = [outs[0] + nudges[number]]
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

    def _check(self) -> None:
        """Raise Irreversible where the cut step's derivative is not block-diagonal as braintrace takes it to be.

        Follows, along the equations that the new hidden states need, which hidden states (by group) and which
        relations a value depends on.
        """
        for r in self.relations:
            if r.trained and r.name not in REVERSIBLE:
                raise Irreversible(f"{', '.join(sorted(r.paths))} acts by {r.name}, which has no reverse form here")
        needed = {id(var) for news in self._news.values() for var in news if not isinstance(var, Literal)}
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
            var: frozenset((("hidden", self._hidden_of.get(name, name)),)) for var, name in self._inputs.items()
        }
        for equation in path[::-1]:
            number = self._by_y.get(id(equation.outvars[0]))
            if number is not None:
                depends[id(equation.outvars[0])] = frozenset((("relation", number),))
                continue
            _follow(equation, depends)
        shapes = {name: news[0].aval.shape for name, news in self._news.items()}
        for name, news in self._news.items():
            group = self._hidden_of.get(name, name)
            for kind, number in frozenset().union(*(depends.get(id(var), frozenset()) for var in news)):
                if kind == "hidden" and number != group:
                    raise Irreversible(f"the hidden state {name!r} depends on one of another group, not by a weight")
                if kind == "relation":
                    relation = self.relations[number]
                    y = relation.y_var.aval.shape
                    if group not in relation.groups:
                        raise Irreversible(f"{sorted(relation.paths)} reaches {name!r}, which braintrace leaves out")
                    if y not in (shapes[name], shapes[name][1:]):
                        raise Irreversible(
                            f"{', '.join(sorted(relation.paths))} gives {y} where the hidden state {name!r} has "
                            f"{shapes[name]}: positions are mixed between the two"
                        )


def _follow(equation: Any, depends: dict[int, frozenset]) -> None:
    """Write what an equation's results depend on, refusing one that mixes positions."""
    ins = [(var, depends[id(var)]) for var in equation.invars if not isinstance(var, Literal) and id(var) in depends]
    if not ins:
        return
    name = equation.primitive.name
    inner = next((equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params), None)
    if inner is not None and name not in ("scan", "while", "cond"):
        body = getattr(inner, "jaxpr", inner)
        if len(body.invars) != len(equation.invars):
            raise Irreversible(f"{name} within the time step cannot be followed")
        within = {
            id(to): depends[id(var)]
            for var, to in zip(equation.invars, body.invars, strict=True)
            if not isinstance(var, Literal) and id(var) in depends
        }
        for sub in body.eqns:
            _follow(sub, within)
        for var, out in zip(equation.outvars, body.outvars, strict=True):
            if not isinstance(out, Literal) and id(out) in within:
                depends[id(var)] = within[id(out)]
        return
    for var, _ in ins:
        for out in equation.outvars:
            suffix = _plain(var.aval.shape)
            fits = name in POINTWISE or name in RESHAPES
            if not fits or out.aval.shape[len(out.aval.shape) - len(suffix) :] != suffix:
                raise Irreversible(f"{name} mixes positions on the way from a weight or a hidden state to the next one")
            if name == "broadcast_in_dim":
                dims, rank = equation.params["broadcast_dimensions"], len(out.aval.shape)
                if tuple(dims) != tuple(range(rank - len(dims), rank)):
                    raise Irreversible("an axis is put in on the way from a weight or a hidden state to the next one")
    union = frozenset().union(*(of for _, of in ins))
    for out in equation.outvars:
        depends[id(out)] = union


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def read(env: dict[int, Any], var: Any) -> Any:
    return var.val if isinstance(var, Literal) else env[id(var)]


def bind(equation: Any, operands: list[Any]) -> list[Any]:
    primitive = equation.primitive
    made = primitive.get_bind_params(equation.params)  # jax < 0.11 returns (functions, params), later the params alone
    functions, params = made if isinstance(made, tuple) else ((), made)
    with equation.ctx.manager:
        out = primitive.bind(*functions, *operands, **params)
    return list(out) if primitive.multiple_results else [out]
