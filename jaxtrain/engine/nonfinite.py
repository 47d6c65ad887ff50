"""What becomes of steps in which something is NaN or infinite: raise, skip or warn, and the words for it."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..core.state import is_key, seeded
from ..errors import NonFiniteError
from ..utils.logging import log
from .program import FINE, NonFinite, Program


def judged(bad: np.ndarray, first: int, batches: list[Any], policy: NonFinite,
           program: Program) -> tuple[int, NonFiniteError | None]:  # fmt: skip
    """Of a chunk that began after step ``first``, with ``bad`` ``(n, lanes)`` as the program found it: how many steps
    count, and the error to raise after them."""
    raises, fatal = policy == "raise", np.flatnonzero((bad != FINE).all(axis=1))
    lanes, fatal_text, fatal_name = program.lanes, "", ""
    for lane in range(bad.shape[1]):
        where = np.flatnonzero(bad[:, lane] >= 0)
        if not len(where):
            continue
        step, name = first + int(where[0]) + 1, program.bad_name(int(bad[where[0], lane]))
        who = "" if lanes is None else f"seed {lanes.seeds[lane]}: "
        text = f"step {step}: {who}{name} is not finite"
        if len(fatal) and where[0] == fatal[0]:
            fatal_text, fatal_name = text, name
        more = f" (and {len(where) - 1} more steps of this chunk)" if len(where) > 1 else ""
        if raises and lanes is not None:
            log.warning("%s; this seed is frozen as it was at step %d", text, step - 1)
        elif not raises:
            data = _nonfinite_data(program, batches[int(where[0])], step - 1)
            skipped = "; skipped" if policy == "skip" else ""
            log.warning("%s%s%s%s", text, more, skipped, f"; {data}" if data else "")
    if not raises or not len(fatal):
        return len(bad), None
    none_left = "" if lanes is None else ", and no seed is left"
    data = _nonfinite_data(program, batches[int(fatal[0])], first + int(fatal[0]))
    # The model need not use what is not finite there, so the rate is not ruled out.
    metric = fatal_name.startswith("train/") and fatal_name != "train/loss"
    own = "return (value, weight), with weight 0 where the metric has no value; or " if metric else ""
    mend = f"{data}: mend the data, give it weight 0 (Phases.weights), or choose Fit(nonfinite='skip'); or "
    advice = (
        (mend if data else "")
        + own
        + ("lower the learning rate, clip gradients, or choose Fit(nonfinite='skip' or 'warn')")
    )
    return int(fatal[0]), NonFiniteError(f"{fatal_text}{none_left}; {advice}")


def _nonfinite_data(program: Program, batch: Any, number: int) -> str | None:
    """Which array of a batch that counts holds NaN or infinity, in words; None where all is finite."""
    module, learner = program.module, program.learner
    with brainstate.environ.context(**module.environ, fit=True), seeded(0):
        batch = jax.tree.map(jnp.asarray, batch)  # as Module.phases meets it in a program
        phases = program.phases_of(batch, learner.objective.learn, learner.carried)
    what, tree = ("leaf batch", batch) if phases.weights is None else ("Phases", phases)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_key(leaf):
            continue
        bad = ~np.isfinite(np.asarray(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64))
        if bad.any():
            first = [int(index) for index in np.argwhere(bad)[0]]
            return (
                f"train data: batch {number}: {what}{jax.tree_util.keystr(path)} holds {int(bad.sum())} values "
                f"that are not finite, the first at {first}"
            )
    return None
