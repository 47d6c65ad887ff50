"""GradientFidelity: how far the gradient of the running rule is from that of BPTT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..period import Period
from .arguments import steps_or_epochs
from .base import Callback

if TYPE_CHECKING:
    from ..core.module import Module, Phases
    from ..strategies.base import Learner
    from .run import Run


class GradientFidelity(Callback):
    """Compares the gradient of the running rule with that of BPTT, on the first training batch and the current weights.

    The log gets ``fidelity/cosine``, ``fidelity/norm_ratio`` (rule over BPTT) and ``fidelity/sign_agreement`` (share of
    the entries, of those not zero in both, with the same sign). Each is logged in total and, with ``per_parameter``,
    for each trained parameter (``fidelity/cosine/rnn.Wh.weight``). If the rule's gradient is exactly zero, the cosine
    is 1 if BPTT's is zero too, else 0. The ratio to a BPTT gradient of zero is NaN, and so are all values of a gradient
    that is not finite.

    Both gradients start from fresh hidden states and use the same random numbers. They are computed in a separate
    program, which does not change the weights in any bit. It needs the memory of BPTT, which holds the activations of
    the whole sequence. Leave this callback out if you use an online rule because of memory.

    >>> callbacks = [GradientFidelity(every=200)]

    Args:
        every: Steps or epochs between comparisons.
        per_parameter: Whether to log each trained parameter in addition to the totals.

    Raises:
        ValueError: ``every`` is not a number of steps or epochs.
    """

    rank = "produce"

    def __init__(self, every: int | str | Period, per_parameter: bool = True):
        self.probe_every = steps_or_epochs(every, "GradientFidelity")
        self.per_parameter = per_parameter

    def probe(self, module: Module, learner: Learner, phases: Phases) -> Any:
        from ..strategies.fidelity import compare

        return compare(learner, phases)

    def on_probe(self, run: Run, values: Any) -> None:
        for name, numbers in values.items():
            if name and not self.per_parameter:
                continue
            run.log({f"fidelity/{key}" + (f"/{name}" if name else ""): float(x) for key, x in numbers.items()})
