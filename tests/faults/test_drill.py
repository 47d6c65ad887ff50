"""A run that is interrupted by signals or killed, and resumed, equals an uninterrupted run bit for bit."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import braintools
import optax
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.store import Store
from tests.kit import forks
from tests.kit.tiers import longer
from tests.small import (
    At,
    CopyGRU,
    Linear,
    Lines,
    LinesOf,
    copies,
    kill,
    line,
    lines,
    result_of,
    rows,
    scalars,
    steps_of,
)

ROOT = Path(__file__).parents[2]


def callbacks(*more, every=4, best=2):
    checkpoint = jt.Checkpoint(every=every, keep_best=best)
    return [jt.callbacks.LearningRateMonitor(), jt.callbacks.Throughput(), jt.loggers.JSONL(), checkpoint, *more]


def part(module, data, run_dir, steps, *more, resume="last", strategy="bptt", every=4, **options):
    options = {**dict(chunk=3, log_every=2, validate_every=5, clip=1.0), **options}
    fit = jt.Fit(strategy, max_steps=steps, callbacks=callbacks(*more, every=every), run_dir=run_dir, **options)
    return fit.run(module, data, resume=resume)


def opened(run_dir: Path) -> Store:
    return Store(run_dir / "checkpoints", read_only=True)


def scheduled():
    return braintools.optim.Adam(braintools.optim.StepLR(0.02, step_size=4, gamma=0.5), weight_decay=1e-3)


def optaxed():
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.05, 4, 12)
    return optax.chain(optax.clip(0.5), optax.inject_hyperparams(optax.adamw)(learning_rate=rate))


def equal_runs(whole: Path, parts: Path):
    assert result_of(parts)["digest"] == result_of(whole)["digest"]
    assert rows(parts) == rows(whole)
    assert result_of(parts)["best"] == result_of(whole)["best"]


# ------------------------------------------------------------------------------------------------- exact, in parts

CASES = {
    "adam and a scheduler": (lambda: Linear(scheduled), lines, {}),
    "optax and a schedule": (lambda: Linear(optaxed), lines, {}),
    "accumulation": (lambda: Linear(scheduled), lines, dict(accumulate=3)),
    "one step a dispatch": (lambda: Linear(optaxed), lines, dict(chunk=1)),
    "noise": (lambda: CopyGRU(scheduled, noise=0.2), copies, {}),
    "drtrl": (lambda: CopyGRU(scheduled, noise=0.2), copies, dict(strategy="drtrl")),
    "a list": (lambda: Linear(), lambda: jt.DataModule([line(i) for i in range(4)], [line(9)]), dict(chunk=50)),
    "a generator": (lambda: Linear(), lambda: jt.DataModule((line(i) for i in range(20)), [line(9)]), {}),
}


@pytest.mark.full
@pytest.mark.parametrize(
    "case",
    [
        "drtrl", *longer(
            "accumulation", "adam and a scheduler", "optax and a schedule", "one step a dispatch", "noise",
            "a generator", "a list",
        ),
    ],
)  # fmt: skip
def test_a_run_in_three_parts_equals_the_run_at_once(tmp_path, case):
    module, data, options = CASES[case]
    part(module(), data(), tmp_path / "whole", 13, **options)
    for i, signalled in enumerate((4, 10)):  # where a checkpoint is in the middle of everything
        result = part(module(), data(), tmp_path / "parts", 13, At("on_checkpoint", signalled, kill), **options)
        assert result.status == "terminated" and result.exit_code == 143, i
    last = module()
    result = part(last, data(), tmp_path / "parts", 13, **options)
    assert result.status == "finished" and result.step == 13 and result.exit_code == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts")
    if case == "adam and a scheduler":
        assert rows(tmp_path / "whole")[0]["lr"] == pytest.approx(0.02)
        assert rows(tmp_path / "whole")[-1]["lr"] == pytest.approx(0.02 * 0.5**3)


@pytest.mark.full
@pytest.mark.cover
@pytest.mark.parametrize("start", [1, 5, 9])
@pytest.mark.parametrize("chunk", [1, 4])
def test_a_signal_at_any_step(tmp_path, start, chunk):
    options = dict(chunk=chunk, accumulate=2)
    part(Linear(scheduled), lines(), tmp_path / "whole", 12, **options)
    # The loop hears it when the chunk under way is over.
    at = [start + i for i in range(4)]
    first = part(Linear(scheduled), lines(), tmp_path / "parts", 12, At("on_chunk_end", at, kill), **options)
    assert first.status == "terminated" and start <= first.step < 12
    part(Linear(scheduled), lines(), tmp_path / "parts", 12, **options)
    equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert set(steps_of(tmp_path / "whole")) == set(steps_of(tmp_path / "parts"))


class Signalling(LinesOf):
    """Validation data that sends a signal with its second batch, the ``when``-th time that it is asked for it."""

    def __init__(self, when: int, number: int = signal.SIGTERM):
        super().__init__(3)
        self.when, self.number, self.asked = when, number, 0

    def batch(self, step):
        if step == 1:
            self.asked += 1
            if self.asked == self.when:
                os.kill(os.getpid(), self.number)
        return super().batch(step)


@pytest.mark.full
@pytest.mark.cover
@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("when,at", [(1, 5), (2, 10), (3, 12)])
def test_a_signal_during_validation(tmp_path, when, at, log_every):
    options = dict(log_every=log_every, chunk=5, every=5)
    part(Linear(), jt.DataModule(Lines(), LinesOf(3)), tmp_path / "whole", 12, **options)
    first = part(Linear(), jt.DataModule(Lines(), Signalling(when)), tmp_path / "parts", 12, **options)
    assert (first.status, first.step, first.exit_code) == ("terminated", at, 143)
    assert first.summary["reason"] == "SIGTERM"
    meta = opened(tmp_path / "parts").read_meta(at)
    assert meta["stage"] == "validation" and meta["store"]["score"] is None
    events = []
    seen = At("on_validation_end", list(range(13)), lambda run: events.append(run.step))
    result = part(Linear(), jt.DataModule(Lines(), LinesOf(3)), tmp_path / "parts", 12, seen, **options)
    assert events[0] == at and result.status == "finished"
    equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "parts")
    store, other = opened(tmp_path / "parts"), opened(tmp_path / "whole")
    assert all(store.read_meta(step)["stage"] == "between steps" for step in store.steps())
    assert [store.read_meta(s)["store"]["score"] for s in store.steps()] == [
        other.read_meta(s)["store"]["score"] for s in other.steps()
    ]


def test_an_edge_that_was_cut_and_then_failed_repeats_no_row(tmp_path):
    def fail(run):
        raise RuntimeError("the machine went away")

    options = dict(log_every=1, chunk=5, every=100)
    part(Linear(), jt.DataModule(Lines(), LinesOf(3)), tmp_path / "whole", 8, **options)
    part(Linear(), jt.DataModule(Lines(), Signalling(1)), tmp_path / "parts", 8, **options)
    failing = jt.DataModule(Lines(), LinesOf(3))
    with pytest.raises(RuntimeError):
        part(Linear(), failing, tmp_path / "parts", 8, At("on_log", 5, fail), **options)
    assert [row["step"] for row in rows(tmp_path / "parts")] == [1, 2, 3, 4]
    part(Linear(), jt.DataModule(Lines(), LinesOf(3)), tmp_path / "parts", 8, **options)
    equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_ctrl_c(tmp_path):
    result = part(Linear(), jt.DataModule(Lines(), Signalling(1, signal.SIGINT)), tmp_path, 12)
    assert (result.status, result.exit_code, result.saved) == ("interrupted", 130, True)
    assert result_of(tmp_path)["status"] == "interrupted"


@pytest.mark.full
def test_tensorboard_shows_every_step_once(tmp_path):
    def one(name, *more):
        return part(CopyGRU(), copies(), tmp_path / name, 12, jt.loggers.TensorBoard(), *more)

    one("whole")
    one("parts", At("on_checkpoint", 4, kill))
    one("parts")
    shown = scalars(tmp_path / "parts")
    assert shown == scalars(tmp_path / "whole") and "val/loss" in shown and "train/loss" in shown
    assert all(len({step for step, _ in values}) == len(values) for values in shown.values())


def test_requests_and_logged_values_survive_a_signal(tmp_path):
    class Asks(jt.Callback):
        """Logs in every chunk, and asks for a validation at step 3, which is not an event boundary."""

        def on_chunk_end(self, run, metrics):
            run.log({"mine": run.step})
            if run.step == 3:
                run.validate()

    options = dict(log_every=1, validate_every=None, every=100)
    part(Linear(), lines(), tmp_path / "whole", 14, Asks(), **options)
    kill_at = At("on_chunk_start", 0, kill)  # heard when the first chunk is over, at step 3
    first = part(Linear(), lines(), tmp_path / "parts", 14, Asks(), kill_at, **options)
    assert first.step == 3
    part(Linear(), lines(), tmp_path / "parts", 14, Asks(), **options)
    assert [row["step"] for row in rows(tmp_path / "whole") if "val/loss" in row] == [6, 14]
    equal_runs(tmp_path / "whole", tmp_path / "parts")


# ------------------------------------------------------------------------------------------------------- the kills

TINY = (
    "--hidden 16 --time-lag 5 --digits 3 --batch-size 8 --max-steps 600 --checkpoint-every 50 --log-every 10 "
    "--validate-every 100 --no-progress"
).split()


def start(strategy: tuple[str, ...], run_dir: Path, log: Path, *more: str) -> forks.Popen:
    command = [sys.executable, str(ROOT / "recipes" / "copy_gru.py"), "--strategy", *strategy, *TINY]
    command += ["--run-dir", str(run_dir), *more]
    with open(log, "ab") as file:
        return forks.Popen(command, cwd=log.parent, stdout=file, stderr=forks.STDOUT)


def last_step(run_dir: Path) -> int:
    """As far as its record goes; a torn last line does not count."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") * 10 if path.exists() else 0


@pytest.mark.full
@pytest.mark.parametrize("strategy", [("drtrl", "--strategy.stateful"), *longer((("bptt",),))], ids="-".join)
def test_killed_again_and_again(tmp_path, strategy):
    log = tmp_path / "log"
    began = time.monotonic()
    assert start(strategy, tmp_path / "A", log).wait() == 0, log.read_text()
    whole = time.monotonic() - began
    seconds = result_of(tmp_path / "A")["seconds"]["total"]
    rng = random.Random(strategy[0])
    killed = []
    # Some at a moment of the start-up, by the clock; the others once the record has passed a step.
    moments = [("clock", rng.uniform(0.0, whole - seconds)), ("clock", rng.uniform(whole - seconds, whole))]
    moments += [("step", step + rng.randrange(60)) for step in (20, 150, 300, 450)]
    for kind, moment in moments:
        process = start(strategy, tmp_path / "B", log, "--resume", "last")
        began = time.monotonic()
        while process.poll() is None:
            if (time.monotonic() - began >= moment) if kind == "clock" else (last_step(tmp_path / "B") >= moment):
                time.sleep(rng.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), log.read_text()
        killed.append((kind, moment, code, last_step(tmp_path / "B")))
    assert start(strategy, tmp_path / "B", log, "--resume", "last").wait() == 0, log.read_text()
    assert sum(code != 0 for _, _, code, _ in killed) >= 3, killed

    whole, parts = result_of(tmp_path / "A"), result_of(tmp_path / "B")
    assert parts["status"] == whole["status"] == "finished" and parts["step"] == 600
    assert parts["digest"] == whole["digest"], killed
    for part in ("train", "val", "best"):
        assert parts[part] == whole[part]
    assert rows(tmp_path / "B") == rows(tmp_path / "A")
    shown = scalars(tmp_path / "B")
    assert shown == scalars(tmp_path / "A") and len(shown["train/loss"]) == 60
    assert all(len({step for step, _ in values}) == len(values) for values in shown.values()), "each step once"
