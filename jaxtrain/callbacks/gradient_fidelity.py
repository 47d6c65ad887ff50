"""GradientFidelity: how far the running rule's gradient is from the truth, on the live weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..period import Period
from .base import Callback
from .periods import steps_or_epochs

if TYPE_CHECKING:
    from .run import Run


class GradientFidelity(Callback):
    """Every so often compares the gradient of the rule in use with that of BPTT, on the first training batch.

    ``every``: steps or epochs. Rows get ``fidelity/cosine``, ``fidelity/norm_ratio`` (rule over BPTT) and
    ``fidelity/sign_agreement`` (share of the entries that are not zero in both), each in total and, with
    ``per_parameter``, by trained parameter (``fidelity/cosine/rnn.Wh.weight``). A gradient of exact zeros has cosine 1
    where BPTT's is zero too, else 0; a ratio to a BPTT gradient of zero is NaN, as is everything of a gradient that is
    not finite. Both gradients start from fresh hidden states and draw the same random numbers. It runs in a program of
    its own; the weights are the same, bit for bit, with it and without it.

    That program needs the memory of BPTT, which holds the activations of the whole sequence, whatever the rule in use
    needs: leave it out where memory is why an online rule was chosen.

    >>> callbacks = [GradientFidelity(every=200)]
    """

    rank = "produce"

    def __init__(self, every: int | str | Period, per_parameter: bool = True):
        self.probe_every = steps_or_epochs(every, "GradientFidelity")
        self.per_parameter = per_parameter

    def probe(self, module, learner, phases) -> Any:
        from ..strategies.fidelity import compare

        return compare(learner, phases)

    def on_probe(self, run: Run, values: Any) -> None:
        for name, numbers in values.items():
            if name and not self.per_parameter:
                continue
            run.log({f"fidelity/{key}" + (f"/{name}" if name else ""): float(x) for key, x in numbers.items()})
