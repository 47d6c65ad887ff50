"""The learner of braintrace's online rules: an eligibility trace advances with the network, nothing is unrolled."""

from __future__ import annotations

import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

from ..core.allocation import require_room_for_traces
from ..core.functional import gradient
from ..core.metrics import Metrics
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import SHORT, State, differentiable, is_key, name_of, states_of
from .axes import where_sequences
from .base import Learner, ParameterReport, Update, score, score_by_step, trained, warm_up, zeros_like_parameters
from .flow import Flow
from .network import Network
from .parameter_report import START, Traces, describe
from .specs.base import ONE_STEP, Reach
from .update_schedule import SEQUENCE, UpdateSchedule, over_tiles

UPSTREAM = Path(str(braintrace.__file__)).parent
STRAY = "no hidden group claims"
"""Part of braintrace's message about a hidden state that is a copy of another one."""


def refused(error: Exception) -> bool:
    """Whether braintrace itself raised the exception, rather than the model."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = Path(frame.f_code.co_filename).is_relative_to(UPSTREAM)
    kinds = (ValueError, TypeError, NotImplementedError, braintrace.NotSupportedError)
    return ours and isinstance(error, kinds)


def compile_rule(objective: Objective, x: Any, batch_size: int, vmapped: bool, algorithm: Any, **options: Any):
    """Compile a model with braintrace, without printing its warnings."""
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            options.update(batch_size=batch_size, vmap=vmapped)
            make = partial(braintrace.compile, objective.model, algorithm, example, **options)
            require_room_for_traces(make, objective.model, batch_size, vmapped)
            return make()
        except braintrace.CompilationError as error:
            raise ValueError(
                f"no weight of {type(objective.model).__name__} reaches a hidden state through a braintrace operation: "
                "an online rule has nothing to train; build the recurrence from braintrace.nn, or use strategy='bptt'"
            ) from error


class OnlineLearner(Learner):
    """A braintrace rule that runs over the two phases of a sequence.

    With ``window=1``, braintrace's own step differentiates each time step. With a longer window, the gradient has two
    parts: reverse mode within the window, and the trace at the start of the window, contracted with the gradient of the
    window with respect to the hidden states at its start.
    """

    def __init__(self, objective: Objective, rule: Any, *, window: int = 1, update_schedule: UpdateSchedule = SEQUENCE,
                 reach: Reach = ONE_STEP):  # fmt: skip
        self.rule, self.reach, self.advice = rule, reach, START
        # Any, because braintrace's engines have different attributes.
        self.inner: Any = rule.module if isinstance(rule, brainstate.nn.Vmap) else rule
        super().__init__(objective, Network(objective.model, "vmap" if rule is not self.inner else "batched"))
        self.window, self.update_schedule, self.carried = window, update_schedule, update_schedule.stateful
        self._params = trained(objective)
        self.own = owned_states(rule, self.inner, objective.model)
        # The program creates zeros itself, because a trace is too large for a constant.
        self._initial = {
            name: jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_key(leaf) or np.any(leaf) else None, state.value)
            for name, state in self.own.items()
        }
        idle = {name: size for name, size in self._trace_bytes().items() if size and name not in self._params}
        if idle:
            self.notes.append(
                f"traces: {sum(idle.values()):,} bytes are of {', '.join(idle)}, which Module.trainable excludes; "
                "braintrace stores them anyway"
            )

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, phases: Phases, update: Update) -> Metrics:
        try:
            return self._learn(phases, update)
        except KeyError as error:
            if type(error.args[0]).__name__ != "Var":  # braintrace did not store a variable that it looks up
                raise
            raise ValueError(
                f"{type(self.objective.model).__name__} returns a value that also feeds one of its weights, which "
                "braintrace cannot follow: return something made from it, or use strategy='bptt'"
            ) from error
        except Exception as error:
            if not refused(error):
                raise
            text = " ".join(str(error).split())
            copied = "give a HiddenState that copies another a value of its own, as 1.0 * h.value, or "
            raise ValueError(
                f"braintrace cannot follow {type(self.objective.model).__name__} through this rule "
                f"({text.split('. ')[0]}): {copied * (STRAY in text)}use strategy='bptt'"
            ) from error

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        if not self.carried:
            self.restart(phases.sizes[2])
        warm_up(self.objective, self._warm_forward, phases, self._reset_with_traces)
        return self.update_schedule.drive(phases, self._gradients, update)

    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        for name, state in self.own.items():
            state.value = jax.tree.map(
                lambda leaf, value: jnp.zeros_like(leaf) if value is None else value, state.value, self._initial[name]
            )

    def _forward(self, w: Any, extras: dict[str, Any]):
        """The callable that the module receives as ``forward`` in a scored time step; ``w``: its weight, ``()`` or
        ``(B,)``."""
        return self.rule

    def _warm_forward(self, x):
        return self.rule(x)

    def _gradients(self, sequences) -> tuple[dict[str, Any], Metrics]:
        """The gradients of the sum of ``w * loss`` over these scored time steps, and the metrics."""
        if self.window > 1:
            return over_tiles(sequences, self.window, self._window, zeros_like_parameters(self._params))
        return score_by_step(self.objective, self._forward, sequences, self._params, self._reset_with_traces)

    def _reset_with_traces(self, mask) -> None:
        """Reset the hidden states and the traces of the sequences in ``mask``."""
        self._reset(mask)
        if mask is not None:
            for trace in self._sequence_traces():
                shapes = {leaf.shape[:1] for leaf in jax.tree.leaves(trace.value)}
                if shapes != {mask.shape}:
                    raise ValueError(
                        f"Phases.reset needs one trace per sequence, but one has leading axes {shapes} for "
                        f"{mask.shape[0]} sequences: use the strategy's batching='vmap'"
                    )
                trace.value = where_sequences(mask, jax.tree.map(jnp.zeros_like, trace.value), trace.value)

    def _sequence_traces(self) -> list[State]:
        """The traces that have a batch axis; other states of the rule are counters of time steps."""
        return [state for state in self.own.values() if isinstance(state, SHORT)]

    def _window(self, sequences) -> tuple[dict[str, Any], Metrics]:
        entry = self._grouped_hidden()
        before = self._snapshot()

        def loss():
            # _reset, not _reset_with_traces: the trace at the start of the window is still needed.
            return score(self.objective, self.network, sequences, self._reset)

        grads, metrics = gradient(loss, {"params": self._params, "entry": entry})()
        self._restore(before)
        from_trace = self._contract(grads["entry"])

        def advance(x, y, w, extras, reset):
            self._reset_with_traces(reset)
            self.objective.learn(self._forward(w, extras), x, y, w, extras)

        brainstate.transform.for_loop(advance, *sequences)
        return jax.tree.map(jnp.add, grads["params"], from_trace), metrics

    # This is the only method that uses private functions of braintrace; tests/strategies/test_online.py pins them.
    def _contract(self, cotangents: dict[str, Any]) -> dict[str, Any]:
        """Contract the trace with a cotangent of the hidden states; returns gradients by parameter."""
        signal = list(self._grouped(cotangents).values())
        weights = {path: state.value for path, state in self.inner.param_states.items()}
        solved = self.inner._solve_previous_trace_gradients(
            self.inner.running_index.value, self.inner._get_etrace_data(), signal, weights
        )
        named = {name_of(path): grad for path, grad in solved.items() if grad is not None}
        return {
            name: named[name] if name in named else jax.tree.map(jnp.zeros_like, state.value)
            for name, state in self._params.items()
        }

    def _grouped_hidden(self) -> dict[str, State]:
        """The hidden states of braintrace's groups that can be differentiated, which excludes counters."""
        names = {name_of(path) for group in self.inner.graph.hidden_groups for path in group.hidden_paths}
        return {
            name: state for name, state in self.network.hidden.items() if name in names and differentiable(state.value)
        }

    def _grouped(self, values: dict[str, Any]) -> dict[int, jax.Array]:
        """Values of the hidden states without units, arranged in braintrace's groups; zeros if a value is missing."""

        def value(path: Any) -> jax.Array:
            name = name_of(path)
            return u.get_mantissa(values[name]) if name in values else jnp.zeros(self.network.hidden[name].value.shape)

        return {
            group.index: group.concat_hidden([value(path) for path in group.hidden_paths])
            for group in self.inner.graph.hidden_groups
        }

    def _snapshot(self) -> list[tuple[State, Any]]:
        touched = [*self.network.hidden.values(), *self.inner.other_states.values(), brainstate.random.DEFAULT]
        return [(state, state.value) for state in touched]

    def _restore(self, snapshot: list[tuple[State, Any]]) -> None:
        for state, value in snapshot:
            state.value = value

    # -------------------------------------------------------------------------------------------------- report

    def report(self, phases: Phases) -> list[ParameterReport]:
        single, resets = self.inner.vjp_method == "single-step", self.window > 1 and phases.reset is not None
        flow, traces = Flow.of(self, phases), replace(self.traces(), credits_resets=resets, advice=self.advice)
        return describe(self._params, flow, traces, window=self.window, single=single, reach=self.reach)

    def traces(self) -> Traces:
        graph = self.inner.graph
        groups: dict[str, set[int]] = {}
        for relation in graph.hidden_param_op_relations:
            for path in relation.trainable_paths.values():
                groups.setdefault(name_of(path), set()).update(group.index for group in relation.hidden_groups)
        names = {group.index: [name_of(path) for path in group.hidden_paths] for group in graph.hidden_groups}
        return Traces.of(self.inner.report, groups, names, self._trace_bytes())

    def trace_bytes(self) -> int:
        return sum(nbytes(state) for state in self._traces().values())

    def _traces(self) -> dict[str, State]:
        """The traces of the rule, without its counters and random numbers."""
        return {
            name: state for name, state in self.own.items() if isinstance(state, SHORT) and differentiable(state.value)
        }

    def _trace_bytes(self) -> dict[str, int]:
        """Bytes of the traces of each traced parameter; a trace that several parameters share counts for the first."""
        sizes: dict[str, int] = {}
        names = variable_names(self.inner)
        left = self._traces()
        for relation in self.inner.graph.hidden_param_op_relations:
            variables = {names[id(var)] for var in (relation.x_var, relation.y_var) if id(var) in names}
            for parameter in dict.fromkeys(name_of(path) for path in relation.trainable_paths.values()):
                own = [name for name in left if variables & set(name.split(".")) or self._belongs(name, parameter)]
                sizes[parameter] = sizes.get(parameter, 0) + sum(nbytes(left.pop(name)) for name in own)
        return sizes

    def _belongs(self, trace: str, parameter: str) -> bool:
        """Whether a trace belongs to a parameter although it is not named after a relation's variables."""
        return False


def nbytes(state: State) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state.value))


def variable_names(inner: Any) -> dict[int, str]:
    """Stable names of the variables that braintrace keys its traces by (it uses their Python ids)."""
    names: dict[int, str] = {}
    for i, relation in enumerate(inner.graph.hidden_param_op_relations):
        for letter, var in (("x", relation.x_var), ("y", relation.y_var)):
            if var is not None:
                names.setdefault(id(var), f"{letter}{i}")
    return names


def owned_states(rule: Any, inner: Any, model: Any) -> dict[str, State]:
    """The states of a rule that do not belong to the model, under names that do not depend on memory addresses."""
    models = {id(state) for state in states_of(model).values()}
    names = variable_names(inner)

    def flat(key: Any) -> list[str]:
        return [part for item in key for part in flat(item)] if isinstance(key, tuple) else [names.get(key, str(key))]

    found: Any = brainstate.graph.states(rule)
    own = {".".join(flat(path)): state for path, state in found.items() if id(state) not in models}
    return {name: own[name] for name in sorted(own)}
