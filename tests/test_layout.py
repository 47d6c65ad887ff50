"""The layout of data: stated, swapped in one place, named in the report, warned of where nobody has stated it."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.data.batch import host, layout_warning, stated_layout
from jaxtrain.data.datamodule import warn_of_layout
from jaxtrain.data.eval_loader import EvalLoader
from jaxtrain.data.iterator import DataIterator
from jaxtrain.datasets import Adding, CopyDataset
from jaxtrain.engine import report as preflight
from tests.small import Linear, line

WARNING = "reading arrays as {}; pass batch_first=True if axis 0 is the batch, batch_first=False if it is time"


def swapped(batch):
    return tuple(leaf.swapaxes(0, 1) for leaf in batch)


TIME_MAJOR = [line(i, time=4, batch=3) for i in range(3)]
BATCH_MAJOR = [swapped(batch) for batch in TIME_MAJOR]
LOADER = [*BATCH_MAJOR[:2], tuple(leaf[:2] for leaf in BATCH_MAJOR[2])]
"""As a loader without drop_last gives it."""


def fit(**options):
    return jt.Fit("bptt", **{**dict(max_steps=3), **options})


class Loader:
    """Starts again; it has no length."""

    def __init__(self, batches, **state):
        self.batches = batches
        vars(self).update(state)

    def __iter__(self):
        return iter(self.batches)


# ------------------------------------------------------------------------------------------------------- the swap


def test_axes_are_swapped_where_there_are_two():
    batch = {"x": np.arange(24.0).reshape(2, 3, 4), "label": np.arange(2), "ids": [[1, 2, 3], [4, 5, 6]], "rate": 0.5}
    made = host(batch, "train", 0, True)
    assert made["x"].shape == (3, 2, 4) and made["x"][2, 1, 3] == 23 and made["label"].shape == (2,)
    assert made["ids"].tolist() == [[1, 4], [2, 5], [3, 6]] and made["rate"].shape == ()
    for stated in (None, False):
        assert host(batch, "train", 0, stated)["x"].shape == (2, 3, 4)


def test_who_states_a_layout():
    assert [stated_layout([], "train", said) for said in (None, True, False)] == [None, True, False]
    assert stated_layout(CopyDataset(), "train", None) is False
    assert stated_layout(jt.Phases(None, 0), "train", None) is False
    with pytest.raises(
        jt.errors.DataError, match=r"^train data: batch_first=True, but CopyDataset states batch_first=Fal"
    ):
        fit().run(Linear(), CopyDataset(3, 2, 4), batch_first=True)
    assert DataIterator(CopyDataset(3, 2, 4)).batch_first is False, "as advised: left out"
    phases = jt.Phases(None, *TIME_MAJOR[0])
    with pytest.raises(
        jt.errors.DataError, match=r"^train data: batch_first=True, but Phases states batch_first=False"
    ):
        fit().run(Linear(), [phases], batch_first=True)
    for wrong in (1, "time", np.True_):
        with pytest.raises(jt.errors.DataError, match=r"^train data: batch_first=.*; expected True, False or None$"):
            DataIterator(TIME_MAJOR, batch_first=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["run", "data module", "class", "source", "loader"])
def test_a_run_is_the_same_in_both_layouts(how):
    wanted = fit().run(Linear(), TIME_MAJOR, batch_first=False)

    class Mine(jt.DataModule):
        batch_first = True

        def train_data(self):
            return BATCH_MAJOR

    data = {
        "run": BATCH_MAJOR,
        "data module": jt.DataModule(BATCH_MAJOR, batch_first=True),
        "class": Mine(),
        "source": Loader(BATCH_MAJOR, batch_first=True),
        "loader": Loader(BATCH_MAJOR),
    }[how]
    result = fit().run(Linear(), data, batch_first=True if how in ("run", "loader") else None)
    assert result.digest == wanted.digest
    assert result.digest != fit().run(Linear(), [line(9, 3, 4)] * 3, batch_first=False).digest


def test_data_is_read_in_its_layout():
    reader, module = fit(), Linear()
    for name, method in (("val", reader.validate), ("test", reader.test)):
        wanted = method(module, TIME_MAJOR, batch_first=False)
        assert method(module, BATCH_MAJOR, batch_first=True) == wanted
        assert method(module, jt.DataModule(**{name: BATCH_MAJOR}, batch_first=True)) == wanted
    outputs = reader.predict(module, TIME_MAJOR, batch_first=False)
    assert outputs.shape == (4, 9, 3)
    np.testing.assert_array_equal(reader.predict(module, BATCH_MAJOR, batch_first=True), outputs.swapaxes(0, 1))
    inputs = jt.DataModule(predict=[x for x, _ in BATCH_MAJOR], batch_first=True)
    np.testing.assert_array_equal(reader.predict(module, inputs), outputs.swapaxes(0, 1))


def test_validation_during_a_run_is_in_the_layout_of_the_data():
    wanted = fit().run(Linear(), jt.DataModule(TIME_MAJOR, TIME_MAJOR, batch_first=False))
    found = fit().run(Linear(), jt.DataModule(BATCH_MAJOR, BATCH_MAJOR, batch_first=True))
    assert found.metrics["val/loss"] == wanted.metrics["val/loss"]


def test_a_trained_module_reads_bare_batches_in_the_layout_of_its_training(caplog):
    trainer, module = fit(), Linear()
    trainer.run(module, BATCH_MAJOR, batch_first=True)
    caplog.clear()
    outputs = trainer.predict(module, TIME_MAJOR, batch_first=False)
    np.testing.assert_array_equal(trainer.predict(module, BATCH_MAJOR), outputs.swapaxes(0, 1))
    assert trainer.validate(module, BATCH_MAJOR) == trainer.validate(module, TIME_MAJOR, batch_first=False)
    phases = [jt.Phases(None, *batch) for batch in TIME_MAJOR]  # states its own layout
    np.testing.assert_array_equal(trainer.predict(module, phases), outputs)
    assert "reading arrays" not in caplog.text
    other = Linear()
    trainer.predict(other, BATCH_MAJOR)
    assert "reading arrays" in caplog.text, "this Fit has not trained it"


def test_a_layout_beside_a_data_module_is_refused():
    data = jt.DataModule(BATCH_MAJOR)
    for call in (fit().run, fit().validate, fit().test, fit().predict):
        with pytest.raises(
            jt.errors.DataError, match=r"^batch_first=True: given in addition to DataModule, .*; set its attribute b"
        ):
            call(Linear(), data, batch_first=True)
    data.batch_first = True
    assert fit().run(Linear(), data).report["batch_first"] is True, "as advised"


# ------------------------------------------------------------------------------------------- what is said, and when


def test_a_layout_that_nobody_states_is_warned_of(caplog):
    said = WARNING.format("3 time steps, 4 sequences, 2 features")
    for call in (fit().run, fit().validate, fit().predict):
        caplog.clear()
        call(Linear(), BATCH_MAJOR)
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [said]
    caplog.clear()
    data = jt.DataModule(TIME_MAJOR, TIME_MAJOR)
    reader = fit()
    module = Linear()
    reader.run(module, data)
    reader.validate(module, data)
    assert caplog.text.count("reading arrays as") == 1, "once for each data module"
    caplog.clear()
    for _ in range(2):
        reader.predict(module, BATCH_MAJOR)
    reader.predict(module, [line(0, time=5, batch=4)])
    assert caplog.text.count("reading arrays as") == 2, "once for each shape"


def test_a_layout_that_is_stated_is_not_warned_of(caplog):
    phases = [jt.Phases(None, *batch) for batch in TIME_MAJOR]
    padded = jt.datasets.PaddedCopyDataModule(3, 2, 4, lengths=(8,), digits=(2,))
    copies = jt.datasets.CopyDataModule(3, 2, 4)
    for data in (copies, padded, jt.datasets.StreamDataModule(Adding()), jt.DataModule(CopyDataset(3, 2, 4))):
        iterator = DataIterator(data.train_data(), "train", data.batch_first)
        warn_of_layout(data, iterator.example(), iterator.batch_first)
    fit().validate(Linear(), phases)
    fit().validate(Linear(), TIME_MAJOR, batch_first=False)
    fit().predict(Linear(), BATCH_MAJOR, batch_first=True)
    fit().run(Linear(), jt.DataModule(TIME_MAJOR, batch_first=False))
    assert "reading arrays" not in caplog.text


def test_validation_data_alone_may_lack_a_layout(caplog):
    train = Loader(TIME_MAJOR, batch_first=False)
    fit().run(Linear(), jt.DataModule(train, [line(0, time=5, batch=4)]))
    assert caplog.text.count(WARNING.format("5 time steps, 4 sequences, 2 features")) == 1


def test_sizes_in_the_warning():
    zeros = np.zeros
    assert layout_warning((zeros((5, 4)), zeros((5, 4, 2, 3)))) == WARNING.format(
        "5 time steps, 4 sequences, 2 x 3 features"
    )
    assert layout_warning({"ids": zeros((5, 4)), "of": zeros(4)}) == WARNING.format("5 time steps, 4 sequences")
    assert layout_warning(zeros(3)) is None


@pytest.mark.parametrize("stated,line_of_report", [
    (True, "layout     axis 0 is the batch, axis 1 time (batch_first=True)"),
    (False, "layout     axis 0 is time, axis 1 the batch (batch_first=False)"),
    (None, "layout     axis 0 is time, axis 1 the batch (not stated)"),
])  # fmt: skip
def test_the_report_shows_the_layout(stated, line_of_report, caplog):
    result = fit().run(Linear(), TIME_MAJOR, batch_first=stated, dry_run=True)
    assert line_of_report in preflight.lines(result.report) and line_of_report in caplog.text
    phases = [jt.Phases(None, *batch) for batch in TIME_MAJOR]
    assert fit().run(Linear(), phases, dry_run=True).report["batch_first"] is False


def test_the_report_shows_validation_batches_of_another_layout(caplog):
    other = [tuple(np.concatenate([leaf] * 3) for leaf in batch) for batch in TIME_MAJOR]
    report = fit().run(Linear(), jt.DataModule(TIME_MAJOR, other, batch_first=False), dry_run=True).report
    time, lanes = other[0][0].shape[:2]
    assert f"validation 0 warm-up + {time} scored time steps, {lanes} sequences" in preflight.lines(report)
    assert time == 3 * report["learning"]


# ------------------------------------------------------------------------------------------- what cannot be right


ADVICE = "pass batch_first=True if axis 0 is the batch"


def test_a_short_last_batch_of_a_batch_major_loader_is_refused_with_advice():
    message = r"^train data: batch 2: leaf batch\[0\] has shape \(2, 4, 2\), .*; make all alike, or " + ADVICE
    for data in (LOADER, Loader(LOADER)):
        with pytest.raises(jt.errors.DataError, match=message):
            fit(max_steps=6).run(Linear(), data)
    with pytest.raises(jt.errors.DataError, match=message):
        DataIterator(LOADER)  # before anything is trained
    with pytest.raises(jt.errors.DataError, match=message.replace("train", "val")):
        EvalLoader(LOADER, "val")
    with pytest.raises(jt.errors.DataError, match=message.replace("train", "val")):
        fit().validate(Linear(), LOADER)
    with pytest.raises(
        jt.errors.DataError, match=rf"^predict data: batch 2 has outputs over 2 time steps, .*: {ADVICE}, "
    ):
        fit().predict(Linear(), LOADER)
    with pytest.raises(jt.errors.DataError, match=r"make all alike$"):
        fit(max_steps=6).run(Linear(), LOADER, batch_first=False)  # sequences of another length


def test_the_advice_about_a_short_last_batch_works():
    assert fit(max_epochs=2, max_steps=None).run(Linear(), LOADER, batch_first=True).step == 4
    x, y = (np.concatenate(parts) for parts in zip(*LOADER, strict=True))
    whole = fit().validate(Linear(), [(x, y)], batch_first=True)["val/loss"]
    assert fit().validate(Linear(), LOADER, batch_first=True)["val/loss"] == pytest.approx(whole, rel=1e-6)
    assert fit().predict(Linear(), LOADER, batch_first=True).shape == (8, 4, 3)


class Labels(Linear):
    def learning_step(self, forward, x, y):
        out = forward(x)
        return jnp.square(out - y[:, None] if y.ndim == 1 else out - y).mean(-1)


@pytest.mark.parametrize("classes", [(), (3,)])
def test_a_target_of_a_whole_sequence_is_refused_with_advice(classes):
    x, y = np.zeros((6, 4, 2), np.float32), np.ones((6, *classes), np.float32)
    layout = ".*If axis 0 of the data is the batch, pass batch_first=True with bare data or set it on the DataModule"
    axes = "; expected at least .T, B.: every array has a time axis and a batch axis"
    target = r"; a target for a whole sequence is \(1, B, ...\), or \(B, 1, ...\) with batch_first=True$"
    advice = (layout if classes else axes) + target
    if not classes:  # stated or not: no swap adds the axis that is missing
        for targets in (y, np.ones(3, np.float32)):
            with pytest.raises(
                ValueError, match="^targets have one axis, .6,.; a target|^targets has shape .3,.; exp"
            ) as said:
                fit().run(Labels(), [(x, targets)], batch_first=True)
            assert "DataModule" not in str(said.value)
    with pytest.raises(ValueError, match=rf"^targets has shape \(6,{' 3' if classes else ''}\)" + advice):
        fit().run(Labels(), [(x, y)])
    result = fit().run(Labels(), [(x, y[:, None])], batch_first=True)
    assert result.report["warmup"] == 3 and result.report["learning"] == 1 and result.report["batch"] == 6
    assert fit().run(Labels(), jt.DataModule([(x, y[:, None])], batch_first=True)).digest == result.digest
    again = fit().run(Labels(), [(x.swapaxes(0, 1), y[None])], batch_first=False)
    assert again.digest == result.digest
    start = "6 time steps and inputs only 4" if classes else "one axis, .6,."
    with pytest.raises(ValueError, match=f"^targets have {start}{advice if classes else target}"):
        fit().run(Labels(), [(x.swapaxes(0, 1), y)])


# ------------------------------------------------------------------------------------------------------- on resume


def test_another_layout_is_other_data_on_resume(tmp_path):
    cube = [line(i, time=3, batch=3) for i in range(3)]

    def run(steps, batch_first, resume="never"):
        return fit(max_steps=steps, run_dir=tmp_path).run(Linear(), cube, resume=resume, batch_first=batch_first)

    run(2, None)
    with pytest.raises(ValueError, match="of step 2 is of other data: batch_first: None in the checkpoint, True now"):
        run(4, True, "last")
    assert run(4, False, "last").step == 4, "time-major is the default"


def test_a_batch_major_run_resumes_as_such(tmp_path):
    def run(directory, steps, batch_first, resume="never"):
        options = dict(max_steps=steps, run_dir=tmp_path / directory)
        return fit(**options).run(Linear(), BATCH_MAJOR, resume=resume, batch_first=batch_first)

    whole = run("whole", 5, True)
    run("parts", 2, True)
    assert run("parts", 5, True, "last").digest == whole.digest
    with pytest.raises(ValueError, match="is of other data: batch_first: True in the checkpoint, None now"):
        run("parts", 6, None, "last")
