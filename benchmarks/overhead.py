"""What ``Fit`` costs over a hand-written loop, and what other ways to train the same network cost.

python benchmarks/overhead.py
python benchmarks/overhead.py --strategies bptt --rounds 30 --json overhead.json
python benchmarks/overhead.py --cases smallest

The copying task at a size where a step is short, so that the host shows: GRU of 16 units, 70 time steps, batch 16,
Adam, a row of the record every 100 steps. "smallest" is one unit, three time steps, one lane: nothing but overhead;
it is told and not judged. Four ways to take the same steps:

* hand-written: one ``jax.lax.scan`` over a chunk of steps of the very step that ``Fit`` compiles, its state donated,
  the next batches stacked while the device works, the losses fetched for every row. Nothing else is done.
* Fit: run directory, JSONL, TensorBoard, LearningRateMonitor, Throughput, Checkpoint, ProgressBar.
* tutorial: one jitted call a batch with learner and states made inside it, one-hot data transposed, a loss fetched
  every step. Its D-RTRL is braintrace's own default, the single-step rule: less work a step than Fit's default.
* braintools.trainer: a LightningModule and its Trainer with the CSV logger, no progress bar; BPTT is all it has.

Speed: all run in one process, by turns. A round of anything lies between two rounds of the hand-written loop and is
compared with their mean, so a machine that slows down slows both. A round of Fit, as one of the loop, begins and ends
at rest, and the data it prepares ahead, its rows and its callbacks count; checkpoints and validations fall outside and
are listed apart. CPU time is that of all threads: what the host does while the device works costs no time where a core
is free, and this much where none is. Compile seconds (a model is there, its first steps are yet to come) and peak
memory: a fresh process each, and all import the same modules.
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
JUDGED, MOST_OVER, LEAST_TIMES = "small", 3.0, 10.0
"""Per cent over the hand-written loop at most; steps per second of Fit over those of braintools.trainer at least."""
SPARSE = 3
"""Ways that dispatch every batch are far from the loop: they run in every third round, with a third of its steps."""


def data_of(setting: Setting) -> Any:
    return jt.datasets.CopyDataModule(setting.time - 2 * setting.scored, setting.scored, setting.batch)


def now() -> np.ndarray:
    """Seconds of the clock, and CPU seconds of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


# ------------------------------------------------------------------------------------------------ ways to train


class HandWritten:
    """The same step in a scan. ``round(steps)``, here and below, is what a step took: seconds and CPU seconds."""

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
            raise RuntimeError(f"a chunk is {self.length} steps, which do not divide the {LOG_EVERY} steps of a row")
        step = program._step

        def chunk(values, root, first, batches):
            # Every output of the step is kept, or XLA would leave out the work behind it.
            body = lambda values, x: step(values, root, *x)  # noqa: E731
            return jax.lax.scan(body, values, (first + jnp.arange(self.length), batches))

        self.step, self.losses = 0, []
        self.rows: list[float] = []
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
                self.rows.append(float(nums.sum() / weights.sum()))
                self.losses = []
        return (now() - started) / steps


class Tutorial:
    """braintrace's tutorial: a jitted call a batch, its data one-hot and transposed, its loss fetched every step."""

    def __init__(self, setting: Setting, strategy: str):
        self.batches = iter(data_of(setting).train_data())
        self.losses: list[float] = []
        self.trained = ByHand(setting, strategy)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # braintrace says that Wr gets no gradient
            self.round(1)
        self.compile_seconds = time.perf_counter() - started

    def round(self, steps: int) -> np.ndarray:
        started = now()
        for _ in range(steps):
            x, y = next(self.batches)
            loss = self.trained.step(jnp.asarray(np.transpose(x, (1, 0, 2))), jnp.asarray(y.T))
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
    """Whole batches as the items of a braintools DataLoader."""

    def __init__(self, setting: Setting, length: int):
        self.length, self.data = length, data_of(setting).train_data()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.data.batch(index)


class BrainTools:
    """braintools.trainer. A fit compiles anew, so a round's clock starts behind its first batches."""

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
    """Times a run of Fit in rounds of ``steps``, and lets ``between`` run while Fit rests. Round 0 warms up."""

    rank = "persist"  # last in its event: what other callbacks do at the end of a round counts

    def __init__(self, steps: int, between: Callable[[], None]):
        self.steps, self.between = steps, between
        self.taken: list[np.ndarray] = []

        self.started = now()

    def boundaries(self):
        return (jt.period.Period(self.steps, "step"),)

    def on_chunk_end(self, run, metrics):
        if run.step % self.steps == 0:
            self.taken.append((now() - self.started) / self.steps)
            self.between()
            self.started = now()  # what else happens at this edge, as its row, opens the next round


def run_fit(setting: Setting, strategy: str, steps: int, run_dir: Path, every: int,
            extra: jt.Callback | None = None) -> jt.Result:  # fmt: skip
    """Fit with its default callbacks, as in the recipe but without the figure."""
    callbacks = [jt.Checkpoint(every=every, keep_best=2, keep_last=2), *([extra] if extra else [])]
    fit = jt.Fit(
        strategy, max_steps=steps, clip=CLIP, log_every=LOG_EVERY, run_dir=run_dir, callbacks=callbacks, progress=True
    )
    return fit.run(Copy(setting), data_of(setting))


# ------------------------------------------------------------------------------------------------- measurements


def alone(setting: Setting, way: str, strategy: str, root: str) -> dict[str, float]:
    """Compile seconds and peak memory of one way; meant for a fresh process."""
    imported, steps, numbers = peak_rss_mb(), 400, {}
    if way == "Fit":
        seconds = run_fit(setting, strategy, steps, Path(root) / "run", every=100).summary["seconds"]
        numbers = {"checkpoint_ms": 1e3 * seconds["checkpoint"] / 4, "validate_ms": 1e3 * seconds["validate"]}
        compiled = seconds["compile"]
    else:
        trained = make(setting, way, strategy, root)
        trained.round(steps)
        compiled = trained.compile_seconds
    return {"compile_s": compiled, "peak_mib": peak_rss_mb(), "imports_mib": imported, **numbers}


def make(setting: Setting, way: str, strategy: str, root: str) -> HandWritten | Tutorial | BrainTools:
    if way == "braintools.trainer":
        return BrainTools(setting, root)
    return {"hand-written": HandWritten, "tutorial": Tutorial}[way](setting, strategy)


def by_turns(setting: Setting, strategy: str, ways: list[str], rounds: int, steps: int,
             root: str) -> dict[str, np.ndarray]:  # fmt: skip
    """By way, ``(rounds, 2, 2)``: what a step of the way, and of the hand-written loop around it, took; see ``now``."""
    hand = HandWritten(setting, strategy)
    others = {way: make(setting, way, strategy, root) for way in ways if way not in ("hand-written", "Fit")}
    pairs: dict[str, list[Any]] = {way: [] for way in ("Fit", *others)}
    before: list[np.ndarray] = []

    def between() -> None:
        reference = hand.round(steps)
        if before:  # round 0 warmed up
            pairs["Fit"].append((clock.taken[-1], (before[-1] + reference) / 2))
        for way, other in others.items() if len(before) % SPARSE == 1 else ():
            taken, earlier, reference = other.round(steps // SPARSE), reference, hand.round(steps)
            pairs[way].append((taken, (earlier + reference) / 2))
        before.append(reference)

    clock = Rounds(steps, between)
    run_fit(setting, strategy, (rounds + 1) * steps, Path(root) / "run", every=10**9, extra=clock)
    return {way: np.array(every) for way, every in pairs.items()}


def rows(pairs: dict[str, np.ndarray], fresh: dict[str, dict[str, float]]) -> list[str]:
    head = ["", "steps/s, median (quartiles)", "CPU ms a step", "time over hand-written, paired median (quartiles)"]
    head += ["CPU over hand-written", "compile, s", "peak memory, MiB (above imports)"]
    found = []
    for way, every in {"hand-written": pairs["Fit"][:, [1, 1]], **pairs}.items():
        low, middle, high = np.percentile(1 / every[:, 0, 0], [25, 50, 75])
        over = 100 * (every[:, 0] / every[:, 1] - 1)
        less, ratio, more = np.percentile(over[:, 0], [25, 50, 75])
        beside = [f"{ratio:+.1f} % ({less:+.1f} to {more:+.1f})", f"{np.median(over[:, 1]):+.1f} %"]
        peak, imports = fresh[way]["peak_mib"], fresh[way]["imports_mib"]
        found.append([
            way, f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{1000 * np.median(every[:, 0, 1]):.2f}",
            *(["", ""] if way == "hand-written" else beside), f"{fresh[way]['compile_s']:.1f}",
            f"{peak:.0f} ({peak - imports:+.0f})",
        ])  # fmt: skip
    return common.table(head, found)


def judged(strategy: str, pairs: dict[str, np.ndarray]) -> list[common.Goal]:
    """Both of what was paired with the hand-written loop's rounds, so that the machine's state cancels."""
    over = {way: np.median(every[:, 0, 0] / every[:, 1, 0]) for way, every in pairs.items()}
    found = [common.Goal(f"{strategy}: Fit over hand-written, per cent", 100 * (over["Fit"] - 1), MOST_OVER)]
    if "braintools.trainer" in over:
        times = float(over["braintools.trainer"] / over["Fit"])
        found.append(
            common.Goal(f"{strategy}: steps/s of Fit over braintools.trainer's", times, LEAST_TIMES, least=True)
        )
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--strategies", nargs="+", default=["drtrl", "bptt"], choices=["drtrl", "bptt"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=15, help="rounds of Fit, each between two of the loop")
    parser.add_argument("--steps", type=int, default=500, help=f"steps a round, a multiple of {LOG_EVERY}")
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

    print(f"a row every {LOG_EVERY} steps; {options.rounds} rounds of {options.steps} steps; {common.machine()}")
    ways = {name: ["hand-written", "Fit", "tutorial"] for name in options.strategies}
    ways |= {"bptt": [*ways["bptt"], "braintools.trainer"]} if "bptt" in ways else {}
    told: dict[str, list[str]] = {}
    numbers: dict[str, Any] = {}
    goals: list[common.Goal] = []
    # Before this process grows: on Linux the peak of a child starts from the size of its parent.
    fresh = {
        (case, name): {way: common.fresh("overhead.py", "--alone", case, way, name) for way in ways[name]}
        for case in options.cases
        for name in ways
    }
    for case, name in fresh:
        setting, beside = CASES[case], fresh[case, name]
        with tempfile.TemporaryDirectory() as root:
            pairs = by_turns(setting, name, ways[name], options.rounds, options.steps, root)
        fit = beside["Fit"]
        title = f"{case}, {name}: hidden {setting.hidden}, {setting.time} time steps, batch {setting.batch}"
        events = f"a checkpoint holds the loop up for {fit['checkpoint_ms']:.0f} ms, a validation of 8 batches takes "
        told[title] = [*rows(pairs, beside), "", f"Events apart: {events}{fit['validate_ms']:.0f} ms."]
        common.tell({title: told[title]})
        numbers[f"{case}, {name}"] = {"pairs": {way: pairs[way].tolist() for way in pairs}, "alone": beside}
        goals += judged(name, pairs) if case == JUDGED else []
    told["Judged"] = common.goals_table(goals)
    common.tell({"Judged": told["Judged"]})
    if options.json:
        common.keep("overhead", told, numbers, options.json, goals)


if __name__ == "__main__":
    main()
