"""The run that the walk breaks: a few steps with everything that a run can have on disk, and what it came to.

Noise in the model, an optimizer with moments and a schedule, callbacks with states, both loggers, figures, two saves,
and an old checkpoint that is deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import brainstate
import optax

import jaxtrain as jt
from jaxtrain.checkpoint.store import Store
from jaxtrain.utils.digests import digest
from tests.small import TIMED, Linear, lines, rows, scalars

STEPS = 8


class Noisy(Linear):
    """``Linear`` whose input is noisy: the random numbers of a resumed run must be the run's own."""

    def __init__(self) -> None:
        rate = optax.warmup_cosine_decay_schedule(0.0, 0.05, 3, 8)
        adam = optax.inject_hyperparams(optax.adamw)
        super().__init__(lambda: optax.chain(optax.clip(0.5), adam(learning_rate=rate)))

    def learning_step(self, forward, x, y):
        return super().learning_step(forward, x + 0.1 * brainstate.random.randn(*x.shape), y)


class Figure(jt.Callback):
    """One figure at every validation, as small as figures get."""

    rank = "produce"

    def on_validation_end(self, run, metrics):
        from matplotlib.figure import Figure

        run.figure("tiny", Figure(figsize=(0.2, 0.2), dpi=10))


def fit(run_dir: Path, steps: int = STEPS, *more: jt.Callback) -> jt.Fit:
    callbacks = [
        jt.callbacks.LearningRateMonitor(), jt.callbacks.Throughput(), jt.EarlyStopping("val/loss", patience=9),
        Figure(), jt.loggers.JSONL(),
        jt.loggers.TensorBoard(), jt.Checkpoint(every=4, mode="max"), *more,
         # step 8 replaces step 4
    ]  # fmt: skip
    return jt.Fit("bptt", max_steps=steps, chunk=2, log_every=1, validate_every=4, callbacks=callbacks, run_dir=run_dir)


def train(run_dir: Path, resume: str = "last") -> jt.Result:
    return fit(run_dir).run(Noisy(), lines(), resume=resume)


def came_to(run_dir: Path) -> dict[str, Any]:
    """All that a run left behind and that must not depend on what happened on the way."""
    store = Store(run_dir / "checkpoints", read_only=True)
    try:
        saved = {step: store.restore(step) for step in store.steps()}  # verifies every leaf
    finally:
        store.close()
    meta = {step: one.meta for step, one in saved.items()}
    result = json.loads((run_dir / "result.json").read_text())
    names = ("status", "reason", "step", "train", "val", "best", "digest", "params")
    kept = {
        "callbacks",
        "position",
        "requests",
        "ending",
        "digests",
        "store",
        "optimizer_settings",
        "last_validation",
        "stage",
    }
    figures = run_dir / "figures"
    return {
        "result": {name: result[name] for name in names},
        "arrays": {step: digest({**one.params, **one.train}) for step, one in saved.items()},
        "meta": {step: {name: one[name] for name in kept} for step, one in meta.items()},
        "metrics": {
            step: {tag: value for tag, value in one["metrics"].items() if not tag.startswith(TIMED)}
            for step, one in meta.items()
        },
        "rows": rows(run_dir),
        "points": {tag: [list(point) for point in points] for tag, points in scalars(run_dir).items()},
        "figures": sorted(path.name for path in figures.iterdir()),
        "files": sorted(path.name for path in run_dir.iterdir()),
        "checkpoints": sorted(path.name for path in (run_dir / "checkpoints").iterdir()),
    }
