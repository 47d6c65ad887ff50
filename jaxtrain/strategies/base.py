"""What every learner shares: a learner is a strategy bound to one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import brainstate
import jax
import jax.numpy as jnp

from ..core.functional import gradient
from ..core.metrics import Metrics, sum_over_time
from ..core.module import Objective, Phases, environ_explained, weights_of
from ..core.state import State, add_to, create_hidden, long_term_states, parameters, short_term, wide_zeros
from .network import Network, model_over_batch
from .specs.base import Batching

Update = Callable[[dict[str, Any], Any, Metrics], Metrics]
"""``update(grads, weight, metrics)``: gradients of ``sum(w * loss)`` by parameter name, ``sum(w)``, and the metrics of
the same time steps. It adds all of them up over devices, divides, clips, accumulates and steps the optimizer, and
returns the metrics with its own (``grad_norm``, ``lr``)."""


@dataclass(frozen=True)
class ParameterReport:
    """One line of a learner's report: what the rule does to one parameter.

    ``trains``: "yes", "in part" or "no"; with "no" the optimizer does not hold it, so weight decay does not move it
    either. ``bytes``: memory of the trace that the rule keeps for it; what several parameters share stands with the
    first of them.
    """

    name: str
    trains: Literal["yes", "in part", "no"] = "yes"
    why: str = ""
    bytes: int = 0


class Learner(ABC):
    """A rule bound to one module, with the States that it owns."""

    def __init__(self, objective: Objective, network: Network):
        self.objective = objective
        self.network = network
        self.own: dict[str, State] = {}
        """What the rule keeps beside the model's hidden states, under stable names."""
        self.carried = False
        """Whether hidden states and what the rule keeps go on from one sequence to the next."""
        self.notes: list[str] = []
        """What else a person should know before step 0, a line each."""

    @abstractmethod
    def learn(self, phases: Phases, update: Update) -> Metrics:
        """Traced: one batch of sequences; calls ``update`` and returns the metrics of the scored time steps."""

    @abstractmethod
    def report(self, phases: Phases) -> list[ParameterReport]:
        """What the rule does to each parameter, before step 0. ``phases``: an example of a batch."""

    def trace_bytes(self) -> int:
        """Memory of everything that the rule carries along beside the model's hidden states."""
        return sum(leaf.nbytes for state in self.own.values() for leaf in jax.tree.leaves(state.value))

    def resolved(self) -> dict[str, Any]:
        """What every ``auto`` of the strategy became."""
        return {"batching": "vmap" if self.network.vmapped else "batched"}

    def restart(self, batch_size: int) -> None:
        """Traced: everything that a sequence begins with, as new."""
        self.network.reset(batch_size)

    def states(self) -> dict[str, State]:
        """States that outlive a sequence, under stable names."""
        return {**self.hidden(), **self.own} if self.carried else {}

    def hidden(self) -> dict[str, State]:
        """The hidden states under the names that they have where they outlive a sequence."""
        return {f"hidden.{name}": state for name, state in self.network.hidden.items()}

    def short_term_states(self) -> list[State]:
        """States that ``learn`` sets anew for every sequence."""
        return [] if self.carried else [*self.network.hidden.values(), *self.own.values()]

    def evaluate(self, phases: Phases) -> Metrics:
        """Traced: metrics of one batch, no gradients."""
        self._warm_up(phases)

        def step(x, y, w, extras, reset):
            self._reset(reset)
            return self.objective.evaluate(self.network, x, y, w, extras)

        return sum_over_time(brainstate.transform.for_loop(step, *scored(phases)))

    def predict(self, phases: Phases) -> Any:
        """Traced: outputs of ``predict_step`` over the learning phase, ``(T_l, B, ...)``."""
        self._warm_up(phases)

        def step(x, reset):
            self._reset(reset)
            return self.objective.predict(self.network, x)

        return brainstate.transform.for_loop(step, phases.inputs, split_reset(phases)[1])

    def _warm_up(self, phases: Phases) -> None:
        self.network.reset(phases.sizes[2])
        warm_up(self.objective, self.network, phases, self._reset)

    def _reset(self, mask) -> None:
        if mask is not None:
            self.network.reset_sequences(mask)


def split_reset(phases: Phases) -> tuple[Any, Any]:
    """``Phases.reset`` over the warm-up and over the learning phase."""
    warm = phases.sizes[0]
    return (None, None) if phases.reset is None else (phases.reset[:warm], phases.reset[warm:])


def evolve(objective: Objective, forward: Callable, inputs: Any, masks: Any, reset: Callable) -> None:
    """Time steps without a loss: hidden states (and whatever ``forward`` carries) go on."""

    def step(x, mask):
        reset(mask)
        objective.warmup(forward, x)

    brainstate.transform.for_loop(step, inputs, masks)


def warm_up(objective: Objective, forward: Callable, phases: Phases, reset: Callable) -> None:
    """Evolve over the warm-up phase."""
    if phases.warmup is not None:
        evolve(objective, forward, phases.warmup, split_reset(phases)[0], reset)


def score(objective: Objective, forward: Callable, sequences: Any, reset: Callable) -> tuple[jax.Array, Metrics]:
    """The sum of ``w * loss`` over scored time steps (see ``scored``) one after another, and their metrics."""

    def step(x, y, w, extras, mask):
        reset(mask)
        return objective.learn(forward, x, y, w, extras)

    losses, metrics = brainstate.transform.for_loop(step, *sequences)
    return losses.sum(), sum_over_time(metrics)


def score_by_step(
    objective: Objective, forward: Callable[[Any, Any], Callable], sequences: Any, params: Any, reset: Callable
) -> tuple[dict[str, Any], Metrics]:
    """The sum over scored time steps (see ``scored``) of the gradient of ``w * loss`` that each has by itself, and
    their metrics. ``forward(w, extras)``: what the module calls as ``forward`` in a time step."""

    def loss(x, y, w, extras):
        return objective.learn(forward(w, extras), x, y, w, extras)

    step_gradient = gradient(loss, params)

    def step(total, xs):
        *slices, mask = xs
        reset(mask)
        grads, metrics = step_gradient(*slices)
        return add_to(total, grads), metrics

    grads, metrics = brainstate.transform.scan(step, zeros_like_parameters(params), sequences)
    return grads, sum_over_time(metrics)


def scored(phases: Phases) -> tuple[Any, ...]:
    """The sequences of the learning phase: inputs, targets, weights, extras, reset."""
    return phases.inputs, phases.targets, weights_of(phases), phases.extras or {}, split_reset(phases)[1]


def input_of(objective: Objective, phases: Phases, kind: Literal["learn", "evaluate", "predict"] = "learn") -> Any:
    """Shape and dtype of what the module's step hands to ``forward``: it may transform its input first."""

    class Captured(BaseException):
        pass

    def forward(u):
        raise Captured(u)

    def first(x, y, w, extras):
        try:
            if kind == "predict":
                objective.predict(forward, x)
            else:
                getattr(objective, kind)(forward, x, y, w, extras)  # raises by itself where forward is never called
        except Captured as captured:
            return captured.args[0]
        except Exception as error:
            name = {"learn": "learning", "evaluate": "evaluation", "predict": "predict"}[kind]
            error.add_note(f"jaxtrain: raised before {name}_step called forward(x), which is what runs the model")
            raise
        raise ValueError(f"{type(objective.module).__name__}.predict_step never calls forward, which runs the model")

    head = jax.tree.map(lambda leaf: leaf[0], scored(phases)[:4])
    return brainstate.transform.StatefulFunction(first).make_jaxpr(*head).get_out_shapes(*head)[0]


def choose_batching(wanted: Batching, model, u: Any, batch_size: int) -> Literal["batched", "vmap"]:
    """``auto``: batched where the model accepts a batch and gives one back, else mapped over lanes.

    The model's hidden states are created on the way. Raises ValueError for another word, for a model that reads the
    time of the environment, and for running statistics that lanes would share; what the model raises, where it runs in
    no batching.
    """
    chosen: Literal["batched", "vmap"] | None = None
    try:
        with environ_explained(f"the model {type(model).__name__}"):
            chosen = _choose_batching(wanted, model, u, batch_size)
        timeless = not _reads_time(model_over_batch(model, chosen), u)
    except KeyError as error:
        if "'t' not found" not in str(error):
            raise
        timeless = False
    if chosen is None or not timeless:
        raise ValueError(
            f"{type(model).__name__} reads the time 't' of brainstate.environ, which is the same at every time step "
            "of a program: let the model count its time steps in a State, and set 't' itself"
        )
    return chosen


def _reads_time(call: Callable, u: Any) -> bool:
    """Whether a call depends on the environment's ``t``; raises KeyError where it does and there is none."""

    def at(t: Any, u: Any) -> Any:
        with brainstate.environ.context(**({} if t is None else {"t": t})):
            return call(u)

    t = brainstate.environ.get("t", None)
    jaxpr: Any = brainstate.transform.StatefulFunction(at).make_jaxpr(t, u).get_jaxpr(t, u)
    mine = {id(var) for var in jaxpr.jaxpr.invars[: len(jax.tree.leaves(t))]}
    return any(id(var) in mine for equation in jaxpr.jaxpr.eqns for var in equation.invars)


def _choose_batching(wanted: Batching, model, u: Any, batch_size: int) -> Literal["batched", "vmap"]:
    if wanted not in ("auto", "batched", "vmap"):
        raise ValueError(f"batching must be 'auto', 'batched' or 'vmap', got {wanted!r}")
    if wanted == "vmap":
        _refuse_shared(model)
        create_hidden(model, batch_size, True)
        _refuse_shared(model)  # init_state may have made some
        return "vmap"
    try:
        create_hidden(model, batch_size, False)
        out = brainstate.transform.StatefulFunction(model).make_jaxpr(u).get_out_shapes(u)[0]
        wrong = [leaf.shape for leaf in jax.tree.leaves(out) if leaf.shape[:1] != (batch_size,)]
        if not wrong:
            return "batched"
        problem: Exception = ValueError(f"outputs of shape {wrong[0]} carry no batch axis of {batch_size}")
    except Exception as error:
        problem = error
    if wanted == "auto" and not long_term_states(model):
        try:
            create_hidden(model, batch_size, True)
            brainstate.transform.StatefulFunction(model_over_batch(model, "vmap")).make_jaxpr(u)
            return "vmap"
        except Exception:  # noqa: S110 - what went wrong with a batch is the error to show, and is raised below
            pass
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), u)
    hidden = [(name, jnp.shape(leaf)) for name, s in short_term(model).items() for leaf in jax.tree.leaves(s.value)]
    alone = next((f"{name!r} has shape {shape}" for name, shape in hidden if shape and batch_size not in shape), "")
    note = f"jaxtrain: the model was called with an input of shape {shapes}, (B, ...), one time step"
    if alone:
        note += f"; the hidden state {alone}, without a batch axis: make it in init_state(self, batch_size=None, **_)"
    problem.add_note(note)
    raise problem


def _refuse_shared(model) -> None:
    running = [name for name, s in long_term_states(model).items() if not isinstance(s, brainstate.random.RandomState)]
    if running:
        raise ValueError(
            f"batching='vmap': all lanes would share the states {running} of {type(model).__name__}; use 'batched'"
        )


def zeros_like_parameters(params: dict[str, State]) -> dict[str, Any]:
    return {name: wide_zeros(state.value) for name, state in params.items()}


def trained(objective: Objective) -> dict[str, State]:
    """The parameters that the module trains, by name."""
    every = parameters(objective.model)
    said = {name: objective.module.trainable(name) for name in every}
    for name, value in said.items():
        if not isinstance(value, bool):
            raise TypeError(
                f"{type(objective.module).__name__}.trainable({name!r}) returned {value!r}; expected a bool"
            )
    chosen: dict[str, State] = {name: state for name, state in every.items() if said[name]}
    if not chosen:
        raise ValueError(
            f"nothing to train: the model's parameters are {list(every)} and trainable(name) is False for all"
        )
    return chosen
