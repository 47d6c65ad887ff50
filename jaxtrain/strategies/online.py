"""Online rules on braintrace: an eligibility trace goes forward with the network, nothing is unrolled."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

from ..metrics import Metrics, add, sum_over_time
from ..module import Objective, Phases, total_weight
from ..state import SHORT, State, gradient, name_of, states_of, where_lanes
from .base import Learner, Network, Row, Update, scored, trained, warm_up, zeros_like_parameters


def compile_rule(objective: Objective, x: Any, batch_size: int, vmapped: bool, algorithm: Any, **options: Any):
    """The braintrace learner of a model, its warnings kept for the report instead of printed."""
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return braintrace.compile(
                objective.model, algorithm, example, batch_size=batch_size, vmap=vmapped, **options
            )
        except braintrace.CompilationError as error:
            raise ValueError(
                f"no weight of {type(objective.model).__name__} reaches a hidden state through a braintrace operation: "
                "an online rule has nothing to train; build the recurrence from braintrace.nn, or use strategy='bptt'"
            ) from error


class OnlineLearner(Learner):
    """A braintrace rule driven over the two phases of a sequence.

    With ``window=1`` the gradient of each time step is taken through the rule's own step. With a longer window it is
    the gradient of the window, by reverse mode within it, plus the trace at the window's entry contracted with the
    window's gradient with respect to the hidden states at its entry.
    """

    def __init__(self, objective: Objective, rule: Any, window: int, batch_size: int):
        self.rule = rule
        # Any: which of braintrace's engines it is shows only in its attributes.
        self.inner: Any = rule.module if isinstance(rule, brainstate.nn.Vmap) else rule
        super().__init__(objective, Network(objective.model, "vmap" if rule is not self.inner else "batched"))
        self.window = window
        self.batch_size = batch_size
        self._params = trained(objective)
        hidden = {id(state) for state in self.network.hidden.values()}
        model = {id(state) for state in objective.model.states().values()}
        owned = states_of(rule).values()
        self._traces = [s for s in owned if id(s) not in model and id(s) not in hidden and isinstance(s, SHORT)]
        self._counters = [s for s in owned if id(s) not in model and not isinstance(s, SHORT)]
        # Zeros are made inside the program: a trace is too large to be one of its constants.
        self._initial = [
            (state, jax.tree.map(lambda leaf: None if not np.any(leaf) else jnp.asarray(leaf), state.value))
            for state in (*self._traces, *self._counters)
        ]

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        self.network.reset(phases.sizes[2])
        for state, initial in self._initial:
            state.value = jax.tree.map(
                lambda leaf, value: jnp.zeros_like(leaf) if value is None else value, state.value, initial
            )
        warm_up(self.objective, self.rule, phases, self._clear)
        grads, metrics = (self._step_by_step if self.window == 1 else self._windows)(scored(phases))
        return {**metrics, **update(grads, total_weight(phases))}

    def scratch(self) -> list[State]:
        return [*super().scratch(), *self._traces, *self._counters]

    def _clear(self, mask) -> None:
        """Clear hidden states and traces of the lanes in ``mask``."""
        self._reset(mask)
        if mask is not None:
            for trace in self._traces:
                shapes = {leaf.shape[:1] for leaf in jax.tree.leaves(trace.value)}
                if shapes != {mask.shape}:
                    raise ValueError(
                        f"Phases.reset needs a trace a lane, but one has leading axes {shapes} for {mask.shape[0]} "
                        "lanes: use the strategy's batching='vmap'"
                    )
                trace.value = where_lanes(mask, jax.tree.map(jnp.zeros_like, trace.value), trace.value)

    def _step_by_step(self, sequences) -> tuple[dict[str, Any], Metrics]:
        def loss(x, y, w, extras):
            return self.objective.learn(self.rule, x, y, w, extras)

        step_gradient = gradient(loss, self._params)

        def step(total, xs):
            *slices, reset = xs
            self._clear(reset)
            grads, metrics = step_gradient(*slices)
            return jax.tree.map(jnp.add, total, grads), metrics

        grads, metrics = brainstate.transform.scan(step, zeros_like_parameters(self._params), sequences)
        return grads, sum_over_time(metrics)

    def _windows(self, sequences) -> tuple[dict[str, Any], Metrics]:
        """Windows of ``window`` time steps from the first scored one on; the last may be shorter."""
        length = jax.tree.leaves(sequences)[0].shape[0]
        whole = length - length % self.window
        parts = []
        if whole:
            tiled = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, self.window, *leaf.shape[1:]), sequences)

            def step(total, window):
                grads, metrics = self._window(window)
                return jax.tree.map(jnp.add, total, grads), metrics

            grads, metrics = brainstate.transform.scan(step, zeros_like_parameters(self._params), tiled)
            parts.append((grads, sum_over_time(metrics)))
        if whole < length:
            parts.append(self._window(jax.tree.map(lambda leaf: leaf[whole:], sequences)))
        grads, metrics = parts[0]
        for more_grads, more_metrics in parts[1:]:
            grads, metrics = jax.tree.map(jnp.add, grads, more_grads), add(metrics, more_metrics)
        return grads, metrics

    def _window(self, sequences) -> tuple[dict[str, Any], Metrics]:
        entry = {name: state for name, state in self.network.hidden.items()}
        before = self._snapshot()

        def loss():
            def step(x, y, w, extras, reset):
                self._reset(reset)  # hidden states alone: the trace at the entry is still to be contracted
                return self.objective.learn(self.network, x, y, w, extras)

            losses, metrics = brainstate.transform.for_loop(step, *sequences)
            return losses.sum(), sum_over_time(metrics)

        grads, metrics = gradient(loss, {"params": self._params, "entry": entry})()
        self._restore(before)
        carried = self._contract(grads["entry"])

        def evolve(x, y, w, extras, reset):
            self._clear(reset)
            self.objective.learn(self.rule, x, y, w, extras)

        brainstate.transform.for_loop(evolve, *sequences)
        return jax.tree.map(jnp.add, grads["params"], carried), metrics

    # What is private in braintrace stands in this method alone; tests/strategies/test_online.py pins its shape.
    def _contract(self, cotangents: dict[str, Any]) -> dict[str, Any]:
        """The trace contracted with a cotangent of the hidden states, by parameter."""
        signal = [
            group.concat_hidden([u.get_mantissa(cotangents[name_of(path)]) for path in group.hidden_paths])
            for group in self.inner.graph.hidden_groups
        ]
        weights = {path: state.value for path, state in self.inner.param_states.items()}
        solved = self.inner._solve_previous_trace_gradients(
            self.inner.running_index.value, self.inner._get_etrace_data(), signal, weights
        )
        named = {name_of(path): grad for path, grad in solved.items() if grad is not None}
        return {
            name: named[name] if name in named else jax.tree.map(jnp.zeros_like, state.value)
            for name, state in self._params.items()
        }

    def _snapshot(self) -> list[tuple[State, Any]]:
        touched = [*self.network.hidden.values(), *self.inner.other_states.values(), brainstate.random.DEFAULT]
        return [(state, state.value) for state in touched]

    def _restore(self, snapshot: list[tuple[State, Any]]) -> None:
        for state, value in snapshot:
            state.value = value

    # -------------------------------------------------------------------------------------------------- report

    def report(self) -> list[Row]:
        report = self.inner.report
        single = self.inner.vjp_method == "single-step"
        sizes = self._trace_bytes()
        excluded = {name_of(path): why for path, why in report.excluded_weights}
        partial = {name_of(d.weight_path) for d in report.diagnostics if d.kind.value == "relation_partial_path"}
        bypass = set()
        if self.inner.graph.hidden_perturb is not None:
            bypass = {name_of(path) for path in self.inner.graph.hidden_perturb.bypass_param_paths}
        return [self._row(name, sizes, excluded, partial, bypass, single) for name in self._params]

    def _row(self, name, sizes, excluded, partial, bypass, single) -> Row:
        size = sizes.get(name, 0)
        if name in partial:
            return Row(name, "in part", "one of its ways into the hidden state passes through another weight", size)
        if name in sizes:
            return Row(name, "yes", "", size)
        if name in bypass or excluded.get(name) == "relation_excluded_non_temporal":
            return Row(name, "yes", "reaches the output without the hidden state: exact at every time step")
        why = "reaches the hidden state only through another weight, so no trace of it is kept"
        if single:
            return Row(name, "no", f"{why}: its gradient is exactly zero. Use vjp='multi-step'")
        return Row(name, "in part", f"{why}: its credit lies within one window. A longer window gives more")

    def _trace_bytes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for relation in self.inner.graph.hidden_param_op_relations:
            for path in set(relation.trainable_paths.values()):
                sizes.setdefault(name_of(path), 0)
                for group in relation.hidden_groups:
                    trace = self.inner.etrace_bwg.get((id(relation.y_var), group.index))
                    if trace is not None:
                        sizes[name_of(path)] += sum(leaf.nbytes for leaf in jax.tree.leaves(trace.value))
        return sizes
