"""Fashion-MNIST: the files are read as their format says, every input and network trains, and mistakes are named."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain import cli
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.errors import ConfigError
from tests.kit.tiers import longer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "fashion.py"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
fashion = load_recipe(RECIPE)


def idx(array, magic=None):
    """The bytes of an IDX file."""
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype("uint8").tobytes()


def made_up(train=48, test=12, size=6):
    """One noisy pattern for each of ten classes; the arrays of the four files, by name."""
    rng = np.random.default_rng(0)
    patterns, arrays = rng.integers(0, 230, (10, size, size)), []
    for count in (train, test):
        y = np.arange(count) % 10
        arrays += [patterns[y] + rng.integers(0, 25, (count, size, size)), y]
    return dict(zip(FILES, arrays, strict=True))


@pytest.fixture
def folder(tmp_path):
    """A folder with the four files: the images compressed, the labels not."""
    for name, array in made_up().items():
        if "images" in name:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def run(folder, **options):
    """Train on the files of a folder. Returns the result, the Fit, the module and the data."""
    small = {"hidden": 8, "batch_size": 4, "epochs": 1, "devices": 1, "progress": False}
    config = fashion.Config(data=str(folder), **{**small, **options})
    fit, module, data = fashion.make(config)
    return fit.run(module, data), fit, module, data


def test_the_files_hold_what_was_written(folder):
    for got, (name, want) in zip(fashion.load(str(folder)), made_up().items(), strict=True):
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_the_first_images_are_the_validation_set(folder):
    x, y = list(made_up().values())[:2]
    _, _, data = fashion.make(fashion.Config(data=str(folder), batch_size=4, input="direct", steps=1))
    held_out = data.val_data().batch(0)
    np.testing.assert_array_equal(held_out.inputs[0], x[:4])
    np.testing.assert_array_equal(held_out.targets, y[:4])
    train = data.train_data()
    rows = np.concatenate([train.batch(step).row for step in range(len(train))])
    assert sorted(rows) == list(range(44)), "48 images, of which a twelfth is held out"
    seen = np.concatenate([train.batch(step).inputs[0] for step in range(len(train))])
    np.testing.assert_array_equal(seen, x[4:][rows])


@pytest.mark.parametrize("name,change,said", [
    ("train-images-idx3-ubyte.gz", None, "there is no train-images-idx3-ubyte.gz; install it with apt-get install "
     "dataset-fashion-mnist"),
    ("t10k-labels-idx1-ubyte", lambda _: idx(np.arange(12) % 10, 0x803), "begins with 0x803; expected 0x801"),
    ("t10k-labels-idx1-ubyte", lambda _: b"", "begins with 0x0; expected 0x801"),
    ("t10k-labels-idx1-ubyte", lambda old: old[:-1], "has 19 bytes, but its header says (12,)"),
    ("t10k-labels-idx1-ubyte", lambda _: idx(np.arange(11) % 10), "t10k has 12 images and 11 labels"),
    ("t10k-labels-idx1-ubyte", lambda _: idx(np.arange(12)), "t10k has the label 11; expected 0 to 9"),
    ("train-images-idx3-ubyte.gz", lambda old: old[:-20], "train-images-idx3-ubyte.gz cannot be read: "),
    ("train-images-idx3-ubyte.gz", lambda _: b"plain", "train-images-idx3-ubyte.gz cannot be read: Not a gzipped file"),
    ("t10k-images-idx3-ubyte.gz", lambda _: gzip.compress(idx(np.zeros((12, 7, 7)))),
     "the test images have 7 x 7 pixels, the training images 6 x 6"),
])  # fmt: skip
def test_a_damaged_file_is_named(folder, name, change, said):
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ConfigError) as caught:
        fashion.make(fashion.Config(data=str(folder)))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options,said", [
    ({"network": "gru", "gain": 3.0}, "--gain has no effect with --network gru --input rate: leave it out"),
    ({"network": "lif", "width": 8}, "--width has no effect with --network lif"),
    ({"input": "rows", "steps": 5}, "--steps has no effect with --network lif --input rows"),
    ({"network": "gru", "pole_rate": 0.1}, "--pole-rate sets an LRU's poles and has no effect in this network"),
    ({"tau": 0.0}, "--tau 0.0: expected a positive number"),
    ({"shift": -1}, "--shift -1: expected 0 or more"),
    ({"epochs": 0}, "--epochs 0: expected a whole number, 1 or more"),
    ({"stream": True}, "--stream: expected --input rows and --decide last, without --shift"),
    ({"scored": 11}, "--scored 11: an image has 10 time steps"),
])  # fmt: skip
def test_an_option_without_effect_is_refused(folder, options, said):
    with pytest.raises(ConfigError) as caught:
        fashion.make(fashion.Config(data=str(folder), batch_size=4, **options))
    assert said in str(caught.value)


def test_training_images_are_shifted_and_mirrored(folder):
    image = np.arange(1, 31, dtype="uint8").reshape(5, 6)
    _, (changed,) = fashion.encoder_of(fashion.Config(shift=1, flip=True))
    padded = np.pad(image, 1)
    possible = {
        (top, left, mirrored): part[:, ::-1] if mirrored else part
        for top in range(3) for left in range(3) for mirrored in (False, True)
        for part in [padded[top : top + 5, left : left + 6]]
    }  # fmt: skip
    found = set()
    for key in jax.random.split(jax.random.key(0), 200):
        got = np.asarray(changed(image, key))
        found |= {where for where, part in possible.items() if np.array_equal(part, got)}
    assert found == set(possible)


@pytest.mark.parametrize("flip", [False, True])
def test_a_stream_shows_every_image_once_per_epoch(flip):
    from images.stream import Stream  # beside the recipe

    x, y = np.arange(22 * 5 * 3, dtype="uint8").reshape(22, 5, 3), np.arange(22)
    stream = Stream(x, y, batch_size=4, scored=2, flip=flip, seed=0)
    assert len(stream) == 5
    batches = [stream.batch(step) for step in range(11)]
    parts = ("inputs", "targets", "weights", "reset")
    rows, labels, weights, reset = (np.concatenate([getattr(batch, part) for batch in batches]) for part in parts)
    assert len({tuple(column) for column in reset.T}) == 4, "streams are aligned"
    seen, mirrored = [], 0
    for lane in range(4):
        begins = np.flatnonzero(reset[:, lane])
        np.testing.assert_array_equal(np.diff(begins), 5)
        for number, begin in enumerate(begins[:10]):
            part = np.s_[begin : begin + 5, lane]
            (label,) = set(labels[part])
            shown = np.round(rows[part] * 255)
            mirrored += not np.array_equal(shown, x[label])
            assert any(np.array_equal(shown, image) for image in (x[label], x[label][:, ::-1]))
            np.testing.assert_array_equal(weights[part], [0, 0, 0, 1, 1])
            seen.append((number // 5, label))
    assert len(set(seen)) == len(seen) == 40, "an image is shown twice in an epoch"
    assert 10 < mirrored < 30 if flip else not mirrored


@pytest.mark.parametrize("options", [
    {},
    {"network": "lru", "input": "rows", "stream": True, "decide": "last", "mlp": 4, "scored": 2},
    {"network": "gru", "input": "direct", "strategy": "pp_prop", "width": 4, "mlp": 4},
    {"network": "lru", "input": "pixels", "decide": "last", "strategy_fields": {"update_every": 12}},
    *longer(
        {"network": "alif", "input": "latency", "strategy": "bptt", "flip": True},
        {"network": "lru", "input": "rows", "width": 4, "scored": 1, "shift": 1},
    ),
], ids=lambda options: " ".join(map(str, options.values())) or "default")  # fmt: skip
@pytest.mark.full
def test_every_input_and_network_trains(folder, options):
    result, fit, module, data = run(folder, **options)
    assert (result.status, result.step) == ("finished", 11) and np.isfinite(result.metrics["val/loss"])
    tested = fit.test(module, data)
    assert 0 <= tested["test/accuracy"] <= 1


@pytest.mark.long
def test_a_run_goes_on_for_more_epochs(folder, capsys):
    options = ["--data", folder, "--run-dir", folder / "run", "--hidden", 8, "--batch-size", 4, "--no-progress"]

    def call(*argv):
        argv = [str(word) for word in (*options, *argv)]
        return cli.main(fashion.Config, fashion.make, presets=fashion.PRESETS, argv=argv), capsys.readouterr().out

    code, out = call("--preset", "stream", "--epochs", 1, "--width", 4, "--mlp", 4, "--test")
    assert code == 0 and "finished at step 11" in out and "--resume last --epochs 2" in out
    assert "test    accuracy" in out
    options[4:] = ["--no-progress"]
    code, out = call("--resume", "last", "--epochs", 2)
    assert code == 0 and "finished at step 22" in out


@pytest.mark.full
def test_the_decision_is_the_sum_of_the_scores(folder):
    _, fit, module, data = run(folder, lr=0.05, epochs=3)
    scores = fit.predict(module, data.test_data())  # (N, T, 10)
    right = np.asarray(scores).sum(1).argmax(-1) == made_up()[FILES[3]]
    assert fit.test(module, data)["test/accuracy"] == pytest.approx(right.mean())


def test_help_does_not_load_jax():
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(RECIPE.parent)!r})\n"
        f"sys.argv = ['fashion.py', '--help']\ntry:\n    runpy.run_path({str(RECIPE)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\nprint('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr
    assert "--input" in done.stdout


@pytest.mark.long
def test_the_real_images_are_learned(tmp_path):
    if not (Path(fashion.DATA) / f"{FILES[0]}.gz").exists():
        if os.environ.get("SKIP_SYSTEM") == "1":
            pytest.skip("the Debian package dataset-fashion-mnist is not installed")
        pytest.fail("install the Debian package dataset-fashion-mnist, or set SKIP_SYSTEM=1")
    command = [
        sys.executable,
        RECIPE,
        "--preset",
        "neurotrain",
        "--epochs",
        "1",
        "--strategy",
        "pp_prop",
        "--no-progress",
    ]
    done = subprocess.run([*command, "--run-dir", tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["val"]["accuracy"]
    assert accuracy > 0.83, "chance is 0.1; a linear classifier of the pixels reaches about 0.84"
