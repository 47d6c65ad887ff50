"""Several named sets of validation data, and monitors of their metrics."""

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import jaxtrain as jt
from jaxtrain import metrics
from jaxtrain.data.datamodule import named_sources
from jaxtrain.errors import DataError
from tests.small import Linear, Lines, LinesOf, count_compiles, kill, line, lines, result_of, rows, scalars


class Signs(Linear):
    """Classifies the first feature by the largest output."""

    def learning_step(self, forward, x, y):
        out = forward(x)
        kind = (y[:, 0] > 0).astype(int)
        own = {"spread": jnp.abs(out).max(-1), "f1": metrics.F1(out, kind, decide="sum")}
        own["recall"] = metrics.Accuracy(out, kind, per_class=True)
        own["confusion"] = metrics.ConfusionMatrix(out, kind)
        return jnp.square(out - y).mean(-1), own


class Noisy(LinesOf):
    """Longer sequences than those of training, in a layout of its own."""

    batch_first = True

    def __init__(self, before=lambda step: None):
        super().__init__(2)
        self.before = before

    def batch(self, step):
        self.before(step)
        return tuple(a.swapaxes(0, 1) + np.float32(0.5) for a in line(100 + step, time=5))


class Clean(LinesOf):
    batch_first = False


def sets(**options):
    return jt.DataModule(Lines(), {"clean": Clean(3), "noisy": Noisy(**options)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with both sets, its directory, and the number of programs compiled after its start."""
    seen, stop = count_compiles()
    marks = {}

    class Marks(jt.Callback):
        def on_fit_start(self, run):
            marks["start"] = len(seen)

    folder = tmp_path_factory.mktemp("sets") / "run"
    stopping = jt.EarlyStopping("val/noisy/f1", patience=100)
    callbacks = [Marks(), jt.Checkpoint(monitor="val/noisy/loss", keep_best=2), stopping]
    fit = jt.Fit("bptt", max_steps=6, validate_every=2, log_every=3, run_dir=folder, callbacks=callbacks)
    try:
        result = fit.run(Signs(), sets())
    finally:
        stop()
    return result, folder, stopping, len(seen) - marks["start"]


def same_values(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)  # NaN for a class without targets


def test_every_set_has_its_tags(run):
    result, folder, stopping, compiled = run
    assert compiled == 0, "compiled after step 0"
    module = Signs()
    jt.load(folder, module)
    fit = jt.Fit("bptt")
    clean = fit.validate(module, Clean(3))
    noisy = fit.validate(module, Noisy())
    wanted = {f"val/{kind}/{name.removeprefix('val/')}": value
              for kind, found in (("clean", clean), ("noisy", noisy)) for name, value in found.items()}  # fmt: skip
    assert wanted.keys() == {name for name in result.metrics if name.count("/") == 2 and name.startswith("val/")}
    for name, value in wanted.items():
        np.testing.assert_allclose(result.metrics[name], value, rtol=1e-5, err_msg=name)
    assert clean["val/loss"] != noisy["val/loss"] and "val/loss" not in result.metrics
    for both in (sets(), {"clean": Clean(3), "noisy": Noisy()}):
        same_values(fit.validate(module, both), wanted)
    tests = fit.test(module, jt.DataModule(test={"clean": Clean(3)}))
    same_values(tests, {name.replace("val/", "test/clean/"): value for name, value in clean.items()})
    assert result_of(folder)["val"]["noisy/confusion"] == result.metrics["val/noisy/confusion"]


def test_the_log_shows_every_set(run):
    result, folder, _, _ = run
    shown = scalars(folder)
    for name in ("val/clean/loss", "val/noisy/f1", "val/noisy/recall/0", "val/clean/recall/2"):
        assert [step for step, _ in shown[name]] == [2, 4, 6]
    assert [row["step"] for row in rows(folder) if "val/noisy/loss" in row] == [2, 4, 6]
    assert result.report["val"] == {"val/clean": (0, 3, 2), "val/noisy": (0, 5, 2)}


def test_the_page_of_hyperparameters_has_the_metrics_of_the_module(run):
    _, folder, _, _ = run
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    content = reader.SummaryMetadata("_hparams_/experiment").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
    columns = [info.name.tag for info in data.FromString(content).experiment.metric_infos]
    assert columns[:4] == ["val/loss", "val/accuracy", "train/loss", "train/accuracy"]
    own = {"val/clean/loss", "val/noisy/f1", "val/noisy/recall/1", "val/clean/spread", "train/spread"}
    assert own <= set(columns) and len(set(columns)) == len(columns)
    assert {name for name in columns[4:] if name.startswith(("val/", "train/"))} <= scalars(folder).keys()


def test_callbacks_watch_any_set(run):
    result, folder, stopping, _ = run
    values = {row["step"]: row["val/noisy/loss"] for row in rows(folder) if "val/noisy/loss" in row}
    best = min(values, key=lambda step: values[step])
    assert result.best == {"monitor": "val/noisy/loss", "score": values[best], "step": best}
    f1 = [row["val/noisy/f1"] for row in rows(folder) if "val/noisy/f1" in row]
    assert stopping.monitor.mode == "max" and stopping.best == max(f1)


def test_by_default_the_loss_of_the_first_set_counts(tmp_path):
    fit = jt.Fit("bptt", max_steps=4, validate_every=2, run_dir=tmp_path, callbacks=[jt.EarlyStopping(patience=9)])
    result = fit.run(Linear(), jt.DataModule(Lines(), {"noisy": Noisy(), "clean": Clean(3)}))
    values = {row["step"]: row["val/noisy/loss"] for row in rows(tmp_path) if "val/noisy/loss" in row}
    assert result.best == {"monitor": "val/loss", "score": min(values.values()), "step": min(values, key=values.get)}
    assert fit.validate(Linear(), Clean(3), checkpoint="best").keys() == {"val/loss"}


def test_a_data_module_is_asked_once():
    asked = []

    class Asked(jt.DataModule):
        batch_first = False

        def val_data(self):
            asked.append(self)
            return {"a": Clean(1), "b": Clean(2)}

    assert jt.Fit("bptt").validate(Linear(), Asked()).keys() == {"val/a/loss", "val/b/loss"} and len(asked) == 1


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_validation_is_repeated_on_resume(tmp_path, at):
    """SIGTERM comes while the second set is read."""

    def fit(folder, **options):
        return jt.Fit("bptt", max_steps=4, validate_every=2, log_every=3, run_dir=folder, **options)

    whole = fit(tmp_path / "whole").run(Signs(), sets())
    reads = []

    def before(step):
        reads.append(step)
        if step == at and len(reads) > 4:
            kill()

    stopped = fit(tmp_path / "parts").run(Signs(), sets(before=before))
    assert stopped.status == "terminated" and stopped.step in (2, 4)
    result = fit(tmp_path / "parts").run(Signs(), sets(), resume="last")
    assert (result.status, result.digest) == ("finished", whole.digest)
    for name, value in whole.metrics.items():
        if name.startswith(("val/", "train/")):
            np.testing.assert_array_equal(result.metrics[name], value)  # NaN for a class without targets
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")


def test_an_array_cannot_be_monitored():
    for tag, advice in (
        ("val/recall", "monitor one of its entries, such as 'val/recall/0'"),
        ("val/confusion", "monitor another metric"),
    ):
        fit = jt.Fit("bptt", max_steps=1, callbacks=[jt.EarlyStopping(tag, mode="max")])
        with pytest.raises(ValueError, match=f"EarlyStopping monitors '{tag}', which is an array.*{advice}"):
            fit.run(Signs(), lines())
    jt.Fit("bptt", max_steps=1, callbacks=[jt.EarlyStopping("val/recall/0")]).run(Signs(), lines())


def test_a_set_that_there_is_not_is_named_before_the_first_step(tmp_path):
    fit = jt.Fit("bptt", max_steps=1, run_dir=tmp_path, callbacks=[jt.Checkpoint(monitor="val/nosy/loss")])
    with pytest.raises(ValueError, match="'val/nosy/loss', which validation does not give.*'val/noisy/loss'"):
        fit.run(Linear(), sets())
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ([Lines(), Noisy()], "val data: several validation sets: give a dict, {'easy': ..., 'hard': ...}"),
        ({}, "val data: got an empty dict; expected a dict of sources by name"),
        ({"a/b": []}, "val data: got the name 'a/b'"),
        ({1: []}, "val data: got the name 1"),
        ({"clean": None}, "val data: 'clean' is None; give it a source of batches, or leave it out"),
    ],
)
def test_names_of_sets(val, message):
    with pytest.raises(DataError, match=message):
        named_sources(val, "val")


def test_an_error_of_a_set_names_it():
    wrong = jt.DataModule(Lines(), {"clean": Clean(3), "other": [line(0), line(1, time=4)]}, batch_first=False)
    with pytest.raises(DataError, match="val/other data: batch 1: leaf batch.* has shape"):
        jt.Fit("bptt", max_steps=1).run(Linear(), wrong)
