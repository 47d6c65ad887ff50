"""Ways to train that overhead.py compares: a hand-written loop, braintrace's tutorial, braintools.trainer, and Fit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
from braintools.trainer import DataLoader, Dataset, LightningModule
from contenders import ByHand
from copy_task import DEPTH, LR, Copy, Setting, cross_entropy, make_model

import jaxtrain as jt
from jaxtrain.checkpoint.load import build
from jaxtrain.engine.program import Program
from jaxtrain.strategies.registry import make_strategy

CLIP, LOG_EVERY = 1.0, 100


def data_of(setting: Setting) -> Any:
    return jt.datasets.CopyDataModule(setting.time - 2 * setting.scored, setting.scored, setting.batch)


def now() -> np.ndarray:
    """Wall-clock seconds, and CPU seconds of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


class HandWritten:
    """The step of ``Fit`` in a scan. ``round(steps)``, here and below, returns wall-clock and CPU seconds per step."""

    def __init__(self, setting: Setting, strategy: str):
        self.data, module = data_of(setting).train_data(), Copy(setting)
        build(module, 0)
        started = time.perf_counter()
        program = Program(
            module, make_strategy(strategy), self.data.encode, self.data.batch(0), seed=0, clip=CLIP, accumulate=1,
            nonfinite="raise", chunk="auto",
        )  # fmt: skip
        self.values, self.root, self.length = program.values, program.root, program.chunk
        if LOG_EVERY % self.length:
            raise RuntimeError(f"a chunk has {self.length} steps; expected a divisor of LOG_EVERY={LOG_EVERY}")
        step = program._step

        def chunk(values, root, first, batches):
            # Return every output of the step, or XLA would remove the computation of those that are dropped.
            body = lambda values, x: step(values, root, *x)  # noqa: E731
            return jax.lax.scan(body, values, (first + jnp.arange(self.length), batches))

        self.step, self.losses = 0, []
        self.entries: list[float] = []
        self.batches = self._stacked()
        example = (self.values, self.root, np.int32(0), self.batches)
        self.chunk = jax.jit(chunk, donate_argnums=0).lower(*example).compile()
        self.compile_seconds = time.perf_counter() - started

    def _stacked(self) -> tuple[np.ndarray, np.ndarray]:
        batches = [self.data.batch(self.step + i) for i in range(self.length)]
        return np.stack([ids for ids, _ in batches]), np.stack([targets for _, targets in batches])

    def round(self, steps: int) -> np.ndarray:
        started = now()
        for _ in range(steps // self.length):
            self.values, output = self.chunk(self.values, self.root, np.int32(self.step), self.batches)
            self.losses.append(output.metrics["loss"])
            self.step += self.length
            self.batches = self._stacked()
            if self.step % LOG_EVERY == 0:
                nums, weights = (np.concatenate(arrays) for arrays in zip(*self.losses, strict=True))
                self.entries.append(float(nums.sum() / weights.sum()))
                self.losses = []
        return (now() - started) / steps


class Tutorial:
    """braintrace's tutorial: one jitted call per batch, and the loss is fetched at every step."""

    def __init__(self, setting: Setting, strategy: str):
        self.batches = iter(data_of(setting).train_data())
        self.losses: list[float] = []
        self.loop = ByHand(setting, strategy)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # braintrace warns that Wr gets no gradient
            self.round(1)
        self.compile_seconds = time.perf_counter() - started

    def round(self, steps: int) -> np.ndarray:
        started = now()
        for _ in range(steps):
            x, y = next(self.batches)
            loss = self.loop.step(jnp.asarray(np.transpose(x, (1, 0, 2))), jnp.asarray(y.T))
            self.losses.append(float(loss))
        return (now() - started) / steps


class Lightning(LightningModule):
    def __init__(self, setting: Setting):
        super().__init__()
        self.setting, self.net = setting, make_model(setting)

    def training_step(self, batch, batch_idx):
        ids, targets = batch
        brainstate.nn.init_all_states(self.net, batch_size=self.setting.batch)
        logits = brainstate.transform.for_loop(self.net, jax.nn.one_hot(ids, DEPTH))[self.setting.warm :]
        self.log("accuracy", jnp.mean(logits.argmax(-1) == targets))
        return {"loss": cross_entropy(logits, targets).mean()}

    def configure_optimizers(self):
        return braintools.optim.Adam(LR)


class Batches(Dataset):
    """A dataset for braintools.DataLoader whose items are whole batches."""

    def __init__(self, setting: Setting, length: int):
        self.length, self.data = length, data_of(setting).train_data()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.data.batch(index)


class BrainTools:
    """braintools.trainer. Every fit compiles again, so the timing of a round starts after its first ten batches."""

    def __init__(self, setting: Setting, root: str):
        self.setting, self.model, self.root = setting, Lightning(setting), root
        started = time.perf_counter()
        self.compile_seconds = self._fit(2)[-1][0] - started

    def round(self, steps: int) -> np.ndarray:
        marks = self._fit(steps + 10)
        return (marks[-1] - marks[9]) / steps

    def _fit(self, steps: int) -> list[np.ndarray]:
        """``now()`` at the end of every step."""
        marks: list[np.ndarray] = []

        class Clock(braintools.trainer.Callback):
            def on_train_batch_end(self, *args):
                marks.append(now())

        quiet: dict[str, Any] = {"default_root_dir": self.root, "enable_progress_bar": False}
        trainer = braintools.trainer.Trainer(max_epochs=1, gradient_clip_val=CLIP, callbacks=[Clock()], **quiet)
        trainer.fit(
            self.model, DataLoader(Batches(self.setting, steps), batch_size=1, collate_fn=lambda items: items[0])
        )
        return marks


class Rounds(jt.Callback):
    """Times a run of Fit in rounds of ``steps``, and calls ``between`` after each round. Round 0 warms up."""

    rank = "persist"  # called last, so that a round includes the other callbacks at its end

    def __init__(self, steps: int, between: Callable[[], None]):
        self.steps, self.between = steps, between
        self.times: list[np.ndarray] = []
        self.started = now()

    def boundaries(self):
        return (jt.period.Period(self.steps, "step"),)

    def on_chunk_end(self, run, metrics):
        if run.step % self.steps == 0:
            self.times.append((now() - self.started) / self.steps)
            self.between()
            self.started = now()  # the rest of this boundary, such as its log entry, counts for the next round


def run_fit(setting: Setting, strategy: str, steps: int, run_dir: Path, every: int,
            extra: jt.Callback | None = None) -> jt.Result:  # fmt: skip
    """Run Fit with its default callbacks, as in the recipe but without the figure."""
    callbacks = [jt.Checkpoint(every=every, keep_best=2, keep_last=2), *([extra] if extra else [])]
    fit = jt.Fit(
        strategy, max_steps=steps, clip=CLIP, log_every=LOG_EVERY, run_dir=run_dir, callbacks=callbacks, progress=True
    )
    return fit.run(Copy(setting), data_of(setting))
