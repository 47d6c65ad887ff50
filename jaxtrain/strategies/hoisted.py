"""Time steps of BPTT without the work that need not be inside the loop over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from brainstate.transform import StatefulFunction

from ..core.decisions import SequenceLoss
from ..core.functional import gradient
from ..core.metrics import Metrics, sum_over_time
from ..core.state import State, add_to, states_of
from .equations import bind, read
from .network import Network
from .products import Products, is_plain, matrix_gradient, merge
from .step_graph import StepGraph, walk
from .stretches import Stretch, use_of


def graph_of(network: Network, u: Any) -> StepGraph:
    """The time step of a network over a batch, whose input has the shapes and dtypes of ``u``."""
    stateful = StatefulFunction(network, return_only_write=False).make_jaxpr(u)
    key = stateful.get_arg_cache_key(u)
    names = {id(state): name for name, state in states_of(network.model).items()}
    states = list(stateful.get_states(u))
    closed, tree = stateful.get_jaxpr(u), stateful.get_out_treedef_by_cache(key)
    return StepGraph(closed, states, [names.get(id(state), "") for state in states], tree)


def gradient_in_loop(forward: Callable, params: dict[str, State], reset: Callable, stretches: list[Stretch],
                     begin: Callable[[], None]) -> tuple[dict[str, Any], Metrics]:  # fmt: skip
    """Like ``HoistedStep.gradient``, with every product inside the loop over time.

    Args:
        forward: The network over a batch.
        params: The trained parameters, by name.
        reset: Resets the sequences of a mask.
        stretches: The time steps, in order; the last stretch is scored.
        begin: Initialises the hidden states, if these time steps do.
    """

    def loss() -> tuple[jax.Array, Metrics]:
        begin()
        found: Any = None
        for stretch in stretches:

            def step(slices, mask, stretch=stretch):
                reset(mask)
                found = stretch.learn(forward, slices)
                return found if stretch.is_scored else None

            found = brainstate.transform.for_loop(step, stretch.sequences, stretch.masks)
        return _total(*found)

    return gradient(loss, params)()


def _total(losses: Any, metrics: Metrics) -> tuple[jax.Array, Metrics]:
    """The sum of ``w * loss`` and the metrics, of what ``Objective.learn`` returned for each time step."""
    if isinstance(losses, SequenceLoss):
        loss = losses.over_time()
        return loss.num, {**sum_over_time(metrics), "loss": loss}
    return losses.sum(), sum_over_time(metrics)


class HoistedStep:
    """A time step whose products with weights are partly computed outside of the loop over time.

    Products of inputs with weights are computed for all time steps before the loop, and the gradients of weights after
    it, by one product each. What remains in the loop and in its derivative are products with what depends on states.

    If a module's step calls ``forward`` more or less than once, nothing is moved. If the inputs depend on States, such
    as random numbers, only the gradients of weights are.

    Args:
        network: The network over a batch.
        params: The trained parameters, by name.
        reset: Resets the sequences of a mask.
    """

    def __init__(self, network: Network, params: dict[str, State], reset: Callable):
        self.network, self._params, self._reset = network, params, reset

    def _trace(self, u: Any, inputs_known: bool) -> None:
        """Trace the time step for inputs with the shapes and dtypes of ``u``, and find its products."""
        self._graph = graph_of(self.network, u)
        self._products = Products(self._graph)
        if not inputs_known:
            self._products.split.clear()
        trained = {var for var, (name, _) in self._graph.params.items() if name in self._params}
        self._trained_places = {
            k: [place for place, var in enumerate(equation.invars) if id(var) in trained]
            for k, equation in enumerate(self._products.equations)
            if equation.primitive.name in ("etp_mm", "etp_emb")
            and all(id(var) in trained for var in equation.invars[1:])
        }

    def gradient(self, stretches: list[Stretch], begin: Callable[[], None]) -> tuple[dict[str, Any], Metrics]:
        """Gradients of the sum of ``w * loss`` over consecutive time steps, and the metrics.

        Args:
            stretches: The time steps, in order; the last stretch is scored.
            begin: Initialises the hidden states, if these time steps do.
        """
        key = brainstate.random.DEFAULT.value
        begin()  # the time step is traced for hidden states of this batch
        brainstate.random.DEFAULT.value = key
        use = use_of(self.network, stretches)
        if not use.once:
            return gradient_in_loop(self.network, self._params, self._reset, stretches, begin)
        self._trace(use.u, use.inputs_known)
        shapes = {k: self._products.equations[k].outvars[0].aval for k in self._trained_places}
        perturbations = {
            f"{number}.{k}": brainstate.State(jnp.zeros((stretch.length, *aval.shape), aval.dtype))
            for number, stretch in enumerate(stretches)
            for k, aval in shapes.items()
        }

        def loss() -> tuple[jax.Array, tuple[Metrics, list[Any]]]:
            begin()
            total, metrics, inputs = jnp.zeros(()), None, []
            for number, stretch in enumerate(stretches):
                given = {k: perturbations[f"{number}.{k}"].value for k in self._trained_places}
                found, seen = self._run(stretch, given)
                inputs.append(seen)
                if found is not None:
                    total, metrics = _total(*found)
            assert metrics is not None
            return total, (metrics, inputs)

        states = {"params": self._params, "outputs": perturbations}
        grads, (metrics, inputs) = gradient(loss, states)()
        found = dict(grads["params"])
        for k in self._trained_places:
            parts = [seen[k] for seen in inputs]
            deltas = [grads["outputs"][f"{number}.{k}"] for number in range(len(stretches))]
            joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), jnp.concatenate(deltas)
            for name, leaves in self._weight_gradients(k, *joined).items():
                flat, tree = jax.tree.flatten(found[name])
                found[name] = tree.unflatten(
                    [f if i not in leaves else add_to(f, leaves[i]) for i, f in enumerate(flat)]
                )
        return found, metrics

    def _run(self, stretch: Stretch, perturbations: dict[int, Any]) -> tuple[Any, dict[int, Any]]:
        """Losses and metrics of some time steps, or None, and the inputs of the products, ``(T, B, ...)``."""
        learn, sequences, masks, is_scored = stretch
        given = {k: x for k, x in self._products.outside_inputs(stretch).items() if k in self._trained_places}
        outside = self._products.outside_products(given)

        def step(slices, mask, outside, perturbations):
            box: list[Any] = []
            self._reset(mask)
            found = learn(lambda u: self._forward(u, outside, perturbations, box), slices)
            return (found if is_scored else None), box[0]

        found, inside = brainstate.transform.for_loop(step, sequences, masks, outside, perturbations)
        given = {k: (jax.lax.stop_gradient(x),) for k, x in given.items()}
        return found, {k: (*given.get(k, ()), *inside[k]) for k in self._trained_places}

    def _forward(self, u: Any, outside: dict[int, Any], perturbations: dict[int, Any], box: list[Any]) -> Any:
        def body(env: dict[int, Any], _: Any) -> dict[int, tuple[Any, ...]]:
            inside: dict[int, tuple[Any, ...]] = {}

            def outs_of(equation: Any, operands: list[Any]) -> list[Any]:
                k = self._products.number.get(id(equation))
                if k not in self._trained_places:
                    return bind(equation, operands)
                for place in self._trained_places[k]:
                    operands[place] = jax.lax.stop_gradient(operands[place])
                if k not in self._products.split:
                    inside[k] = (operands[0],)
                    return [bind(equation, operands)[0] + perturbations[k]]
                _, var, width = self._products.split[k]
                inside[k] = () if var is None else (read(env, var),)
                within = [z @ operands[1][width:] for z in inside[k]]
                return [sum(within, outside[k]) + perturbations[k]]

            walk(self._graph.jaxpr.eqns, env, outs_of)
            return jax.lax.stop_gradient(inside)

        out, inside = self._graph.evaluate(u, body)
        box.append(inside)
        return out

    def _weight_gradients(self, k: int, parts: tuple[Any, ...], delta: Any) -> dict[str, dict[int, Any]]:
        """Gradients by parameter and leaf, from inputs and cotangents of the outputs of a product."""
        equation, places = self._products.equations[k], self._trained_places[k]
        if is_plain(equation):
            grads = [matrix_gradient(parts, delta), *([merge(delta, 1).sum(0)] if len(places) > 1 else [])]
        else:
            weights = self._products.weights(k)
            x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
            x, kept = merge(x, x.ndim - 2), delta.ndim - 2

            def product(chosen: list[Any]) -> Any:
                operands = [x, *weights[1:]]
                for place, weight in zip(places, chosen, strict=True):
                    operands[place] = weight
                return bind(equation, operands)[0]

            grads = jax.vjp(product, [weights[place] for place in places])[1](merge(delta, kept))[0]
        found: dict[str, dict[int, Any]] = {}
        for place, grad in zip(places, grads, strict=True):
            name, leaf = self._graph.params[id(equation.invars[place])]
            found.setdefault(name, {})[leaf] = grad
        return found
