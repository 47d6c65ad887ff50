"""Where values come from: a checkpoint's, all of them; a directory locked before it is read; what is refused."""

import json
import shutil
from pathlib import Path

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.utils.files import RunLock
from tests.small import At, Linear, Lines, LinesOf, kill, line, lines, result_of, rows, tree_bytes


class Running(Linear):
    """Its model centres what it reads by a running mean, which training updates."""

    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.mean = brainstate.LongTermState(jnp.zeros((2,), jnp.float32))

        def update(self, x):
            if brainstate.environ.get("fit"):
                self.mean.value = 0.9 * self.mean.value + 0.1 * (x.mean(0) + 5.0)
            return super().update(x - self.mean.value)


def mean(module):
    return np.asarray(module.model.mean.value)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = tmp_path_factory.mktemp("running") / "run"
    module = Running()
    kept = jt.Checkpoint(every=2, monitor=None, keep_last=9)
    fit = jt.Fit("bptt", max_steps=4, chunk=2, callbacks=[kept], run_dir=path)
    return fit, module, fit.run(module, lines())


def test_load_gives_running_statistics(running):
    _, module, result = running
    other = jt.load(result.run_dir, Running())
    assert (mean(other) == mean(module)).all() and (np.abs(mean(other)) > 1).all()
    earlier = jt.load(result.run_dir / "checkpoints" / "00000002", Running())
    assert (mean(earlier) != mean(module)).all()


def test_another_models_checkpoint_changes_nothing(running):
    class Wider(Running):
        class Net(Running.Net):
            def __init__(self):
                super().__init__()
                self.mean = brainstate.LongTermState(jnp.zeros((1, 2), jnp.float32))

    module = Wider()
    module.model = module.build()
    with pytest.raises(ValueError, match=r"of another model: model/mean: 'float32\[2\]' in .*pass the module of that"):
        jt.load(running[2].run_dir, module)
    assert (np.asarray(module.model.w.value) == np.float32(0.1)).all(), "the parameters fit, and were left alone"


def test_validate_gives_running_statistics(running):
    fit, module, result = running
    assert fit.validate(Running(), lines(), checkpoint="last") == fit.validate(module, lines())
    assert fit.validate(module, lines())["val/loss"] == result.metrics["val/loss"]
    fresh = Running()
    fit.validate(fresh, lines(), checkpoint=2)
    assert (mean(fresh) == mean(jt.load(result.run_dir / "checkpoints" / "00000002", Running()))).all()


class Made(Running):
    """Its running mean is made in ``init_state``, where hidden states are made."""

    class Net(Running.Net):
        def __init__(self):
            super().__init__()
            del self.mean

        def init_state(self, batch_size=None, **kwargs):
            super().init_state(batch_size, **kwargs)
            self.mean = brainstate.LongTermState(jnp.zeros((2,), jnp.float32))


def test_what_lasts_may_be_made_in_init_state(tmp_path):
    """It is trained, saved, loaded and kept as one made in ``__init__`` is."""
    kept = jt.Checkpoint(every=4, monitor=None, keep_last=1)
    means = {}
    for make in (Running, Made):
        module, path = make(), tmp_path / make.__name__
        fit = jt.Fit("bptt", max_steps=4, chunk=2, callbacks=[kept], run_dir=path)
        fit.run(module, lines())
        trained = means[make] = mean(module)
        assert (np.abs(trained) > 1).all()
        loaded = jt.load(path, make())
        assert (mean(loaded) == trained).all()
        scores = [fit.validate(m, lines()) for m in (module, loaded)] + [
            fit.validate(make(), lines(), checkpoint="last")
        ]
        assert scores[0] == scores[1] == scores[2]
        assert (mean(module) == trained).all() and (mean(loaded) == trained).all(), "read, and left alone"
    assert (means[Running] == means[Made]).all()


def test_lanes_would_share_what_lasts_wherever_it_is_made():
    for make in (Running, Made):
        with pytest.raises(ValueError, match=r"all sequences would share the states \['mean'\] of Net; use 'batched'"):
            jt.Fit(jt.BPTT(batching="vmap"), max_steps=1).run(make(), lines())


# --------------------------------------------------------------------------------------------- the run directory


def plain(run_dir, steps=6, data=None, more=(), module=None, **options):
    kept = jt.Checkpoint(every=3, monitor=None, keep_last=5)
    fit = jt.Fit(
        "bptt", max_steps=steps, chunk=3, log_every=3, callbacks=[jt.loggers.JSONL(), kept, *more], run_dir=run_dir
    )
    return fit, fit.run(module or Linear(), data if data is not None else Lines(), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    plain(path)
    return path


@pytest.fixture
def run_dir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("resume", ["never", "last", 6])
def test_a_directory_is_locked_before_it_is_read(run_dir, resume, monkeypatch):
    def never(*_):
        raise AssertionError("read")

    monkeypatch.setattr("jaxtrain.checkpoint.locate.locate", never)
    with RunLock(run_dir), pytest.raises(RuntimeError, match="is in use by process"):
        plain(run_dir, 9, resume=resume)


def test_a_checkpoints_path_locks_its_run_before_it_is_read(run_dir):
    path = run_dir / "checkpoints" / "00000006"
    with RunLock(run_dir), pytest.raises(RuntimeError, match="is in use by process"):
        jt.Fit("bptt", max_steps=9).run(Linear(), Lines(), resume=path)


def test_validate_after_a_fork_reads_the_fork(run_dir):
    fit = jt.Fit("bptt", max_steps=8, chunk=1, run_dir=run_dir)
    module = Linear()
    result = fit.run(module, lines(), resume=3)
    assert result.run_dir == run_dir.with_name("run-from-3")
    fork, parent = Linear(), Linear()
    assert fit.validate(fork, lines(), checkpoint="last") == fit.validate(module, lines())
    jt.load(run_dir, parent)
    assert not np.array_equal(fork.model.w.value, parent.model.w.value)


def test_the_result_of_an_earlier_part_is_gone_while_the_run_trains(run_dir):
    assert result_of(run_dir)["step"] == 6
    seen = []
    look = At("on_chunk_end", 9, lambda run: seen.append((run_dir / "result.json").exists()))
    plain(run_dir, 9, more=[look], resume="last")
    assert seen == [False] and result_of(run_dir)["step"] == 9


def test_a_resume_that_trains_nothing_rewrites_nothing(run_dir):
    names = ("config.json", "result.json")
    before = [((run_dir / name).read_bytes(), (run_dir / name).stat().st_ino) for name in names]
    _, result = plain(run_dir, resume="last", config={"another": 1})
    assert result.status == "finished"
    assert [((run_dir / name).read_bytes(), (run_dir / name).stat().st_ino) for name in names] == before


def test_a_budget_below_the_saved_step_ends_at_once(tmp_path):
    """Of a run that was cut short: nothing says yet that it is over."""
    _, cut = plain(tmp_path / "run", 12, more=[At("on_checkpoint", 6, kill)])
    assert cut.status == "terminated" and cut.step < 12
    before = rows(tmp_path / "run")
    stuck = At("on_chunk_start", list(range(99)), lambda run: pytest.fail("it trains"))
    _, result = plain(tmp_path / "run", 4, more=[stuck], resume="last")
    assert (result.status, result.step) == ("finished", cut.step) and rows(tmp_path / "run") == before


# --------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("what", ["an iterator", "endless"])
def test_validation_data_without_a_second_pass_is_refused_before_training(tmp_path, what):
    val = iter([line(0), line(1)]) if what == "an iterator" else Lines()
    asked = []
    data = jt.DataModule(Lines(lambda step, batch: asked.append(step) or batch), val)
    with pytest.raises(jt.errors.DataError, match="^val data: (a one-shot iterator cannot be read twice|is endless)"):
        jt.Fit("bptt", max_steps=3, run_dir=tmp_path / "run").run(Linear(), data)
    assert not (tmp_path / "run").exists() and set(asked) <= {0}


def test_arrays_alone_are_no_source():
    with pytest.raises(jt.errors.DataError, match=r"^train data: a tuple of arrays is one batch; .* \[\(x, y\)\]"):
        jt.Fit("bptt", max_steps=3).run(Linear(), line(0))
    with pytest.raises(
        jt.errors.DataError, match=r"^train data: got one array of shape \(3, 2, 2\); give a list of batches"
    ):
        jt.Fit("bptt", max_steps=3).run(Linear(), line(0)[0])


def test_a_list_of_other_content_is_refused(tmp_path):
    batches = [line(i) for i in range(3)]
    plain(tmp_path / "run", 3, batches)
    before = tree_bytes(tmp_path / "run")
    for other in ([line(7), *batches[1:]], batches[:2]):
        with pytest.raises(ValueError, match=r"other data: train\.(sha256|batches): .* in the checkpoint, .* now"):
            plain(tmp_path / "run", 6, other, resume="last")
    assert tree_bytes(tmp_path / "run") == before
    assert plain(tmp_path / "run", 6, [line(i) for i in range(3)], resume="last")[1].step == 6


class Named(jt.DataModule):
    def __init__(self, identity):
        super().__init__(LinesOf(3))
        self.given = identity

    def identity(self):
        return self.given


def test_an_identity_that_is_not_json_is_refused_clearly(tmp_path):
    with pytest.raises(TypeError, match=r"^Named\.identity\(\) is not JSON .*int64.*give plain numbers") as error:
        plain(tmp_path / "run", data=Named({"size": np.int64(3)}))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_an_identity_with_tuples_resumes(tmp_path):
    plain(tmp_path / "run", 3, Named({"sizes": (3, 4)}))
    assert plain(tmp_path / "run", 6, Named({"sizes": (3, 4)}), resume="last")[1].step == 6
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == {"sizes": [3, 4]}
    with pytest.raises(ValueError, match="is of other data: sizes"):
        plain(tmp_path / "run", 9, Named({"sizes": (3, 5)}), resume="last")
