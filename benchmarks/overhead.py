"""Overhead of ``Fit`` over a hand-written loop, and the speed of other ways to train the same network.

python benchmarks/overhead.py
python benchmarks/overhead.py --strategies bptt --rounds 30 --json overhead.json
python benchmarks/overhead.py --cases smallest

The copying task at a size with short steps, so that work on the host is visible: GRU of 16 units, 70 time steps, batch
16, Adam, a log entry every 100 steps. "smallest" has one unit, three time steps and one sequence, so that it measures
overhead only; it has no goals. Four ways to take the same steps:

* hand-written: ``jax.lax.scan`` over a chunk of the same steps that ``Fit`` compiles. The state is donated, the next
  batches are stacked while the device computes, and the losses are fetched for every log entry. It does nothing else.
* Fit: run directory, JSONL, TensorBoard, LearningRateMonitor, Throughput, Checkpoint, ProgressBar.
* tutorial: one jitted call per batch that creates learner and states; data is converted to one-hot and transposed; the
  loss is fetched at every step. Its D-RTRL is the default of braintrace, the single-step rule, which does less work per
  step than the default of Fit.
* braintools.trainer: a LightningModule and its Trainer with the CSV logger and no progress bar; it supports only BPTT.

Speed: all run in turns in one process. Every round is compared with the mean of the rounds of the hand-written loop
before and after it, so that a slow machine affects both. When a round of Fit or of the loop starts and ends, no
computation is in flight. A round of Fit includes data preparation, log entries and callbacks. It does not include
checkpoints and validations, which are listed separately. CPU time is that of all threads. Work on the host that
overlaps with the device takes no wall-clock time if a core is free, and its CPU time if none is. Compile seconds (from
an existing model to the first step) and peak memory are measured in a new process for each way. All processes import
the same modules.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import braintools
import common
import jax
import jax.numpy as jnp
import numpy as np
from braintools.trainer import DataLoader, Dataset, LightningModule
from contenders import DEPTH, LR, ByHand, Copy, Setting, cross_entropy, make_model

import jaxtrain as jt
from jaxtrain.callbacks.throughput import peak_rss_mb
from jaxtrain.checkpoint.load import build
from jaxtrain.engine.program import Program
from jaxtrain.strategies.registry import make_strategy

CLIP, LOG_EVERY = 1.0, 100
CASES = {"small": Setting(hidden=16, batch=16), "smallest": Setting(hidden=1, time=3, batch=1, scored=1)}
CASE_WITH_GOALS, MOST_OVERHEAD, LEAST_SPEEDUP = "small", 3.0, 10.0
"""Largest overhead over the hand-written loop in per cent, and smallest speed relative to braintools.trainer."""
SPARSE = 3
"""Ways that dispatch every batch are much slower than the loop: they run every third round, a third of its steps."""


def data_of(setting: Setting) -> Any:
    return jt.datasets.CopyDataModule(setting.time - 2 * setting.scored, setting.scored, setting.batch)


def now() -> np.ndarray:
    """Wall-clock seconds, and CPU seconds of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


# ------------------------------------------------------------------------------------------------ ways to train


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
            self.values, (metrics, *_) = self.chunk(self.values, self.root, np.int32(self.step), self.batches)
            self.losses.append(metrics["loss"])
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


# ------------------------------------------------------------------------------------------------- measurements


def alone(setting: Setting, way: str, strategy: str, root: str) -> dict[str, float]:
    """Compile seconds and peak memory of one way. Run it in a new process."""
    imported, steps, numbers = peak_rss_mb(), 400, {}
    if way == "Fit":
        seconds = run_fit(setting, strategy, steps, Path(root) / "run", every=100).summary["seconds"]
        numbers = {"checkpoint_ms": 1e3 * seconds["checkpoint"] / 4, "validate_ms": 1e3 * seconds["validate"]}
        compiled = seconds["compile"]
    else:
        trainer = make(setting, way, strategy, root)
        trainer.round(steps)
        compiled = trainer.compile_seconds
    return {"compile_s": compiled, "peak_mib": peak_rss_mb(), "imports_mib": imported, **numbers}


def make(setting: Setting, way: str, strategy: str, root: str) -> HandWritten | Tutorial | BrainTools:
    if way == "braintools.trainer":
        return BrainTools(setting, root)
    return {"hand-written": HandWritten, "tutorial": Tutorial}[way](setting, strategy)


def by_turns(setting: Setting, strategy: str, ways: list[str], rounds: int, steps: int,
             root: str) -> dict[str, np.ndarray]:  # fmt: skip
    """Times per step of each way, and of the hand-written loop before and after it, in turns.

    Returns:
        For each way, an array ``(rounds, 2, 2)``: by round, way or loop, and wall-clock or CPU seconds.
    """
    hand = HandWritten(setting, strategy)
    others = {way: make(setting, way, strategy, root) for way in ways if way not in ("hand-written", "Fit")}
    pairs: dict[str, list[Any]] = {way: [] for way in ("Fit", *others)}
    before: list[np.ndarray] = []

    def between() -> None:
        reference = hand.round(steps)
        if before:  # after the warm-up
            pairs["Fit"].append((clock.times[-1], (before[-1] + reference) / 2))
        for way, other in others.items() if len(before) % SPARSE == 1 else ():
            times, earlier, reference = other.round(steps // SPARSE), reference, hand.round(steps)
            pairs[way].append((times, (earlier + reference) / 2))
        before.append(reference)

    clock = Rounds(steps, between)
    run_fit(setting, strategy, (rounds + 1) * steps, Path(root) / "run", every=10**9, extra=clock)
    return {way: np.array(rounds) for way, rounds in pairs.items()}


def make_table(pairs: dict[str, np.ndarray], fresh: dict[str, dict[str, float]]) -> list[str]:
    head = ["", "steps/s, median (quartiles)", "CPU ms per step", "time over hand-written, paired median (quartiles)"]
    head += ["CPU over hand-written", "compile, s", "peak memory, MiB (above imports)"]
    rows = []
    for way, times in {"hand-written": pairs["Fit"][:, [1, 1]], **pairs}.items():
        low, median, high = np.percentile(1 / times[:, 0, 0], [25, 50, 75])
        overhead = 100 * (times[:, 0] / times[:, 1] - 1)
        least, middle, most = np.percentile(overhead[:, 0], [25, 50, 75])
        compared = [f"{middle:+.1f} % ({least:+.1f} to {most:+.1f})", f"{np.median(overhead[:, 1]):+.1f} %"]
        peak, imports = fresh[way]["peak_mib"], fresh[way]["imports_mib"]
        rows.append([
            way, f"{median:.0f} ({low:.0f} to {high:.0f})", f"{1000 * np.median(times[:, 0, 1]):.2f}",
            *(["", ""] if way == "hand-written" else compared), f"{fresh[way]['compile_s']:.1f}",
            f"{peak:.0f} ({peak - imports:+.0f})",
        ])  # fmt: skip
    return common.table(head, rows)


def make_goals(strategy: str, pairs: dict[str, np.ndarray]) -> list[common.Goal]:
    """Goals for times relative to the hand-written loop, which depend less on the load of the machine."""
    over = {way: np.median(times[:, 0, 0] / times[:, 1, 0]) for way, times in pairs.items()}
    goals = [
        common.Goal(f"{strategy}: overhead of Fit over hand-written, per cent", 100 * (over["Fit"] - 1), MOST_OVERHEAD)
    ]
    if "braintools.trainer" in over:
        speedup = float(over["braintools.trainer"] / over["Fit"])
        what = f"{strategy}: steps/s of Fit over braintools.trainer"
        goals.append(common.Goal(what, speedup, LEAST_SPEEDUP, at_least=True))
    return goals


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--strategies", nargs="+", default=["drtrl", "bptt"], choices=["drtrl", "bptt"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=15, help="rounds of Fit; each is between two rounds of the loop")
    parser.add_argument("--steps", type=int, default=500, help=f"steps per round, a multiple of {LOG_EVERY}")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1 or options.steps < 1 or options.steps % LOG_EVERY:
        parser.error(f"--rounds must be 1 or more and --steps a multiple of {LOG_EVERY}")
    jax.config.update("jax_enable_compilation_cache", False)
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    if options.alone:
        case, way, strategy = options.alone
        with tempfile.TemporaryDirectory() as root:
            return print(json.dumps(alone(CASES[case], way, strategy, root)))

    print(f"a log entry every {LOG_EVERY} steps; {options.rounds} rounds of {options.steps} steps; {common.machine()}")
    ways = {name: ["hand-written", "Fit", "tutorial"] for name in options.strategies}
    ways |= {"bptt": [*ways["bptt"], "braintools.trainer"]} if "bptt" in ways else {}
    sections: dict[str, list[str]] = {}
    numbers: dict[str, Any] = {}
    goals: list[common.Goal] = []
    # Child processes start before this process grows: on Linux the peak of a child includes the size of its parent.
    fresh = {
        (case, name): {way: common.fresh("overhead.py", "--alone", case, way, name) for way in ways[name]}
        for case in options.cases
        for name in ways
    }
    for case, name in fresh:
        setting, processes = CASES[case], fresh[case, name]
        with tempfile.TemporaryDirectory() as root:
            pairs = by_turns(setting, name, ways[name], options.rounds, options.steps, root)
        fit = processes["Fit"]
        title = f"{case}, {name}: hidden {setting.hidden}, {setting.time} time steps, batch {setting.batch}"
        checkpoint = f"Not included: a checkpoint stops the loop for {fit['checkpoint_ms']:.0f} ms"
        validation = f"a validation of 8 batches takes {fit['validate_ms']:.0f} ms."
        sections[title] = [*make_table(pairs, processes), "", f"{checkpoint}; {validation}"]
        common.show({title: sections[title]})
        numbers[f"{case}, {name}"] = {"pairs": {way: pairs[way].tolist() for way in pairs}, "alone": processes}
        goals += make_goals(name, pairs) if case == CASE_WITH_GOALS else []
    sections["Goals"] = common.goals_table(goals)
    common.show({"Goals": sections["Goals"]})
    if options.json:
        common.save("overhead", sections, numbers, options.json, goals)


if __name__ == "__main__":
    main()
