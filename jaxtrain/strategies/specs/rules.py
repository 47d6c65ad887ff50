"""braintrace's other online rules, one class each: a rule is its fields and how braintrace calls it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .rule import OnlineRule, Reach, RequiredBatching, SteppedRule, WindowedRule

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner

FILTERED: tuple[RequiredBatching, str] = ("batched", "braintrace's trace filter (kappa) cannot be mapped over lanes")


@dataclass(frozen=True)
class EProp(SteppedRule):
    """e-prop: D-RTRL with a filtered trace or random feedback.

    Bellec et al., Nature Communications 11:3625, 2020. With symmetric feedback and no filter it is D-RTRL.
    """

    name: ClassVar[str] = "eprop"
    vjp: Literal["multi-step", "single-step"] = "single-step"
    feedback: Literal["symmetric", "random"] = "symmetric"
    """feed back the gradient of the loss (symmetric), or its projection by a fixed random matrix (random)"""
    kappa: float = 0.0
    """decay of the low-pass filter on the trace, in [0, 1); 0 means no filter"""
    feedback_seed: int = 0
    """seed of the random feedback matrix"""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.kappa < 1:
            raise ValueError(f"EProp(kappa={self.kappa!r}): expected a number in [0, 1)")
        _check_feedback_seed(self, self.feedback == "random")

    def works_in(self) -> tuple[RequiredBatching, str]:
        return FILTERED if self.kappa else super().works_in()

    def rule(self) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {"vjp_method": self.vjp, "feedback": self.feedback}
        if self.kappa:
            options["kappa_filter_decay"] = self.kappa
        if self.feedback == "random":
            import jax

            options["random_feedback_key"] = jax.random.key(self.feedback_seed)
        return "eprop", options


@dataclass(frozen=True)
class OSTLRecurrent(SteppedRule):
    """OSTL with recurrent mixing (SnAp-1).

    The recurrent mixing is kept in the transition's block diagonal (Bohnstingl et al., IEEE TNNLS 2022). The model is
    mapped over lanes: over a batch braintrace builds a Jacobian of (lanes x hidden) squared.
    """

    name: ClassVar[str] = "ostl_recurrent"
    required_batching: ClassVar[RequiredBatching] = "vmap"
    why_batching: ClassVar[str] = "over a batch its Jacobian is (lanes x hidden) squared"
    narrow: ClassVar[bool] = True

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "ostl_recurrent", {"vjp_method": self.vjp}


@dataclass(frozen=True)
class OSTLFeedforward(WindowedRule):
    """OSTL without the temporal term.

    Credit lies within one time step only (Bohnstingl et al., IEEE TNNLS 2022).
    """

    name: ClassVar[str] = "ostl_feedforward"

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "ostl_feedforward", {"vjp_method": self.vjp}


@dataclass(frozen=True)
class SnAp(SteppedRule):
    """SnAp-n: RTRL restricted to units within n time steps of a weight.

    Menick et al. 2020. A large n is RTRL within each hidden group; the cost grows with the square of its size. The
    model is mapped over lanes.
    """

    name: ClassVar[str] = "snap"
    required_batching: ClassVar[RequiredBatching] = "vmap"
    why_batching: ClassVar[str] = "over a batch braintrace counts lanes as units"
    n: int = 2
    """time steps within which a weight must reach a unit"""

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"SnAp(n={self.n!r}): expected a whole number of time steps, at least 1")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        import braintrace

        return braintrace.SnAp, {"n": self.n, "vjp_method": self.vjp}


@dataclass(frozen=True)
class UORO(OnlineRule):
    """Unbiased rank-one estimate of RTRL.

    It estimates RTRL within each hidden group, without bias for the weights that have a trace, but with high variance
    (Tallec and Ollivier, ICLR 2018); others have the credit of one time step. Its projections are drawn from the step's
    random numbers, anew for every sequence, or (``stateful=True``) once where the stream begins and then in a row. It
    takes batched states only.
    """

    name: ClassVar[str] = "uoro"
    required_batching: ClassVar[RequiredBatching] = "batched"
    why_batching: ClassVar[str] = "braintrace cannot map its random projections over lanes"
    narrow: ClassVar[bool] = True

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "uoro", {}

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..rules import UOROLearner

        return UOROLearner(objective, compiled, cadence=self.cadence())


@dataclass(frozen=True)
class ThreeFactor(OnlineRule):
    """Reward-modulated learning: the trace times a reward.

    The reward comes with the batch and is no gradient of the loss (Fremaux and Gerstner 2016). It stands where a loss's
    gradient with respect to the hidden states would, and the optimizer descends: a positive number lets them fall, so
    what is to become more is given with a minus. ``Phases.weights`` multiply it, as they multiply a loss. Parameters
    without a trace (a readout) are not trained; neither is anything trained by a term of the loss, a weight
    regulariser, say.
    """

    name: ClassVar[str] = "three_factor"
    required_batching: ClassVar[RequiredBatching] = "batched"
    why_batching: ClassVar[str] = "braintrace cannot pass a modulator through a mapped model"
    modulator: str = "reward"
    """name of the reward sequence in Phases.extras

    Its shape is ``(T_l, B)``, ``(T_l, B, 1)`` or, with a number for each unit, ``(T_l, B, units)``.
    """

    def rule(self) -> tuple[Any, dict[str, Any]]:
        import braintrace

        return braintrace.ThreeFactor, {}

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..rules import ThreeFactorLearner, check_modulator

        check_modulator(self.modulator, compiled, example)
        return ThreeFactorLearner(objective, compiled, modulator=self.modulator, cadence=self.cadence())


@dataclass(frozen=True)
class DNI(OnlineRule):
    """D-RTRL with synthetic gradients (decoupled neural interfaces).

    Parameters without a trace also get an estimate of their later credit: a linear synthesiser predicts, from the
    hidden states, the gradient of what is still to come (Jaderberg et al., ICML 2017).

    The synthesiser is fitted once, before step 0, on the first batch, by gradient descent against the gradients that
    the rule itself sends to the hidden states. It is not trained further. A resumed run fits it again as it starts,
    then takes the one that its checkpoint holds.
    """

    name: ClassVar[str] = "dni"
    fit_epochs: int = 20
    """passes over the first batch that fit the synthesiser"""
    fit_lr: float = 0.01
    """learning rate of that fit"""

    def __post_init__(self):
        super().__post_init__()
        if self.fit_epochs < 1:
            raise ValueError(f"DNI(fit_epochs={self.fit_epochs!r}): expected a whole number, at least 1")
        if not 0 < self.fit_lr < float("inf"):
            raise ValueError(f"DNI(fit_lr={self.fit_lr!r}): expected a positive rate")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "dni", {}

    def reach(self, time: int) -> Reach:

        return Reach(besides="Of what comes later it has the synthesiser's estimate")

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..dni import fitted

        return fitted(self, objective, compiled, example)


Recursion = Literal["jacobian", "scalar_leak", "none"]


@dataclass(frozen=True)
class ETrace(WindowedRule):
    """Any other rule of braintrace, by its coordinates (braintrace.ETraceConfig).

    Coordinates left as None take braintrace's default; combinations that do not exist are refused with its reason. The
    rules that need more than a gradient have strategies of their own: ``uoro``, ``three_factor``, ``dni``.

    Example::

        leaky = jaxtrain.strategies.ETrace(temporal_recursion="scalar_leak", decay=0.8)
    """

    name: ClassVar[str] = "etrace"
    trace_factorization: Literal["per_param", "io_factorized"] | None = None
    """store the trace per parameter, or factored into an input and an output side"""
    temporal_recursion: Recursion | tuple[Recursion, Recursion] | None = None
    """what multiplies the trace in each time step; a pair is (input side, output side)"""
    recurrence_scope: Literal["diagonal", "coupled", "sparse_n"] | None = None
    """how much of the recurrent mixing between units the trace includes"""
    learning_signal: Literal["symmetric", "random_feedback"] | None = None
    """feed back the gradient of the loss, or its projection by a fixed random matrix"""
    trace_filter: Literal["none", "kappa"] | None = None
    """low-pass filter on the trace"""
    decay: float | tuple[float, float] | None = None
    """decay rate of the trace, in [0, 1); a pair is (input side, output side)"""
    kappa: float | None = None
    """decay of the low-pass filter, in [0, 1)"""
    sparse_n: int | None = None
    """time steps within which a weight must reach a unit, under sparse_n"""
    feedback_seed: int = 0
    """seed of the random feedback matrix"""

    def __post_init__(self):
        elsewhere = {"random_projection": "uoro", "modulatory": "three_factor", "bootstrapped": "dni"}
        for name in ("trace_factorization", "learning_signal"):
            value = getattr(self, name)
            if isinstance(value, str) and value in elsewhere:
                raise ValueError(f"ETrace({name}={value!r}): this is strategy {elsewhere[value]!r}; use it")
        super().__post_init__()
        _check_feedback_seed(self, self.learning_signal == "random_feedback")
        self._config()

    def works_in(self) -> tuple[RequiredBatching, str]:
        if self.recurrence_scope in ("coupled", "sparse_n"):
            return "vmap", f"over a batch braintrace counts lanes as units (recurrence_scope={self.recurrence_scope!r})"
        return FILTERED if self.trace_filter == "kappa" else super().works_in()

    def _config(self) -> Any:
        import braintrace

        coordinates = [field.name for field in fields(ETrace) if field.default is None]
        given = {name: value for name in coordinates if (value := getattr(self, name)) is not None}
        try:
            return braintrace.ETraceConfig(**given)
        except (ValueError, TypeError) as error:  # its refusals name what does not go together
            spelled = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"ETrace({spelled}): {' '.join(str(error).split())}") from None

    def rule(self) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {"vjp_method": self.vjp}
        if self.learning_signal == "random_feedback":
            import jax

            options["random_feedback_key"] = jax.random.key(self.feedback_seed)
        return self._config(), options


def _check_feedback_seed(rule: EProp | ETrace, random: bool) -> None:
    """Raises ValueError for a seed that nothing is drawn from."""
    name, seed = type(rule).__name__, rule.feedback_seed
    if seed and not random:
        raise ValueError(f"{name}(feedback_seed={seed}): the feedback is not random, so nothing is drawn; drop it")
