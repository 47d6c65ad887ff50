import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import (
    HISTOGRAMS,
    IMAGES,
    SCALARS,
    TENSORS,
    EventAccumulator,
)
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServerAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from jaxtrain.loggers import JSONL, TensorBoard
from jaxtrain.loggers.hparams import hparams

PluginData = plugin_data_pb2.HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]


def start(make_run, restored=None, jsonl=True, **changes):
    """A run with loggers as a process has them when it starts; nobody closes them, as if it is killed later."""
    board = TensorBoard()
    run = make_run(*([JSONL()] if jsonl else []), board, restored=restored, **changes)
    run.callbacks("on_fit_start", run)
    if restored is not None:
        run.callbacks("on_restore", run)
    return run


def loss(step):
    return 1 / 3 + step / 7


def rows(run, *steps):
    for step in steps:
        run.step = step
        run.callbacks("on_log", run, {"step": step, "train/loss": loss(step)})
    run.callbacks("flush")


def read(path):
    accumulator = EventAccumulator(str(path / "tensorboard"), size_guidance={SCALARS: 0, IMAGES: 0, HISTOGRAMS: 0})
    accumulator.Reload()
    return accumulator


def points(path, tag="train/loss"):
    return [(event.step, event.value) for event in read(path).Scalars(tag)]


def expected(*steps):
    return [(step, float(np.float32(loss(step)))) for step in steps]


def figure():
    made = Figure(figsize=(2, 1), dpi=50)
    made.subplots().plot([0, 1])
    return made


def test_flush_is_a_barrier_and_values_are_the_rows_as_float32(make_run, tmp_path):
    rows(start(make_run), *range(1, 100))
    assert points(tmp_path) == expected(*range(1, 100))


def test_a_killed_run_that_goes_on_from_an_earlier_step_shows_each_step_once(make_run, tmp_path):
    rows(start(make_run), 10, 20, 30, 40)
    rows(start(make_run, restored=20), 30, 40, 50)
    assert points(tmp_path) == expected(10, 20, 30, 40, 50)
    rows(start(make_run, restored=30), 40)
    assert points(tmp_path) == expected(10, 20, 30, 40)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3, "a file was overwritten"


def test_points_that_never_reached_the_event_file_come_back_from_the_record(make_run, tmp_path):
    rows(start(make_run), 10, 20)
    for path in (tmp_path / "tensorboard").iterdir():
        path.write_bytes(path.read_bytes()[:100])  # the rest was in a buffer, and a torn event is at the end
    rows(start(make_run, restored=20), 30)
    assert points(tmp_path) == expected(10, 20, 30)


def test_a_restart_at_step_0_hides_what_was_there(make_run, tmp_path):
    first = start(make_run)
    rows(first, 10, 20)
    first.figure("recall", figure())
    rows(start(make_run), 10)
    assert points(tmp_path) == expected(10)
    assert not list((tmp_path / "figures").iterdir())
    assert read(tmp_path).Tags()["images"] == []


@pytest.mark.parametrize("jsonl_later", [False, True])
def test_without_a_record_only_what_came_later_is_hidden(make_run, tmp_path, jsonl_later):
    rows(start(make_run, jsonl=False), 10, 20, 30)
    rows(start(make_run, restored=20, jsonl=jsonl_later), 30, 40)
    assert points(tmp_path) == expected(10, 20, 30, 40)


def test_numbers_that_are_not_finite_are_nan_live_and_restored_and_say_nothing(make_run, tmp_path, capfd):
    run = start(make_run)
    run.step = 10
    run.callbacks("on_log", run, {"step": 10, "a": math.inf, "b": math.nan, "c": 1.0, "note": "text", "flag": True})
    run.callbacks("flush")

    def seen():
        tags = read(tmp_path).Tags()["scalars"]
        return {tag: [step for step, value in points(tmp_path, tag) if math.isnan(value)] for tag in sorted(tags)}

    assert seen() == {"a": [10], "b": [10], "c": []}
    start(make_run, restored=10)
    assert seen() == {"a": [10], "b": [10], "c": []}
    assert points(tmp_path, "c") == [(10, 1.0)]
    assert "NaN" not in capfd.readouterr().err


@pytest.mark.parametrize("resumed", [False, True])
def test_the_configuration_is_there_once_as_text_and_as_hparams_of_this_run(make_run, tmp_path, resumed):
    run = start(make_run)
    rows(run, 10)
    if resumed:
        start(make_run, restored=10)
    accumulator = ServerAccumulator(str(tmp_path / "tensorboard"))  # the other one never hides text
    accumulator.Reload()
    (event,) = accumulator.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text.startswith("`python recipes/copy_gru.py --name 'a b'`")
    assert json.loads(text.split("```")[1].removeprefix("json")) == run.config
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = PluginData.FromString(content).session_start_info.hparams
    assert values["lr"].number_value == 0.01 and values["clip"].string_value == "null"
    content = accumulator.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = PluginData.FromString(content).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/loss", "val/accuracy", "train/loss", "train/accuracy"]
    assert read(tmp_path).Tags()["scalars"] == ["train/loss"], "hparams made curves of their own"
    assert [path.is_dir() for path in (tmp_path / "tensorboard").iterdir()] == [False] * (1 + resumed)


def test_hparams_have_the_same_keys_whatever_the_strategy_and_the_values():
    def config(strategy, clip):
        return {"config": {"clip": clip, "sizes": [8], "task": {"lag": 3}}, "strategy": strategy, "module": "M"}

    drtrl = hparams(config({"name": "drtrl", "update_every": 1}, None))
    bptt = hparams(config({"name": "bptt"}, math.inf))
    assert list(drtrl) == list(bptt)
    assert drtrl == {"module": "M", "strategy": "drtrl", "strategy.fields": '{"update_every": 1}', "clip": "null",
                     "sizes": "[8]", "task.lag": 3}  # fmt: skip
    assert hparams({"fit": {"clip": 1.0}, "data": {"seed": 0}})["fit.clip"] == 1.0


def test_figures_are_kept_and_shown_again_up_to_the_restored_step(make_run, tmp_path):
    run = start(make_run)
    for step in (10, 20, 30):
        rows(run, step)
        run.figure("val/recall", figure())
    run.callbacks("flush")
    images = read(tmp_path).Images("val/recall")
    assert [image.step for image in images] == [10, 20, 30]
    assert (images[0].width, images[0].height) == (100, 50)
    start(make_run, restored=20)
    again = read(tmp_path).Images("val/recall")
    assert [image.step for image in again] == [10, 20]
    assert [image.encoded_image_string for image in again] == [image.encoded_image_string for image in images[:2]]
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["val%2Frecall-00000010.png", "val%2Frecall-00000020.png"]


def test_a_pyplot_figure_is_closed(make_run):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    start(make_run).figure("curve", pyplot.figure())
    assert pyplot.get_fignums() == []


def test_the_end_closes_the_file_and_later_rows_are_refused(make_run, tmp_path):
    run = start(make_run, jsonl=False)
    rows(run, 10)
    run.callbacks("on_fit_end", run, "finished")
    before = sorted((tmp_path / "tensorboard").iterdir())
    with pytest.raises(RuntimeError, match="step 20 after on_fit_end"):
        rows(run, 20)
    assert sorted((tmp_path / "tensorboard").iterdir()) == before
    assert points(tmp_path) == expected(10)


def test_points_are_on_disk_after_flush_secs(make_run, tmp_path):
    board = TensorBoard(flush_secs=1e-9)
    run = make_run(board)
    board.on_fit_start(run)
    board.on_log(run, {"step": 10, "train/loss": loss(10)})
    board.on_chunk_end(run, {})
    assert points(tmp_path) == expected(10)


def test_bad_arguments_are_one_clear_line(make_run):
    with pytest.raises(ValueError, match=r"TensorBoard needs a run directory: Fit\(run_dir=...\)"):
        TensorBoard().on_fit_start(make_run(run_dir=None))
    with pytest.raises(ValueError, match="flush_secs is 0"):
        TensorBoard(flush_secs=0)


# ------------------------------------------------------------------------------- event files of other writers


def others(path, seconds, *steps):
    """A histogram and a scalar of a person's own writer, whose file is named as of that second."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import histogram, scalar

    (path / "tensorboard").mkdir(exist_ok=True)
    writer = EventsWriter(str(path / "tensorboard" / f"events.out.tfevents.{seconds}.host"))
    for step in steps:
        for made in (histogram("mine/w", np.arange(step + 2.0), 8), scalar("mine/a", float(step))):
            writer.write_event(event_pb2.Event(wall_time=1.0, step=step, summary=made))
    writer.close()


@pytest.mark.parametrize("when", [1, 9999999999], ids=["sorts first", "sorts last"])
@pytest.mark.parametrize("reader", [EventAccumulator, ServerAccumulator])
def test_event_files_of_other_writers_are_shown_whole(make_run, tmp_path, when, reader):
    def seen():
        found = reader(str(tmp_path / "tensorboard"), size_guidance={HISTOGRAMS: 0, TENSORS: 0})
        found.Reload()
        if reader is EventAccumulator:
            return [e.step for e in found.Histograms("mine/w")], [e.step for e in found.Scalars("mine/a")]
        return [e.step for e in found.Tensors("mine/w")], [e.step for e in found.Tensors("mine/a")]

    others(tmp_path, when, 10, 20)
    mine = {path: path.read_bytes() for path in (tmp_path / "tensorboard").iterdir()}
    rows(start(make_run), 10, 20, 30)
    assert seen() == ([10, 20], [10, 20])
    rows(start(make_run, restored=20), 30, 40)
    assert seen() == ([10, 20], [10, 20]) and points(tmp_path) == expected(10, 20, 30, 40)
    rows(start(make_run), 10)  # again from the start
    assert seen() == ([10, 20], [10, 20]) and points(tmp_path) == expected(10)
    assert all(path.read_bytes() == data for path, data in mine.items())


def test_without_a_record_event_files_of_other_writers_are_shown_whole(make_run, tmp_path):
    others(tmp_path, 1, 10, 40)
    rows(start(make_run, jsonl=False), 10, 20, 30)
    rows(start(make_run, restored=20, jsonl=False), 30)
    assert [e.step for e in read(tmp_path).Histograms("mine/w")] == [10, 40]
    assert points(tmp_path) == expected(10, 20, 30)


def test_a_link_in_place_of_an_event_file_is_not_written_through(make_run, tmp_path):
    rows(start(make_run), 10)
    (file,) = (tmp_path / "tensorboard").iterdir()
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(OSError):
        start(make_run, restored=10)
    assert elsewhere.read_bytes() == before


def histograms(path, tag):
    return [(e.step, e.histogram_value.num, e.histogram_value.min, e.histogram_value.max, sum(e.histogram_value.bucket))
            for e in read(path).Histograms(tag)]  # fmt: skip


def test_histograms_are_shown_and_outlive_a_resume(make_run, tmp_path):
    run = start(make_run)
    for step in (10, 20, 30):
        rows(run, step)
        run.histogram("w", np.linspace(-1, step, 100).reshape(10, 10))
        run.histogram("flat", np.full(7, 0.5, np.float32))
    run.callbacks("flush")
    wanted = [(step, 100, -1.0, step, 100) for step in (10, 20, 30)]
    assert histograms(tmp_path, "w") == wanted
    assert histograms(tmp_path, "flat") == [(step, 7, 0.5, 0.5, 7) for step in (10, 20, 30)]
    for _ in range(2):
        again = start(make_run, restored=20)
        assert histograms(tmp_path, "w") == wanted[:2]
    rows(again, 30)
    again.histogram("w", np.linspace(-1, 30, 100))
    again.callbacks("flush")
    assert histograms(tmp_path, "w") == wanted
    start(make_run)
    assert read(tmp_path).Tags()["histograms"] == []


def test_a_histogram_counts_as_numpy_does(make_run, tmp_path):
    run, values = start(make_run), np.random.default_rng(0).normal(size=500)
    run.histogram("w", values)
    run.callbacks("flush")
    (found,) = [e.histogram_value for e in read(tmp_path).Histograms("w")]
    ends = np.array(found.bucket_limit)
    for count, low, high in zip(found.bucket[1:], ends[:-1], ends[1:], strict=True):
        inside = (values >= low) & ((values < high) | ((high == ends[-1]) & (values == high)))
        assert count == inside.sum()


def test_histograms_of_bad_values(make_run, tmp_path, caplog):
    run = start(make_run)
    run.histogram("w", [1.0, np.nan, np.inf, 2.0])
    run.histogram("gone", [np.nan])
    run.callbacks("flush")
    assert histograms(tmp_path, "w") == [(0, 2, 1.0, 2.0, 2)]
    assert [r.getMessage() for r in caplog.records] == [
        "step 0: 2 of 4 values of w are not finite", "step 0: 1 of 1 values of gone are not finite"
    ]  # fmt: skip
    for bad in (["a"], [1j], {"w": 1}):
        with pytest.raises(TypeError, match=r"run.histogram\('w'\): got .*; expected an array of real numbers"):
            run.histogram("w", bad)
