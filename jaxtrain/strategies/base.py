"""Base class of learners (a learner is a strategy bound to one module), and loops over time steps that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import brainstate
import jax

from ..core.decisions import over_time
from ..core.functional import gradient
from ..core.metrics import Metrics, sum_over_time
from ..core.module import Phases
from ..core.objective import Objective
from ..core.state import State, add_to, parameters, wide_zeros
from .batching import choose_batching as choose_batching
from .inputs import input_of as input_of
from .inputs import scored as scored
from .inputs import split_reset as split_reset
from .network import Network as Network
from .specs.base import Batching as Batching

Update = Callable[[dict[str, Any], Any, Metrics], Metrics]
"""``update(grads, weight, metrics)``: applies gradients to the parameters.

Args:
    grads: Gradients of ``sum(w * loss)`` by parameter name.
    weight: ``sum(w)`` of the same time steps.
    metrics: Metrics of the same time steps.

Returns:
    The metrics, together with those of the update (``grad_norm``, ``lr``).

It sums all arguments over devices, divides the gradients by the weight, clips, accumulates and steps the optimizer.
"""


@dataclass(frozen=True)
class ParameterReport:
    """How a rule treats one parameter.

    Attributes:
        name: Name of the parameter.
        trains: "yes", "in part" or "no". With "no" the optimizer, and thus weight decay, leaves it unchanged.
        why: The reason, and advice, unless it trains fully.
        bytes: Memory of the trace that the rule keeps for it. A trace that several parameters share is counted for the
            first of them.
    """

    name: str
    trains: Literal["yes", "in part", "no"] = "yes"
    why: str = ""
    bytes: int = 0


class Learner(ABC):
    """A strategy bound to one module: computes gradients, and owns the states that the rule needs.

    A subclass implements ``learn`` and ``report``. A State of a sequence (a trace) goes into ``own``: override
    ``restart`` to initialise it. A State of the run (a running average) is added to what ``states()`` returns.

    Args:
        objective: The module, with its model and its loss.
        network: The model over a batch.

    Attributes:
        own: States of a sequence, under stable names. Unless ``carried`` is True, they start from their initial
            values in every batch, and no checkpoint holds them.
        carried: Whether hidden states and ``own`` continue from one sequence to the next (default: False).
        notes: Additional lines of the report that is printed before step 0.

    Example::

        class MeanOutput(jaxtrain.Callback):  # a probe receives the learner of the run
            probe_every = 100

            def probe(self, module, learner, phases):
                return learner.predict(phases).mean()
    """

    def __init__(self, objective: Objective, network: Network):
        self.objective = objective
        self.network = network
        self.own: dict[str, State] = {}
        self.carried = False
        self.notes: list[str] = []

    @abstractmethod
    def learn(self, phases: Phases, update: Update) -> Metrics:
        """Compute the gradients of one batch and apply them. This method is traced.

        Args:
            phases: The batch, with the warm-up and the learning phase of each sequence.
            update: Call it once for each weight update, with the gradients, their weight and their metrics.

        Returns:
            The metrics that ``update`` returned, summed over its calls.
        """

    @abstractmethod
    def report(self, phases: Phases) -> list[ParameterReport]:
        """Report how the rule treats each parameter, before step 0.

        Args:
            phases: An example of a batch.

        Returns:
            One report for each parameter that ``Module.trainable`` selects.
        """

    def trace_bytes(self) -> int:
        """Return the memory of the rule's own states in bytes."""
        return sum(leaf.nbytes for state in self.own.values() for leaf in jax.tree.leaves(state.value))

    def resolved(self) -> dict[str, Any]:
        """Return the values chosen for all options of the strategy that may be "auto", by field name."""
        return {"batching": "vmap" if self.network.vmapped else "batched"}

    def restart(self, batch_size: int) -> None:
        """Set all states to their values at the beginning of ``batch_size`` sequences. This method is traced."""
        self.network.reset(batch_size)

    def states(self) -> dict[str, State]:
        """Return the states that outlive a sequence, under stable names. A checkpoint holds them."""
        return {**self.hidden(), **self.own} if self.carried else {}

    def hidden(self) -> dict[str, State]:
        """Return the model's hidden states, under the names that ``states`` uses."""
        return {f"hidden.{name}": state for name, state in self.network.hidden.items()}

    def short_term_states(self) -> list[State]:
        """Return the states that ``learn`` initialises for every sequence."""
        return [] if self.carried else [*self.network.hidden.values(), *self.own.values()]

    def evaluate(self, phases: Phases) -> dict[str, Any]:
        """Return the metrics of ``evaluation_step`` over the learning phase: ``Mean`` or ``Parts``, by name.

        ``phases`` is the batch. This method is traced.
        """
        self._warm_up(phases)

        def step(x, y, w, extras, reset):
            self._reset(reset)
            return self.objective.evaluate(self.network, x, y, w, extras)

        return over_time(brainstate.transform.for_loop(step, *scored(phases)))

    def predict(self, phases: Phases) -> Any:
        """Return the outputs of ``predict_step`` over the learning phase of ``phases``, ``(T_l, B, ...)``. Traced."""
        self._warm_up(phases)
        return brainstate.transform.for_loop(self.predict_step, phases.inputs, split_reset(phases)[1])

    def predict_step(self, x: Any, reset: Any) -> Any:
        """Return the output of ``predict_step`` of one time step, which advances the hidden states. Traced.

        Args:
            x: Inputs, ``(B, ...)``.
            reset: Bool ``(B,)``: sequences that begin with this time step; or None.
        """
        self._reset(reset)
        return self.objective.predict(self.network, x)

    def _warm_up(self, phases: Phases) -> None:
        self.network.reset(phases.sizes[2])
        warm_up(self.objective, self.network, phases, self._reset)

    def _reset(self, mask) -> None:
        if mask is not None:
            self.network.reset_sequences(mask)


def evolve(objective: Objective, forward: Callable, inputs: Any, masks: Any, reset: Callable) -> None:
    """Run time steps without a loss, which advance the hidden states (and any other state of ``forward``)."""

    def step(x, mask):
        reset(mask)
        objective.warmup(forward, x)

    brainstate.transform.for_loop(step, inputs, masks)


def warm_up(objective: Objective, forward: Callable, phases: Phases, reset: Callable) -> None:
    """Run the warm-up phase, if there is one.

    Args:
        objective: The module, with its model and its loss.
        forward: The network, or another callable that the module receives as ``forward``.
        phases: The batch.
        reset: Called before each time step with its reset mask, ``(B,)`` or None.
    """
    if phases.warmup is not None:
        evolve(objective, forward, phases.warmup, split_reset(phases)[0], reset)


def score(objective: Objective, forward: Callable, sequences: Any, reset: Callable) -> tuple[jax.Array, Metrics]:
    """Run scored time steps.

    Args:
        objective: The module, with its model and its loss.
        forward: The network, or another callable that the module receives as ``forward``.
        sequences: The arrays of these time steps, see ``scored``.
        reset: Called before each time step with its reset mask, ``(B,)`` or None.

    Returns:
        The sum of ``w * loss``, and the metrics.
    """

    def step(x, y, w, extras, mask):
        reset(mask)
        return objective.learn(forward, x, y, w, extras)

    losses, metrics = brainstate.transform.for_loop(step, *sequences)
    return losses.sum(), sum_over_time(metrics)


def score_by_step(
    objective: Objective, forward: Callable[[Any, Any], Callable], sequences: Any, params: Any, reset: Callable
) -> tuple[dict[str, Any], Metrics]:
    """Differentiate each scored time step separately.

    Args:
        objective: The module, with its model and its loss.
        forward: ``forward(w, extras)`` returns what the module calls as ``forward`` in a time step.
        sequences: The arrays of these time steps, see ``scored``.
        params: The States to differentiate with respect to.
        reset: Called before each time step with its reset mask, ``(B,)`` or None.

    Returns:
        The sum of the gradients of ``w * loss``, and the metrics.
    """

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


def zeros_like_parameters(params: dict[str, State]) -> dict[str, Any]:
    """Zeros in the shape of the parameters, to sum gradients into."""
    return {name: wide_zeros(state.value) for name, state in params.items()}


def trained(objective: Objective) -> dict[str, State]:
    """Return the parameters that the module trains, by name.

    Raises:
        TypeError: ``Module.trainable`` returned something other than a bool.
        ValueError: It returned False for every parameter.
    """
    every, chosen = parameters(objective.model), dict[str, State]()
    for name, state in every.items():
        value = objective.module.trainable(name)
        if not isinstance(value, bool):
            raise TypeError(
                f"{type(objective.module).__name__}.trainable({name!r}) returned {value!r}; expected a bool"
            )
        if value:
            chosen[name] = state
    if not chosen:
        raise ValueError(
            f"nothing to train: the model's parameters are {list(every)} and trainable(name) is False for all"
        )
    return chosen
