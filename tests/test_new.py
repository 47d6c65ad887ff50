"""`jaxtrain new` writes a recipe that every command accepts; `jaxtrain inspect` prints its report, without a run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxtrain
from jaxtrain import cli
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.main import tool

SMALL = "--max-steps 5 --hidden 4 --batch-size 8 --log-every 5 --validate-every 5 --no-progress --devices 1".split()


@pytest.fixture
def experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # load_recipe adds the folder of a recipe, and the module
    monkeypatch.delitem(sys.modules, "my_experiment", raising=False)
    assert tool(["new", "my_experiment.py"]) == 0
    assert "python my_experiment.py --help" in capsys.readouterr().out
    return Path("my_experiment.py")


def test_an_existing_file_stays(experiment, capsys):
    experiment.write_text("mine")
    for name, text in (
        ("my_experiment.py", "the file exists and is not overwritten"),
        ("random.py", "the file would hide the module random"),
        ("jaxtrain.py", "the file would hide the module jaxtrain"),
        ("x.txt", "expected the name of a Python file, e.g. x.py"),
        ("none/x.py", "No such file or directory; expected a file in an existing directory"),
    ):
        assert tool(["new", name]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: new {name}: {text}") and len(err.splitlines()) == 1
    assert experiment.read_text() == "mine" and [*Path().iterdir()] == [experiment]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="the extra dev is not installed")
@pytest.mark.parametrize("settings", [[], ["--isolated"]])
def test_ruff_accepts_the_experiment(experiment, settings):
    if not settings:  # those of this repository
        settings = ["--config", str(Path(jaxtrain.__file__).parents[1] / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *settings, experiment], capture_output=True)
        assert done.returncode == 0, done.stdout.decode()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["made up", "classes", "numbers"])
def test_the_experiment_trains(experiment, kind, capsys):
    x = np.random.default_rng(0).normal(size=(60, 7, 2))
    argv = list(SMALL)
    if kind != "made up":
        np.save("x.npy", x)
        np.save("y.npy", (x[:, 0, 0] > 0).astype(int) if kind == "classes" else np.cumsum(x, axis=1))
        argv += ["--data", "."]
    recipe = load_recipe(experiment)
    assert cli.main(recipe.Config, recipe.make, argv=argv) == 0
    assert "finished at step 5, strategy drtrl" in capsys.readouterr().out
    (run,) = Path("checkpoints/my_experiment").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert {*result["val"]} == {"loss", "mae" if kind == "numbers" else "accuracy"}


def test_a_folder_without_arrays_is_one_line(experiment, capsys):
    recipe = load_recipe(experiment)
    assert cli.main(recipe.Config, recipe.make, argv=["--data", "here"]) == 2
    assert capsys.readouterr().err == "error: --data here: it has no x.npy\n"


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((10, 7, 2)), np.ones(10)),  # a number per sequence
        (np.ones((10, 7)), np.arange(10) % 2),
        (np.ones((10, 7, 2)), np.arange(9) % 2),
        (np.ones((10, 7, 2)), np.arange(10) % 2 - 1),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(experiment, capsys, x, y):
    np.save("x.npy", x)
    np.save("y.npy", y)
    recipe = load_recipe(experiment)
    assert cli.main(recipe.Config, recipe.make, argv=["--data", "."]) == 2
    err = capsys.readouterr().err
    assert f"x {x.shape} and y {y.shape} of {y.dtype}; expected x (N, T, features), and y" in err
    assert len(err.splitlines()) == 1


def test_inspect_prints_the_report_and_writes_nothing(experiment, capsys, caplog):
    argv = ["--hidden", "4", "--strategy", "drtrl", "--strategy.window", "1", "--cell", "gru", "--devices", "1"]
    with caplog.at_level("INFO", logger="jaxtrain"):
        assert tool(["inspect", "my_experiment.py", *argv]) == 0
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert text.startswith("strategy   drtrl (update_every=sequence") and "window=1" in text
    line = next(line for line in text.splitlines() if "Wr.weight" in line)
    assert line.endswith("trained: in part")
    assert [path.name for path in Path().iterdir() if path.name != "__pycache__"] == ["my_experiment.py"]
    assert not capsys.readouterr().err
    assert tool(["inspect", "my_experiment.py", "--hiden", "4"]) == 2
    assert "unknown option --hiden; did you mean '--hidden'?" in capsys.readouterr().err
    assert tool(["inspect", "none.py"]) == 2 and capsys.readouterr().err == "error: there is no recipe none.py\n"


@pytest.mark.long
def test_the_experiment_can_be_compared(experiment, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(jaxtrain.__file__).parents[1]))
    small = "--steps 4 --hidden 4 --batch-size 8 --validate-every 4 --log-every 4".split()
    assert tool(["compare", "my_experiment.py", "--strategies", "drtrl", "--seeds", "0", *small]) == 0
    table = Path("compare/compare.md").read_text()
    assert "| drtrl" in table and "did not" not in table
