"""The other online rules of braintrace: their options and calls. Base classes describe the options they inherit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .backward_rule import BackwardRule
from .online_rule import EngineRule, Reach, RequiredBatching, ReversibleRule, SteppedRule, WindowedRule

if TYPE_CHECKING:
    from ...core.module import Phases
    from ...core.objective import Objective
    from ..base import Learner, Network

FILTERED: tuple[RequiredBatching, str] = ("batched", "braintrace cannot map its trace filter (kappa) over sequences")


@dataclass(frozen=True)
class EProp(ReversibleRule):
    """e-prop: D-RTRL with a filtered trace or random feedback.

    Bellec et al., Nature Communications 11:3625, 2020. With symmetric feedback and no filter, the rule is D-RTRL.

    Args:
        feedback: "symmetric" or "random".
        kappa: Decay of the low-pass filter on the trace, in [0, 1). It stands for the leak of a readout outside of the
            model. If the model has a leaky readout, use ``readout_memory=True`` instead.
        feedback_seed: Seed of the random feedback matrix.

    Raises:
        ValueError: ``kappa`` is out of range or is combined with ``readout_memory``, or a seed is given without random
            feedback.

    >>> fit = jaxtrain.Fit(EProp(feedback="random"), max_steps=1000)
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
        self._require_fraction("kappa")
        twice = "0 with readout_memory=True, because both credit the past of the readout, which would then count twice"
        self._require(not (self.kappa and self.readout_memory), "kappa", twice)
        check_feedback_seed(self, self.feedback == "random")

    def works_in(self) -> tuple[RequiredBatching, str]:
        return FILTERED if self.kappa else super().works_in()

    def reach(self, time: int) -> Reach:
        found = super().reach(time)
        return replace(found, memory=f"kappa=0 and {found.memory}") if self.kappa else found

    def rule(self) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {"vjp_method": self.vjp, "feedback": self.feedback}
        if self.kappa:
            options["kappa_filter_decay"] = self.kappa
        return "eprop", options | feedback_key(self.feedback_seed, self.feedback == "random")

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(kappa=self.kappa, feedback_seed=self.feedback_seed if self.feedback == "random" else None)


@dataclass(frozen=True)
class OSTLRecurrent(ReversibleRule):
    """OSTL with recurrent mixing (SnAp-1).

    The rule keeps the recurrent mixing in the block diagonal of the transition (Bohnstingl et al., IEEE TNNLS 2022).
    The model is mapped over sequences, because for a batch braintrace builds a Jacobian of (batch x hidden) squared.

    >>> fit = jaxtrain.Fit(OSTLRecurrent(), max_steps=1000)
    """

    name: ClassVar[str] = "ostl_recurrent"
    required_batching: ClassVar[RequiredBatching] = "vmap"
    why_batching: ClassVar[str] = "over a batch its Jacobian is (batch x hidden) squared"
    narrow: ClassVar[bool] = True

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "ostl_recurrent", {"vjp_method": self.vjp}

    def works_in(self) -> tuple[RequiredBatching, str]:
        reverse: RequiredBatching = "batched" if self.engine == "reverse" else "either"
        return super().works_in() if self.engine == "trace" else (reverse, "the reverse engine runs the whole batch")

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(own_recurrence=True)


@dataclass(frozen=True)
class OSTLFeedforward(ReversibleRule, WindowedRule):
    """OSTL without the temporal term.

    Credit is limited to one time step (Bohnstingl et al., IEEE TNNLS 2022).

    >>> fit = jaxtrain.Fit(OSTLFeedforward(window=5), max_steps=1000)
    """

    name: ClassVar[str] = "ostl_feedforward"

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "ostl_feedforward", {"vjp_method": self.vjp}

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(decay=1e-6)  # braintrace's value for "no temporal term"


@dataclass(frozen=True)
class SnAp(SteppedRule):
    """SnAp-n: RTRL restricted to units within n time steps of a weight.

    Menick et al. 2020. With a large n, the rule is RTRL within each hidden group. The cost grows with the square of
    the size of a group. The model is mapped over sequences.

    Args:
        n: Time steps within which a weight must reach a unit, at least 1.

    >>> fit = jaxtrain.Fit(SnAp(n=3), max_steps=1000)
    """

    name: ClassVar[str] = "snap"
    required_batching: ClassVar[RequiredBatching] = "vmap"
    why_batching: ClassVar[str] = "over a batch braintrace counts sequences as units"
    n: int = 2
    """time steps within which a weight must reach a unit"""

    def __post_init__(self):
        super().__post_init__()
        self._require_steps("n")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        import braintrace

        return braintrace.SnAp, {"n": self.n, "vjp_method": self.vjp}


@dataclass(frozen=True)
class UORO(EngineRule):
    """Unbiased rank-one estimate of RTRL.

    It estimates RTRL within each hidden group (Tallec and Ollivier, ICLR 2018). For weights that have a trace the
    estimate is unbiased, but its variance is high. Other weights receive the credit of one time step. The random
    projections come from the random numbers of the training step. Every sequence starts a new series of them; with
    ``stateful=True`` one series starts at the beginning of the stream and continues. The rule requires batched states.

    braintrace (``engine="trace"``) creates a Jacobian of (batch x hidden) squared at every time step. With
    ``engine="reverse"`` the same estimate, with the same random numbers, advances over known hidden states and
    products.

    >>> fit = jaxtrain.Fit(UORO(), max_steps=1000)
    """

    name: ClassVar[str] = "uoro"
    required_batching: ClassVar[RequiredBatching] = "batched"
    why_batching: ClassVar[str] = "braintrace cannot map its random projections over sequences"
    narrow: ClassVar[bool] = True

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "uoro", {}

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(rank_one=True)

    def reverse_learner(self, objective: Objective, network: Network, step: Any, example: Phases, **options: Any):
        from ..reverse.rank_one import RankOneLearner

        return RankOneLearner(objective, network, step, self.backward_rule(), **options)

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..trace_learners import UOROLearner

        return UOROLearner(objective, compiled, update_schedule=self.update_schedule())


@dataclass(frozen=True)
class ThreeFactor(EngineRule):
    """Reward-modulated learning: the trace times a reward.

    The reward is part of the batch and is not a gradient of the loss (Fremaux and Gerstner 2016). It replaces the
    gradient of the loss with respect to the hidden states. The optimizer descends, so a positive number decreases the
    hidden states: negate a reward that should increase. ``Phases.weights`` multiply the reward, as they multiply a
    loss. Parameters without a trace, such as a readout, are not trained. Terms of the loss, such as a weight
    regulariser, have no effect.

    Args:
        modulator: Name of the reward sequence in ``Phases.extras``.

    >>> fit = jaxtrain.Fit(ThreeFactor(modulator="reward"), max_steps=1000)
    """

    name: ClassVar[str] = "three_factor"
    required_batching: ClassVar[RequiredBatching] = "batched"
    why_batching: ClassVar[str] = "braintrace cannot pass a modulator through a mapped model"
    modulator: str = "reward"
    """name of the reward sequence in Phases.extras

    Its shape is ``(T_l, B)``, ``(T_l, B, 1)`` or ``(T_l, B, units)``, with one number for each unit.
    """

    def rule(self) -> tuple[Any, dict[str, Any]]:
        import braintrace

        return braintrace.ThreeFactor, {}

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(modulator=self.modulator)

    def is_single_step(self) -> bool:
        return True

    def reverse_learner(self, objective: Objective, network: Network, step: Any, example: Phases, **options: Any):
        from ..reverse.rewarded import RewardedLearner

        return RewardedLearner(objective, network, step, self.backward_rule(), example, **options)

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..reward import check_modulator
        from ..trace_learners import ThreeFactorLearner

        check_modulator(self.modulator, {tuple(group.varshape[1:]) for group in compiled.graph.hidden_groups}, example)
        return ThreeFactorLearner(objective, compiled, modulator=self.modulator, update_schedule=self.update_schedule())


@dataclass(frozen=True)
class DNI(EngineRule):
    """D-RTRL with synthetic gradients (decoupled neural interfaces).

    Parameters without a trace also receive an estimate of their later credit: from the hidden states, a linear
    synthesiser predicts the gradient of the losses that follow (Jaderberg et al., ICML 2017).

    The synthesiser is fitted once, before step 0, on the first batch, by gradient descent. Its targets are the
    gradients that each time step sends to the hidden states before it. It is not trained after that. A resumed run fits
    it again at its start, then loads the synthesiser of the checkpoint.

    Args:
        fit_epochs: Passes over the first batch, at least 1.
        fit_lr: Learning rate of the fit, above 0.

    Raises:
        ValueError: A value is out of range.

    >>> fit = jaxtrain.Fit(DNI(fit_epochs=50), max_steps=1000)
    """

    name: ClassVar[str] = "dni"
    fit_epochs: int = 20
    """passes over the first batch that fit the synthesiser"""
    fit_lr: float = 0.01
    """learning rate of that fit"""

    def __post_init__(self):
        super().__post_init__()
        self._require(self.fit_epochs >= 1, "fit_epochs", "a whole number, at least 1")
        self._require(0 < self.fit_lr < float("inf"), "fit_lr", "a positive rate")

    def rule(self) -> tuple[Any, dict[str, Any]]:
        return "dni", {}

    def reach(self, time: int) -> Reach:
        return Reach(besides="For later losses it has the synthesiser's estimate")

    def backward_rule(self) -> BackwardRule:
        return BackwardRule(estimate=True)

    def reverse_learner(self, objective: Objective, network: Network, step: Any, example: Phases, **options: Any):
        from ..reverse.estimated import EstimatedLearner

        learner = EstimatedLearner(objective, network, step, self.backward_rule(), **options)
        learner.synthesiser.fit(objective, example, self.fit_epochs, self.fit_lr)
        return learner

    def learner(self, objective: Objective, compiled: Any, example: Phases) -> Learner:
        from ..dni import fitted

        return fitted(self, objective, compiled, example)


def check_feedback_seed(rule: Any, random: bool) -> None:
    """Raise ValueError if a seed is given but nothing random is drawn."""
    name, seed = type(rule).__name__, rule.feedback_seed
    if seed and not random:
        raise ValueError(f"{name}(feedback_seed={seed}): the feedback is not random, so nothing is drawn; drop it")


def feedback_key(seed: int, random: bool) -> dict[str, Any]:
    """The option of braintrace for the random feedback matrix, if there is one."""
    if not random:
        return {}
    import jax

    return {"random_feedback_key": jax.random.key(seed)}
