"""A curriculum: what follows the data's task within a run, in a run that is resumed, and in the next one."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from tests.kit.tiers import longer
from tests.small import At, CopyGRU, Linear, Lines, copies, kill, line, rows

pytestmark = pytest.mark.full


class Scaled(jt.DataModule):
    """Batches and their number an epoch follow the task; their shapes follow it where it says ``time`` or ``wide``."""

    task = {"scale": 1.0, "length": 4, "time": 3, "kind": "float32"}
    set_ups = 0

    def setup(self):
        self.set_ups += 1

    def train_data(self):
        return Source(self.task, 0)

    def val_data(self):
        return Source({**self.task, "length": 2}, 100)  # of the task as it is now, unlike the train data


class Source:
    def __init__(self, task, first):
        self.task, self.first = task, first

    def __len__(self):
        return self.task["length"]

    def batch(self, step):
        x, y = line(self.first + step, time=self.task["time"])
        return (self.task["scale"] * x).astype(self.task["kind"]), y


class Held(jt.Callback):
    """Puts the sum of the held batch's inputs into the record."""

    probe_every = 2
    rank = "produce"

    def probe(self, module, learner, phases):
        return jnp.abs(phases.inputs).astype(jnp.float32).sum()

    def on_probe(self, run, values):
        run.log({"held": float(values)})


def curriculum(run_dir, *more, data=None, **task):
    seen = []
    look = At("on_chunk_end", list(range(99)), lambda run: seen.append((run.step, run.epoch_length, run.max_steps)))
    callbacks = [Held(), At("on_chunk_end", 4, lambda run: run.set_task(**task)), look, jt.loggers.JSONL(), *more]
    fit = jt.Fit(
        "bptt", max_epochs=3, chunk=1, validate_every="1ep", log_every=2, run_dir=run_dir,
        callbacks=[*callbacks, jt.Checkpoint(every=6, monitor=None, keep_last=9)],
    )  # fmt: skip
    return fit.run(Linear(), data or Scaled(), resume="last"), seen


def held(scale, time=3):
    return pytest.approx(np.abs(scale * line(0, time=time)[0]).sum(), rel=1e-2)


@pytest.mark.parametrize(
    "task", [{"time": 5}, *longer({}, {"kind": "float16"})], ids=["shapes", "same shapes", "dtypes"]
)
def test_everything_follows_the_task(tmp_path, task):
    whole, seen = curriculum(tmp_path / "whole", scale=2.0, length=3, **task)
    assert [s for s in seen if s[0] in (4, 5)] == [(4, 4, 12), (5, 3, 9)] and whole.step == 9
    record = {row["step"]: row for row in rows(tmp_path / "whole")}
    assert record[4]["held"] == held(1.0)
    assert record[6]["held"] == record[8]["held"] == held(2.0, task.get("time", 3)), "batch 0 of the task that is on"
    assert [step for step, row in record.items() if "val/loss" in row] == [4, 6, 9], "epochs of 3 from step 4 on"

    fit = jt.Fit("bptt", max_steps=1)
    module = Linear()
    data = Scaled()
    data.task.update(scale=2.0, length=3, **task)
    jt.load(tmp_path / "whole", module)
    assert record[9]["val/loss"] == pytest.approx(fit.validate(module, data)["val/loss"], rel=1e-6), "the new val data"

    curriculum(tmp_path / "parts", At("on_checkpoint", 6, kill), scale=2.0, length=3, **task)
    again, _ = curriculum(tmp_path / "parts", scale=2.0, length=3, **task)
    assert again.digest == whole.digest and rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_the_next_fresh_run_begins_with_the_task_as_made(tmp_path):
    data = Scaled()
    first, _ = curriculum(tmp_path / "a", data=data, scale=2.0)
    assert data.task["scale"] == 2.0
    second, _ = curriculum(tmp_path / "b", data=data, scale=2.0)
    assert second.digest == first.digest and rows(tmp_path / "a") == rows(tmp_path / "b")
    assert data.set_ups == 1


def test_an_iterator_keeps_its_task():
    batches = (line(i) for i in range(99))
    fit = jt.Fit("bptt", max_steps=9, chunk=2, callbacks=[At("on_chunk_end", 4, lambda run: run.set_task(lag=2))])
    with pytest.raises(jt.errors.DataError, match="^train data: the task cannot change, because a one-shot iterator"):
        fit.run(Linear(), batches)


def test_a_task_that_could_not_be_saved_is_refused():
    fit = jt.Fit(
        "bptt", max_steps=9, chunk=2, callbacks=[At("on_chunk_end", 4, lambda run: run.set_task(a=np.int64(2)))]
    )
    with pytest.raises(TypeError, match=r"^run.set_task at step 6 is not JSON .*int64"):
        fit.run(Linear(), Lines())


def test_carried_states_of_another_size_are_refused():
    class Lanes(Lines):
        size = 2

        def batch(self, step):
            return line(step, batch=self.size)

    source = Lanes()

    def shrink(run):
        source.size = 1
        run.set_task(size=1)

    fit = jt.Fit(jt.TBPTT(window=2, stateful=True), max_steps=9, chunk=1, callbacks=[At("on_chunk_end", 4, shrink)])
    with pytest.raises(ValueError, match=r"^run.set_task at step 5: the training state does not .*learner/hidden\.h"):
        fit.run(Linear(), source)


def test_the_copying_task_follows_in_all_its_splits():
    fit = jt.Fit("bptt", max_steps=8, chunk=2, validate_every=2,
                 callbacks=[At("on_chunk_end", 4, lambda run: run.set_task(num_digits=3))])  # fmt: skip
    module, data = CopyGRU(), copies()
    result = fit.run(module, data)
    assert result.metrics["val/loss"] == pytest.approx(fit.validate(module, data)["val/loss"], rel=1e-6)
    assert fit.predict(module, data).shape[0] == 3


def test_what_is_asked_for_at_the_last_step_is_what_a_longer_run_goes_on_with(tmp_path):
    def run(steps, name):
        ask = At("on_chunk_end", 4, lambda run: run.set_task(scale=2.0, time=5))
        kept = jt.Checkpoint(every=4, monitor=None, keep_last=9)
        fit = jt.Fit("bptt", max_steps=steps, chunk=4, validate_every=4, log_every=1, run_dir=tmp_path / name,
                     callbacks=[ask, jt.loggers.JSONL(), kept])  # fmt: skip
        return fit.run(Linear(), Scaled(), resume="last").digest

    whole = run(8, "whole")
    run(4, "parts")
    assert run(8, "parts") == whole and rows(tmp_path / "parts") == rows(tmp_path / "whole")
