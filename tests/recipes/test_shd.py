"""recipes/shd.py: its reading of HDF5 files, against numpy's histograms. The files are generated here."""

import sys
from pathlib import Path

import numpy as np
import pytest

import jaxtrain
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.errors import ConfigError
from tests.recordings import write_events, write_spikes

h5py = pytest.importorskip("h5py", reason="the extra dev is not installed")
RECIPE = load_recipe(Path(__file__).parents[2] / "recipes" / "shd.py")
SMALL = dict(hidden=6, batch_size=4, time=20, dt=50.0, pool=100)


def histogram(times, channels, dt, steps, count):
    """The truth: events per time step and channel. The bin after the last one keeps its right edge out of it."""
    edges = np.arange(steps + 2) * dt / 1e3, np.arange(count + 1)
    return np.histogram2d(times.astype("f8"), channels, bins=edges)[0][:steps]


def source_of(part, **options):
    """The recordings of ``DataModule``'s part as a list of (counts, label), in the order of the file."""
    data = RECIPE.make(RECIPE.Config(**{**SMALL, **options}))[2]
    items = getattr(data, f"{part}_data")()._data
    return [items.read(row) for row in range(items.length)]


@pytest.mark.parametrize(("dt", "steps", "pool"), [(10.0, 100, 5), (37.0, 20, 1), (14.0, 100, 13)])
def test_spikes_are_counted_by_time_step_and_channel(tmp_path, dt, steps, pool):
    contents = {part: write_spikes(tmp_path / f"shd_{part}.h5", seed=i) for i, part in enumerate(("train", "test"))}
    options = dict(data=str(tmp_path / "shd_train.h5"), dt=dt, time=steps, pool=pool)
    found = {part: source_of(part, **options) for part in ("train", "val", "test")}
    own = {"train": [i for i in range(23) if i % 10], "val": [0, 10, 20], "test": range(23)}
    for part, rows in own.items():
        times, units, label = contents["test" if part == "test" else "train"]
        assert len(found[part]) == len(rows)
        for row, (counts, y) in zip(rows, found[part], strict=True):
            channels = -(-700 // pool)
            truth = histogram(times[row], units[row].astype(int) // pool, dt, steps, channels)
            np.testing.assert_array_equal(counts, truth)
            assert counts.shape == (steps, channels) and y == label[row]


def test_events_of_a_sensor_are_counted_by_time_step_and_pixel(tmp_path):
    contents, order = write_events(tmp_path / "n_mnist.hdf5")
    found = source_of("test", data=str(tmp_path / "n_mnist.hdf5"), dt=7.0, time=30, pool=3)
    assert len(found) == 5
    for key, (counts, label) in zip(order[12:], found, strict=True):
        times, addrs, y = contents[key]
        edges = [np.arange(32) * 7e-3, np.arange(3), np.arange(13) * 3, np.arange(13) * 3]
        truth = np.histogramdd(np.c_[times / 1e6, addrs[:, [0, 2, 1]]], bins=edges)[0][:30]
        np.testing.assert_array_equal(counts, truth.reshape(30, -1))
        assert label == y


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": 64}, "--channels 64: .* has the pixels of a sensor; leave it out"),
        ({"test_data": "x.h5"}, "--test-data: .* holds the test recordings as well; leave it out"),
    ],
)
def test_options_without_effect_on_events_are_refused(tmp_path, options, said):
    write_events(tmp_path / "n_mnist.hdf5")
    with pytest.raises(ConfigError, match=said):
        RECIPE.make(RECIPE.Config(data=str(tmp_path / "n_mnist.hdf5"), **SMALL, **options))


def test_a_file_for_validation_is_used(tmp_path):
    for part, count in (("train", 23), ("valid", 9)):
        write_spikes(tmp_path / f"ssc_{part}.h5", count)
    _, _, data = RECIPE.make(RECIPE.Config(data=str(tmp_path / "ssc_train.h5"), **SMALL))
    assert data.train_data()._data.length == 23 and data.val_data()._data.length == 9 and data.test_data() is None


def test_a_batch_reads_its_own_recordings_only(tmp_path, monkeypatch):
    write_spikes(tmp_path / "shd_train.h5")
    read, events = [], RECIPE.Spikes.events
    monkeypatch.setattr(RECIPE.Spikes, "events", lambda self, number: read.append(number) or events(self, number))
    make = lambda seed: RECIPE.make(RECIPE.Config(data=str(tmp_path / "shd_train.h5"), seed=seed, **SMALL))[2]  # noqa: E731
    first = make(0).train_data().batch(6)
    assert len(read) == 4 and read == first_rows(first, read)
    again, other = make(0).train_data().batch(6), make(1).train_data().batch(6)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert (first.inputs != other.inputs).any()


def first_rows(batch, read):
    """Rows of a batch, as numbers of recordings: every tenth one is held out."""
    trained = [number for number in range(23) if number % 10]
    return [trained[row] for row in np.asarray(batch.row)]


def keep(path, *keys):
    """Keep these data sets of a file."""
    with h5py.File(path, "r+") as file:
        for key in ("spikes/times", "spikes/units", "labels"):
            if key not in keys:
                del file[key]


def change(path, key, value):
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = value


MISTAKES = {
    "--data: expected the HDF5 file of the training recordings": lambda path: None,
    "shd_train.h5 cannot be read: No such file": lambda path: path.unlink(),
    "shd_train.h5 cannot be read: it is no HDF5 file": lambda path: path.write_text("time,unit"),
    "shd_train.h5 has no /spikes/units; it has labels, spikes there": lambda path: keep(path, "spikes/times", "labels"),
    "shd_train.h5 has no /labels; it has spikes there": lambda path: keep(path, "spikes/times", "spikes/units"),
    "hold 23, 23 and 22 recordings; expected one number": lambda path: change(path, "labels", np.zeros(22, "u2")),
    "shd_test.h5 has label 2; the labels of": lambda path: change(path, "labels", np.arange(23) % 2),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, capsys, said):
    for part in ("train", "test"):
        write_spikes(tmp_path / f"shd_{part}.h5")
    MISTAKES[said](tmp_path / "shd_train.h5")
    monkeypatch.chdir(tmp_path)
    argv = [] if said.startswith("--data") else ["--data", "shd_train.h5"]
    assert jaxtrain.cli.main(RECIPE.Config, RECIPE.make, argv=[*argv, "--no-progress"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error


def test_a_wrong_recording_is_named(tmp_path):
    write_spikes(tmp_path / "shd_train.h5")
    with h5py.File(tmp_path / "shd_train.h5", "r+") as file:
        file["spikes/units"][1] = np.array([3, 700], "u2")
        file["spikes/times"][3] = np.array([0.5], "f2")
    _, _, data = RECIPE.make(RECIPE.Config(data=str(tmp_path / "shd_train.h5"), **SMALL))
    items = data.train_data()._data
    with pytest.raises(ConfigError, match="recording 1 has unit 700; expected 0 to 699"):
        items.read(0)
    with pytest.raises(ConfigError, match=r"recording 3 has 1 times and \d+ channels; expected one number"):
        items.read(2)
    write_events(tmp_path / "n_mnist.hdf5")
    with h5py.File(tmp_path / "n_mnist.hdf5", "r+") as file:
        key = file["extra/test_keys"][0]
        file[f"data/{key}/addrs"][5, 1] = 34
    with pytest.raises(ConfigError, match=r"addrs of /data/\d+ are \(200, 3\) up to .*polarity, x and y"):
        source_of("test", data=str(tmp_path / "n_mnist.hdf5"))


def test_without_h5py_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r'the package h5py is not installed: pip install "jaxtrain\[shd\]"'):
        RECIPE.make(RECIPE.Config(data=str(tmp_path / "shd_train.h5")))
