"""Where a run may start, what may change on resume, and what is refused."""

import itertools
import json
import logging
import math
import shutil
from pathlib import Path

import brainstate
import braintools
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.comparison import refuse_differences
from tests.small import At, Linear, Lines, kill, leaves, line, lines, result_of, rows, same, steps_of, tree_bytes

# ------------------------------------------------------------------------------------------------- where it starts


def plain(run_dir, steps=6, module=None, data=None, resume="never", more=(), **options):
    options = {**dict(chunk=3, log_every=2), **options}
    kept = options.pop("checkpoint", jt.Checkpoint(every=3, monitor=None, keep_last=5))
    fit = jt.Fit("bptt", max_steps=steps, callbacks=[jt.loggers.JSONL(), kept, *more], run_dir=run_dir, **options)
    return fit.run(module or Linear(), data or Lines(), resume=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of six steps with checkpoints at 3 and 6; copy it before changing it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    plain(path)
    assert steps_of(path) == [3, 6]
    return path


@pytest.fixture
def run_dir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_never_refuses_a_directory_that_holds_a_run(run_dir):
    before = tree_bytes(run_dir)
    with pytest.raises(FileExistsError, match="holds a run: resume='last' continues it, or choose another run_dir"):
        plain(run_dir)
    assert tree_bytes(run_dir) == before


def test_last_on_an_empty_directory_starts_fresh(tmp_path, caplog):
    result = plain(tmp_path / "new", resume="last")
    assert result.status == "finished" and "holds no run yet, starting fresh" in caplog.text


def test_last_without_a_checkpoint_starts_again(tmp_path, finished, caplog):
    def fail(run):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        plain(tmp_path, more=[At("on_chunk_end", 3, fail)], log_every=1, chunk=1, checkpoint=jt.Checkpoint(every=5))
    assert rows(tmp_path), "there are log entries of the first attempt"
    plain(tmp_path, resume="last")
    assert "has no checkpoint yet; restarting at step 0, metrics.jsonl is truncated" in caplog.text
    assert rows(tmp_path) == rows(finished)
    assert result_of(tmp_path)["digest"] == result_of(finished)["digest"]


def test_last_with_unreadable_checkpoints_only(run_dir):
    for step in steps_of(run_dir):
        for path in (run_dir / "checkpoints" / f"{step:08d}").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    before = tree_bytes(run_dir)
    with pytest.raises(jt.errors.NoReadableCheckpoint, match=r"step 6: .*; step 3: "):
        plain(run_dir, resume="last")
    assert tree_bytes(run_dir) == before


def test_last_skips_an_unreadable_checkpoint_and_says_so(run_dir, finished, caplog):
    for path in (run_dir / "checkpoints" / "00000006").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    plain(run_dir, resume="last")
    assert "step 6 is unreadable" in caplog.text and "resume: step 3" in caplog.text
    assert rows(run_dir) == rows(finished) and result_of(run_dir)["digest"] == result_of(finished)["digest"]


def test_last_of_a_finished_run_trains_nothing(run_dir, finished, caplog):
    result = plain(run_dir, resume="last", more=[At("on_chunk_start", 6, kill)])
    assert (result.status, result.step, result.exit_code, result.history) == ("finished", 6, 0, [])
    assert "already finished at step 6" in caplog.text
    assert rows(run_dir) == rows(finished) and result.digest == result_of(finished)["digest"]


def test_last_of_a_finished_run_goes_on_with_a_larger_budget(run_dir, tmp_path, caplog):
    plain(run_dir, 9, resume="last")
    plain(tmp_path / "whole", 9)
    assert "fit.max_steps changes from 6 to 9" in caplog.text
    assert result_of(run_dir)["digest"] == result_of(tmp_path / "whole")["digest"]


def test_what_early_stopping_stopped_stays_stopped(tmp_path, caplog):
    def run(**options):
        stopping = jt.EarlyStopping("val/loss", patience=1, min_delta=100.0)
        return plain(tmp_path, 20, data=lines(), validate_every=4, more=[stopping], **options)

    first = run()
    assert (first.status, first.step, first.exit_code) == ("stopped", 8, 0) and "has not improved" in first.reason
    again = run(resume="last")
    assert (again.status, again.step, again.reason, again.digest) == ("stopped", 8, first.reason, first.digest)
    assert "already stopped at step 8" in caplog.text


@pytest.mark.parametrize("word", ["3", 3, "path", "path by number"])
def test_another_step_is_forked(run_dir, finished, word):
    before = tree_bytes(run_dir)
    word = {"path": run_dir / "checkpoints/00000003", "path by number": f"{run_dir}/checkpoints/3"}.get(word, word)
    result = plain(run_dir, resume=word)
    fork = run_dir.with_name("run-from-3")
    assert result.run_dir == fork and result.digest == result_of(finished)["digest"]
    assert json.loads((fork / "config.json").read_text())["parent"] == {"run_dir": "run", "step": 3}
    assert tree_bytes(run_dir) == before, "the parent is as it was"
    assert rows(fork) == [row for row in rows(finished) if row["step"] > 3]


def test_the_last_step_continues_in_place(run_dir, caplog):
    result = plain(run_dir, 9, resume=6)
    assert f"resume: step 6 of {run_dir}, its last; continuing there" in caplog.text
    assert result.run_dir == run_dir and result.step == 9 and not run_dir.with_name("run-from-6").exists()


def test_best_is_forked(tmp_path):
    def run(**options):
        kept = jt.Checkpoint(every=3, keep_last=1)
        module = Linear(lambda: braintools.optim.SGD(20.0))
        more = dict(validate_every=3, checkpoint=kept, nonfinite="warn", **options)
        return plain(tmp_path / "run", 9, module, lines(), **more)

    first = run()
    best = first.best["step"]
    assert best == 3, "it diverges"
    again = run(resume="best")
    assert again.run_dir == tmp_path / "run-from-3" and again.digest == first.digest


def test_steps_that_are_not_there(run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4 in .*run/checkpoints \(there are: 3, 6\)"):
        plain(run_dir, resume=4)
    with pytest.raises(FileNotFoundError, match="'best': no checkpoint in .* has a score"):
        plain(run_dir, resume="best")
    with pytest.raises(ValueError, match=r"resume='lats': expected 'never', 'last', 'best', a step, or a path"):
        plain(run_dir, resume="lats")
    with pytest.raises(ValueError, match="needs a run directory"):
        jt.Fit("bptt", max_steps=3).run(Linear(), Lines(), resume="last")
    assert not (tmp_path / "run-from-4").exists()


# ------------------------------------------------------------------------------------------------- what may change


@pytest.mark.parametrize("make", ["braintools", "optax"])
def test_a_changed_learning_rate_wins_and_is_said(tmp_path, make, caplog):
    def module(rate):
        if make == "optax":
            return Linear(lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=rate))
        return Linear(lambda: braintools.optim.SGD(rate))

    def run(rate, steps, **options):
        one = module(rate)
        plain(tmp_path, steps, one, more=[jt.callbacks.LearningRateMonitor()], log_every=1, **options)
        return leaves(one)

    before = run(0.25, 3)
    after = run(0.0, 4, resume="last")
    assert same(before, after), "a rate of zero changes nothing"
    assert [row["lr"] for row in rows(tmp_path)] == [0.25, 0.25, 0.25, 0.0]
    assert any("0.25" in text and "0.0" in text for text in caplog.text.splitlines() if "resume" in text)
    assert "resume: optimizer changes from" in caplog.text, "an optimizer alone has no label"


def test_a_changed_option_is_said(run_dir, caplog):
    plain(run_dir, 6, resume="last", log_every=1)
    assert "resume: fit.log_every changes from 2 to 1" in caplog.text


class Wide(Linear):
    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.b = brainstate.ParamState(jnp.zeros((1, 3), jnp.float32))


class Half(Linear):
    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.b = brainstate.ParamState(jnp.zeros((3,), jnp.float16))

        def update(self, x):
            return super().update(x).astype("float32")


class More(Linear):
    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.c = brainstate.ParamState(jnp.zeros((), jnp.float32))


class Other(jt.DataModule):
    def identity(self):
        return {"class": "Other"}


DIFFERENT = {
    "shape": (Wide, None, {}, r"another model: b: 'float32\[3\]' in the checkpoint, 'float32\[1, 3\]' now"),
    "dtype": (Half, None, {}, r"another model: b: 'float32\[3\]' in the checkpoint, 'float16\[3\]' now"),
    "parameter": (More, None, {}, r"another model: c: None in the checkpoint, 'float32\[\]' now"),
    "optimizer": (lambda: Linear(lambda: braintools.optim.Adam(0.1)), None, {}, "another optimizer: optimizer/.*now"),
    "seed": (Linear, None, dict(seed=1), "another seed: fit.seed: 0 in the checkpoint, 1 now"),
    "accumulate": (Linear, None, dict(accumulate=2), "another optimizer: optimizer/accumulated"),
    "strategy field": (Linear, None, dict(strategy=jt.BPTT(remat=True)), "strategy: remat: False in .*, True now"),
    "data": (Linear, lambda: Other(Lines()), {}, "other data: class: 'DataModule' in the checkpoint, 'Other' now"),
}


def test_another_strategy_is_named_before_its_fields():
    saved = {"step": 4, "strategy": jt.DRTRL(stateful=True, batching="batched").config()}
    with pytest.raises(ValueError, match=r"another strategy: name: 'drtrl' in the checkpoint, 'pp_prop' now; resume"):
        refuse_differences(saved, {"strategy": jt.strategies.PPProp().config()}, ["strategy"])
    with pytest.raises(ValueError, match=r"another strategy: batching: 'batched' in the checkpoint, 'auto' now"):
        refuse_differences(saved, {"strategy": jt.DRTRL().config()}, ["strategy"])


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_is_different_is_refused(run_dir, what):
    module, data, options, message = DIFFERENT[what]
    before = tree_bytes(run_dir)
    strategy = options.pop("strategy", "bptt") if "strategy" in options else "bptt"
    fit = jt.Fit(strategy, max_steps=9, run_dir=run_dir, **options)
    with pytest.raises(ValueError, match=message):
        fit.run(module(), data() if data else Lines(), resume="last")
    assert tree_bytes(run_dir) == before


def test_the_same_module_may_run_again_after_a_failure():
    """Even if its model has a random state of its own. It continues from the values that the failed run reached."""

    class Own(Linear):
        class Net(Linear.Net):
            def __init__(self):
                super().__init__()
                self.rng = brainstate.random.RandomState(5)

            def update(self, x):
                return super().update(x) + 0.1 * self.rng.randn(3)

    def fail(run):
        raise RuntimeError("boom")

    module = Own()
    with pytest.raises(RuntimeError):
        jt.Fit("bptt", max_steps=9, chunk=2, callbacks=[At("on_chunk_end", 4, fail)]).run(module, Lines())
    reached, began = leaves(module), Own()
    jt.Fit("bptt", max_steps=6, chunk=2).run(began, Lines())
    same = {name: np.array_equal(reached[name], value) for name, value in leaves(began).items()}
    assert all(same.values()), "step 4 was reported while step 6 was in progress"
    again = jt.Fit("bptt", max_steps=4, chunk=2).run(module, Lines())
    assert math.isfinite(again.metrics["train/loss"]) and np.isfinite(leaves(module)["w"]).all()


@pytest.mark.parametrize("name", ["00000006", "6", "006"])
def test_a_path_to_the_last_step_continues_there_whatever_zeros_it_has(run_dir, name):
    module = Linear()
    fit = jt.Fit("bptt", max_steps=8)
    assert fit.run(module, Lines(), resume=run_dir / "checkpoints" / name).run_dir == run_dir
    assert steps_of(run_dir)[-1] == 8


def test_a_path_to_a_step_that_is_not_there_changes_nothing(run_dir):
    before = tree_bytes(run_dir)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 4 in .*there are: "):
        jt.Fit("bptt", max_steps=8).run(Linear(), Lines(), resume=run_dir / "checkpoints" / "4")
    assert tree_bytes(run_dir) == before


STARTS = itertools.count()


class Shuffles:
    """A shuffle: another order at each start, unless it has a seed or saves its state."""

    batch_first = False

    def __init__(self, seed=None):
        self.seed, self.epoch, self.at = seed, 0, 0

    def __len__(self):
        return 6

    def __iter__(self):
        self.epoch += 1
        if self.seed is None:  # not drawn: by chance the last batch would be the same
            return (line(int(i)) for i in np.roll(np.arange(6), next(STARTS)))
        rng = np.random.default_rng((self.seed, self.epoch))
        return (line(int(i)) for i in rng.permutation(6))


class Tells(Shuffles):
    """A shuffle that saves its state: the batches that are left."""

    def __init__(self):
        super().__init__()
        self.left = []

    def __iter__(self):
        self.left = self.left or np.roll(np.arange(6), next(STARTS)).tolist()
        while self.left:
            yield line(self.left.pop())

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, state):
        self.left = list(state["left"])


def interrupted_and_resumed(tmp_path, make, caplog):
    for steps in (4, 8, 11):
        caplog.clear()
        fit = jt.Fit("bptt", max_steps=steps, run_dir=tmp_path / "run", chunk=2)
        result = fit.run(Linear(), make(), resume="last")
    return result


def test_a_source_that_does_not_repeat_itself_is_named_and_the_run_goes_on(tmp_path, caplog):
    result = interrupted_and_resumed(tmp_path, Shuffles, caplog)
    assert result.step == 11 and result.summary["inexact"] == [4, 8] == result_of(tmp_path / "run")["inexact"]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("train data: batch 7 is not the one that the run had before step 8")
    assert "inexact: the data differs from that before step 8" in result.report["notes"]


@pytest.mark.parametrize("make", [lambda: Shuffles(seed=3), Tells], ids=["a seed", "a state"])
def test_as_the_warning_says_a_seed_or_a_state_makes_a_resume_exact(tmp_path, make, caplog):
    result = interrupted_and_resumed(tmp_path, make, caplog)
    assert result.summary["inexact"] == [] and not [r for r in caplog.records if r.levelno == logging.WARNING]
    if make is not Tells:
        whole = jt.Fit("bptt", max_steps=11, chunk=2, run_dir=tmp_path / "whole").run(Linear(), make())
        assert whole.digest == result.digest


def test_a_plateau_of_the_loss_outlives_a_resume(tmp_path):
    def module():
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5)
        return Linear(lambda: optax.chain(optax.sgd(0.05), plateau))

    def run(steps, name):
        fit = jt.Fit("bptt", max_steps=steps, run_dir=tmp_path / name, log_every=1, accumulate=2)
        return fit.run(module(), Lines(), resume="last")

    whole = run(12, "whole")
    run(5, "parts")
    assert run(12, "parts").digest == whole.digest
    scales = saved_scales(tmp_path / "whole")
    assert scales and scales[0] < 1, "the rate has fallen"


def saved_scales(run_dir):
    from jaxtrain.checkpoint.run_directory import read_checkpoint

    return [float(leaf) for name, leaf in read_checkpoint(run_dir).train.items() if "scale" in name]
