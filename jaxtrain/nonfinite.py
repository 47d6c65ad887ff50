"""What becomes of steps in which something is NaN or infinite: raise, skip or warn, and the words for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .console import log
from .data import nonfinite_leaf
from .program import FINE, NonFinite, Program
from .run import NonFiniteError


def judged(bad: np.ndarray, first: int, batches: list[Any], policy: NonFinite,
           program: Program) -> tuple[int, NonFiniteError | None]:  # fmt: skip
    """Of a chunk that began after step ``first``, with ``bad`` ``(n, lanes)`` as the program found it: how many steps
    count, and the error to raise after them."""
    raises, fatal = policy == "raise", np.flatnonzero((bad != FINE).all(axis=1))
    lanes, fatal_text = program.lanes, ""
    for lane in range(bad.shape[1]):
        where = np.flatnonzero(bad[:, lane] >= 0)
        if not len(where):
            continue
        step, name = first + int(where[0]) + 1, program.bad_name(int(bad[where[0], lane]))
        who = "" if lanes is None else f"seed {lanes.seeds[lane]}: "
        text = f"step {step}: {who}{name} is not finite"
        if len(fatal) and where[0] == fatal[0]:
            fatal_text = text
        more = f" (and {len(where) - 1} more steps of this chunk)" if len(where) > 1 else ""
        if raises and lanes is not None:
            log.warning("%s; this seed is frozen as it was at step %d", text, step - 1)
        elif not raises:
            data = nonfinite_leaf(batches[int(where[0])], step - 1)
            skipped = "; skipped" if policy == "skip" else ""
            log.warning("%s%s%s%s", text, more, skipped, f"; {data}" if data else "")
    if not raises or not len(fatal):
        return len(bad), None
    none_left = "" if lanes is None else ", and no seed is left"
    data = nonfinite_leaf(batches[int(fatal[0])], first + int(fatal[0]))
    # What is not finite there may weigh nothing, so the rate is not ruled out.
    advice = (f"{data}: mend the data, or choose Fit(nonfinite='skip'); or " if data else "") + (
        "lower the learning rate, clip gradients, or choose Fit(nonfinite='skip' or 'warn')"
    )
    return int(fatal[0]), NonFiniteError(f"{fatal_text}{none_left}; {advice}")
