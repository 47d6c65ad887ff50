"""Decides which checkpoints of a directory are kept, and which one is the best."""

import math
from collections.abc import Sequence
from typing import Any, Literal

Mode = Literal["min", "max"]


class Retention:
    """The newest checkpoints and those with the best scores.

    Orbax's own ``LatestN | BestN`` keeps steps without a score while there are few, counts unreadable steps, and trusts
    a metrics file that has no digest. The scores used here come from verified metadata.

    Args:
        last: Number of newest checkpoints to keep, at least 1.
        best: Number of best checkpoints to keep in addition. With equal scores the earlier one is better.
        mode: Whether a low ("min") or a high ("max") score is better. A nonfinite score is always the worst.

    Attributes:
        scores: Scores of the steps whose metadata was read.
        unreadable: Steps known to be unreadable, and why.
        saving: The step that is being saved, or None.
    """

    def __init__(self, last: int, best: int, mode: Mode):
        if last < 1 or best < 0:
            raise ValueError(f"a store keeps last >= 1 and best >= 0 checkpoints, not last={last}, best={best}")
        self.last, self.best, self.mode = last, best, mode
        self.scores: dict[int, float | None] = {}
        self.unreadable: dict[int, str] = {}
        self.saving: int | None = None

    def ranked(self, steps: Sequence[int]) -> list[int]:
        """The readable steps that have a score, best first."""
        scores = {step: self.scores.get(step) for step in steps if step not in self.unreadable}
        sign = 1 if self.mode == "min" else -1
        # NaN is unordered: it would scramble the sort, and the best checkpoint could be deleted.
        keys = {s: sign * x if math.isfinite(x) else math.inf for s, x in scores.items() if x is not None}
        return sorted(keys, key=lambda step: (keys[step], step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Called by Orbax during a save: which steps to keep. The others are deleted when the new step is on disk."""
        assert self.saving is not None
        readable = sorted(c.step for c in checkpoints if c.step not in self.unreadable)
        kept = {self.saving, *readable[-self.last :], *self.ranked(readable)[: self.best]}
        kept.update(step for step in self.unreadable if step > self.saving)  # older unreadable steps are deleted
        return [c.step in kept for c in checkpoints]
