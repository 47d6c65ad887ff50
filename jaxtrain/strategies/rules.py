"""braintrace's other online rules, one class each: a rule is its fields and how braintrace calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

from ..core.metrics import Metrics
from ..core.module import Objective, Phases
from ..core.state import State, is_key
from .base import Learner, Row, Update
from .online import OnlineLearner
from .rows import PARTLY
from .rule import Lanes, OnlineRule, SteppedRule, WindowedRule

FILTERED: tuple[Lanes, str] = ("batched", "braintrace's trace filter (kappa) cannot be mapped over lanes")


@dataclass(frozen=True)
class PPProp(WindowedRule):
    """pp-prop (ES-D-RTRL): D-RTRL with the trace factored into an input and an output side, each an exponential mean
    (Wang et al., Nature Communications 17:1745, 2026). Memory is lanes x (inputs + outputs).

    ``decay``: of the means, in [0, 1); 0.9 where nothing else is said. ``rank``: instead of it, a number r of time
    steps, decay = (r - 1) / (r + 1).

    The mean of the output side begins at zero and is corrected for that by the time steps since the sequence's (with
    ``carry="carry"``: the stream's) beginning, the same number for all lanes. So after ``Phases.reset`` has cleared a
    lane, the gradient that its traces give is too small for about 1 / (1 - decay) time steps, in the same direction.

    Example::

        fit = jaxtrain.Fit(strategy=jaxtrain.PPProp(decay=0.9), max_steps=1000)
    """

    name: ClassVar[str] = "pp_prop"
    decay: float | None = None
    rank: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.rank is None and self.decay is None:
            object.__setattr__(self, "decay", 0.9)  # so that what is compared and shown is what is used
        if self.rank is not None and self.decay is not None:
            raise ValueError(f"PPProp(decay={self.decay!r}, rank={self.rank!r}): a rank replaces the decay; drop one")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"PPProp(decay={self.decay!r}): expected a number in [0, 1)")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"PPProp(rank={self.rank!r}): expected a whole number of time steps, at least 1")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "pp_prop", {"decay_or_rank": self.decay if self.rank is None else self.rank, "vjp_method": self.vjp}

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        learner = super().learner(objective, compiled, example)
        if example.reset is not None:
            steps = (self.rank + 1) / 2 if self.rank is not None else 1 / (1 - (self.decay or 0))
            learner.notes.append(
                f"pp_prop: after a lane's reset its gradient is too small for about {steps:.0f} time steps"
            )
        return learner


@dataclass(frozen=True)
class EProp(SteppedRule):
    """e-prop (Bellec et al., Nature Communications 11:3625, 2020).

    ``feedback``: "symmetric" (the loss's own gradient; without a filter this is D-RTRL) or "random" (a fixed random
    matrix over the units of a group, drawn from ``feedback_seed``). ``kappa``: in [0, 1), low-pass filter of the trace.
    ``vjp``: see ``SteppedRule``.
    """

    name: ClassVar[str] = "eprop"
    vjp: Literal["multi-step", "single-step"] = "single-step"
    feedback: Literal["symmetric", "random"] = "symmetric"
    kappa: float = 0.0
    feedback_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.kappa < 1:
            raise ValueError(f"EProp(kappa={self.kappa!r}): expected a number in [0, 1)")
        _check_feedback_seed(self, self.feedback == "random")

    def works_in(self) -> tuple[Lanes, str]:
        return FILTERED if self.kappa else super().works_in()

    def rule(self) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {"vjp_method": self.vjp, "feedback": self.feedback}
        if self.kappa:
            options["kappa_filter_decay"] = self.kappa
        if self.feedback == "random":
            options["random_feedback_key"] = jax.random.key(self.feedback_seed)
        return "eprop", options


@dataclass(frozen=True)
class OSTLRecurrent(SteppedRule):
    """OSTL with the recurrent mixing kept in the transition's block diagonal, SnAp-1 (Bohnstingl et al., IEEE TNNLS
    2022). Mapped over lanes: over a batch braintrace builds a Jacobian of (lanes x hidden) squared."""

    name: ClassVar[str] = "ostl_recurrent"
    lanes: ClassVar[Literal["either", "batched", "vmap"]] = "vmap"
    why_lanes: ClassVar[str] = "over a batch its Jacobian is (lanes x hidden) squared"
    narrow: ClassVar[bool] = True

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "ostl_recurrent", {"vjp_method": self.vjp}


@dataclass(frozen=True)
class OSTLFeedforward(WindowedRule):
    """OSTL without the temporal term (Bohnstingl et al., IEEE TNNLS 2022): credit within one time step only."""

    name: ClassVar[str] = "ostl_feedforward"

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "ostl_feedforward", {"vjp_method": self.vjp}


@dataclass(frozen=True)
class SnAp(SteppedRule):
    """SnAp-n: RTRL restricted to the hidden units that a weight reaches within ``n`` time steps (Menick et al. 2020).
    A large n is RTRL within each hidden group; the cost grows with the square of its size. Mapped over lanes."""

    name: ClassVar[str] = "snap"
    lanes: ClassVar[Literal["either", "batched", "vmap"]] = "vmap"
    why_lanes: ClassVar[str] = "over a batch braintrace counts lanes as units"
    n: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"SnAp(n={self.n!r}): expected a whole number of time steps, at least 1")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return braintrace.SnAp, {"n": self.n, "vjp_method": self.vjp}


@dataclass(frozen=True)
class UORO(OnlineRule):
    """UORO: a rank-one estimate of RTRL within each hidden group, unbiased for the weights that have a trace, of high
    variance (Tallec and Ollivier, ICLR 2018); others have the credit of one time step. Its projections are drawn from
    the step's random numbers, anew for every sequence, or (``carry="carry"``) once where the stream begins and then in
    a row. Batched states only."""

    name: ClassVar[str] = "uoro"
    lanes: ClassVar[Literal["either", "batched", "vmap"]] = "batched"
    why_lanes: ClassVar[str] = "braintrace cannot map its random projections over lanes"
    narrow: ClassVar[bool] = True

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "uoro", {}

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        return _UOROLearner(objective, compiled, cadence=self.cadence())


class _UOROLearner(OnlineLearner):
    def restart(self, batch_size: int) -> None:
        super().restart(batch_size)
        self._projections.value = self._fresh_projections()

    def _learn(self, phases: Phases, update: Update) -> Metrics:
        if self.cadence.carried:  # a stream is never restarted; it begins where no time step has been counted
            fresh, going = self._fresh_projections(), self._projections
            going.value = jax.lax.select(self.own["running_index"].value == 0, fresh, going.value)
        return super()._learn(phases, update)

    @property
    def _projections(self) -> State:
        return self.own["projection_rng"]

    def _fresh_projections(self) -> Any:
        # Derived, not split off: the model then draws the numbers that it draws under any other rule.
        key = jax.random.fold_in(brainstate.random.DEFAULT.value, 0)
        return key if is_key(self._projections.value) else jax.random.key_data(key)

    def _belongs(self, trace: str, parameter: str) -> bool:
        return trace.startswith("etrace_s.") or trace.endswith(f".{parameter}")

    def _lane_traces(self) -> list[State]:
        """The estimate of a lane's trace is its row of the hidden side times the parameter side, which all share."""
        return [state for name, state in self.own.items() if name.startswith("etrace_s.")]


@dataclass(frozen=True)
class ThreeFactor(OnlineRule):
    """Reward-modulated learning: the trace times a signal that comes with the batch, not a gradient of the loss
    (Fremaux and Gerstner 2016).

    ``modulator``: the name of a sequence in ``Phases.extras``, ``(T_l, B)``, ``(T_l, B, 1)`` or a number a unit,
    ``(T_l, B, units)``. It stands where a loss's gradient with respect to the hidden states would, and the optimizer
    descends: a positive number lets them fall, so what is to become more is given with a minus. ``Phases.weights``
    multiply it, as they multiply a loss. Parameters without a trace (a readout) are not trained; neither is anything
    trained by a term of the loss, a weight regulariser, say.
    """

    name: ClassVar[str] = "three_factor"
    lanes: ClassVar[Literal["either", "batched", "vmap"]] = "batched"
    why_lanes: ClassVar[str] = "braintrace cannot pass a modulator through a mapped model"
    modulator: str = "reward"

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return braintrace.ThreeFactor, {}

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        if self.modulator not in (example.extras or {}):
            raise ValueError(
                f"ThreeFactor(modulator={self.modulator!r}): Phases.extras holds {list(example.extras or {})}; give it "
                f"the reward as a sequence: in Module.phases, Phases(..., extras={{{self.modulator!r}: reward}}) with "
                f"reward (T_l, B), (T_l, B, 1) or (T_l, B, units); extras reach learning_step by keyword, too, so it "
                f"takes {self.modulator}=. The recipes have none; an example is in docs/strategies.md"
            )
        given, groups = np.shape((example.extras or {})[self.modulator]), compiled.graph.hidden_groups
        units = {tuple(group.varshape[1:]) for group in groups}
        if given[2:] not in ((), (1,)) and units != {given[2:]}:
            wanted = ", ".join(str((*example.sizes[1:], *more)) for more in ((), (1,), *units))
            raise ValueError(
                f"ThreeFactor(modulator={self.modulator!r}): Phases.extras[{self.modulator!r}] has shape {given}; "
                f"expected one of {wanted}: time steps, lanes, units"
            )
        learner = _ThreeFactorLearner(objective, compiled, cadence=self.cadence())
        learner.modulator = self.modulator
        return learner


class _ThreeFactorLearner(OnlineLearner):
    modulator: str

    def _forward(self, w: Any, extras: dict[str, Any]):
        signal = extras[self.modulator]
        lanes = signal.shape[0]
        w = jnp.broadcast_to(w, (lanes,)).reshape(lanes, *(1,) * (signal.ndim - 1))
        signal = jnp.where(w != 0, w * signal, 0)  # a lane that weighs nothing may hold anything, NaN included
        if signal.size == lanes:  # one number a lane, for all units of a group alike
            signal = signal.reshape((lanes,) + (1,) * len(self.inner.graph.hidden_groups[0].varshape))
        return lambda x: self.rule(x, modulator=signal)

    def _warm_forward(self, x):
        return self.rule(x, modulator=0.0)

    def report(self, phases: Phases) -> list[Row]:
        traces = self.traces()
        why = "no trace of it is kept, and the loss's own gradient is not used: its gradient is exactly zero"
        partly = f"{PARTLY}: the other has no credit"  # and no field of this rule gives it any

        def row(name: str) -> Row:
            if name not in traces.states:
                return Row(name, "no", why)
            size = traces.sizes.get(name, 0)
            return Row(name, "in part", partly, size) if name in traces.partial else Row(name, "yes", "", size)

        return [row(name) for name in self._params]


Recursion = Literal["jacobian", "scalar_leak", "none"]


@dataclass(frozen=True)
class ETrace(WindowedRule):
    """Any other point of braintrace's space of rules, by its coordinates (``braintrace.ETraceConfig``).

    Coordinates left as None take braintrace's default; combinations that do not exist are refused with its reason.
    ``temporal_recursion`` and ``decay`` may be pairs, (input side, output side), of a factored trace.
    ``feedback_seed``: of the matrix of ``learning_signal="random_feedback"``. The points that need more than a gradient
    have strategies of their own: ``uoro``, ``three_factor``, ``dni``.

    Example::

        leaky = jaxtrain.ETrace(temporal_recursion="scalar_leak", decay=0.8)
    """

    name: ClassVar[str] = "etrace"
    trace_factorization: Literal["per_param", "io_factorized"] | None = None
    temporal_recursion: Recursion | tuple[Recursion, Recursion] | None = None
    recurrence_scope: Literal["diagonal", "coupled", "sparse_n"] | None = None
    learning_signal: Literal["symmetric", "random_feedback"] | None = None
    trace_filter: Literal["none", "kappa"] | None = None
    decay: float | tuple[float, float] | None = None
    kappa: float | None = None
    sparse_n: int | None = None
    feedback_seed: int = 0

    def __post_init__(self):
        elsewhere = {"random_projection": "uoro", "modulatory": "three_factor", "bootstrapped": "dni"}
        for name in ("trace_factorization", "learning_signal"):
            value = getattr(self, name)
            if isinstance(value, str) and value in elsewhere:
                raise ValueError(f"ETrace({name}={value!r}): this is strategy {elsewhere[value]!r}; use it")
        super().__post_init__()
        _check_feedback_seed(self, self.learning_signal == "random_feedback")
        self._config()

    def works_in(self) -> tuple[Lanes, str]:
        if self.recurrence_scope in ("coupled", "sparse_n"):
            return "vmap", f"over a batch braintrace counts lanes as units (recurrence_scope={self.recurrence_scope!r})"
        return FILTERED if self.trace_filter == "kappa" else super().works_in()

    def _config(self) -> Any:
        names = ("trace_factorization", "temporal_recursion", "recurrence_scope", "learning_signal", "trace_filter",
                 "decay", "kappa", "sparse_n")  # fmt: skip
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        try:
            return braintrace.ETraceConfig(**given)
        except (ValueError, TypeError) as error:  # its refusals name what does not go together
            fields = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"ETrace({fields}): {' '.join(str(error).split())}") from None

    def rule(self) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {"vjp_method": self.vjp}
        if self.learning_signal == "random_feedback":
            options["random_feedback_key"] = jax.random.key(self.feedback_seed)
        return self._config(), options


def _check_feedback_seed(rule: EProp | ETrace, random: bool) -> None:
    name, seed = type(rule).__name__, rule.feedback_seed
    if seed and not random:
        raise ValueError(f"{name}(feedback_seed={seed}): the feedback is not random, so nothing is drawn; drop it")
