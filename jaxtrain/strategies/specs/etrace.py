"""ETrace: any rule of braintrace, by its coordinates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from .braintrace_rules import FILTERED, check_feedback_seed, feedback_key
from .online_rule import RequiredBatching, WindowedRule

Recursion = Literal["jacobian", "scalar_leak", "none"]


@dataclass(frozen=True)
class ETrace(WindowedRule):
    """Any other rule of braintrace, by its coordinates (braintrace.ETraceConfig).

    A coordinate of None takes the default of braintrace; the docstring under each field describes it. Rules that need
    more than a gradient are separate strategies: ``uoro``, ``three_factor``, ``dni``.

    Raises:
        ValueError: braintrace has no such combination; the message gives its reason.

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
        check_feedback_seed(self, self.learning_signal == "random_feedback")
        self._config()

    def works_in(self) -> tuple[RequiredBatching, str]:
        if self.recurrence_scope in ("coupled", "sparse_n"):
            scope = self.recurrence_scope
            return "vmap", f"over a batch braintrace counts sequences as units (recurrence_scope={scope!r})"
        return FILTERED if self.trace_filter == "kappa" else super().works_in()

    def _config(self) -> Any:
        import braintrace

        coordinates = [field.name for field in fields(ETrace) if field.default is None]
        given = {name: value for name in coordinates if (value := getattr(self, name)) is not None}
        try:
            return braintrace.ETraceConfig(**given)
        except (ValueError, TypeError) as error:  # the message names the coordinates that exclude each other
            spelled = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"ETrace({spelled}): {' '.join(str(error).split())}") from None

    def rule(self) -> tuple[Any, dict[str, Any]]:
        key = feedback_key(self.feedback_seed, self.learning_signal == "random_feedback")
        return self._config(), {"vjp_method": self.vjp} | key
