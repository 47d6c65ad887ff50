"""The summary that a recipe prints at the end of a run."""

import json
import math
from pathlib import Path

import pytest

from jaxtrain import cli
from jaxtrain.commands.load_recipe import load_recipe
from tests.commands import RECIPES, ROOT, Config


def test_summary(fit, call):
    _, out, _ = call()
    lines = out.strip().splitlines()
    assert lines[0] == "finished at step 100, strategy drtrl"
    assert lines[1:3] == ["train   loss 0.5123", "val     accuracy 0.75 (chance 0.125)"]
    assert lines[3] == f"run     {ROOT}/0001-drtrl-seed0"
    assert lines[4] == "logs    tensorboard --logdir checkpoints"
    assert lines[5].endswith(f"commands.py --run-dir {ROOT}/0001-drtrl-seed0 --resume last --max-steps 200")
    fit.result.status, fit.result.reason = "interrupted", "Ctrl-C"
    _, out, _ = call("--run-dir", "a b")
    assert out.strip().startswith("interrupted at step 100 (Ctrl-C)")
    assert "tensorboard --logdir 'a b'" in out and out.strip().endswith("--run-dir 'a b' --resume last")


def test_the_script_that_was_started_is_resumed(fit, capsys, monkeypatch, tmp_path):
    """A script of the user's may import the ``make`` of another file."""
    (tmp_path / "mine.py").touch()
    monkeypatch.setattr("sys.argv", ["mine.py"])
    assert cli.main(Config, fit.make) == 0
    run = Path("checkpoints/mine/0001-drtrl-seed0")
    assert f"mine.py --run-dir {run} --resume last" in capsys.readouterr().out and run.is_dir()
    monkeypatch.setattr("sys.argv", ["-c"])  # no file: that of make
    assert cli.main(Config, fit.make) == 0
    assert f"--run-dir {ROOT}/0001-" in capsys.readouterr().out


def test_summary_of_several_seeds(fit, call):
    lanes = {
        "train/loss": [1.0, 2.0],
        "val/loss": [0.5, 0.25],
        "val/accuracy": [0.75, math.nan],
        "val/z": [math.nan] * 2,
    }
    fit.result.summary = {"seeds": [3, 4], "frozen": [], "per_seed": lanes}
    lines = call()[1].strip().splitlines()
    assert lines[3:5] == ["seeds   3, 4", "spread  loss 0.25 to 0.5, accuracy 0.75 to 0.75"]
    fit.result.summary = {"seeds": [3, 4], "frozen": [4], "per_seed": {"train/loss": [1.0, 2.0]}}
    lines = call()[1].strip().splitlines()
    assert lines[3] == "seeds   3, 4; frozen after a nonfinite value: 4" and lines[4].startswith("run ")


@pytest.mark.full
def test_the_summary_of_a_recipe_with_several_seeds(fit, capsys):
    recipe = load_recipe(RECIPES / "copy_gru.py")
    argv = "--seed 5 --seeds 2 --hidden 4 --time-lag 2 --digits 2 --batch-size 4 --max-steps 4 --log-every 2"
    argv += " --validate-every 4 --checkpoint-every 4 --no-progress --run-dir r"
    assert cli.main(recipe.Config, recipe.make, argv=argv.split()) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads(Path("r/result.json").read_text())
    loss, accuracy = (result["per_seed"][f"val/{name}"] for name in ("loss", "accuracy"))
    assert len(set(loss)) == 2 and result["seeds"] == [5, 6]
    at = out.index("seeds   5, 6")
    (said,) = [line for line in out if line.startswith("val ")]
    assert f"loss {sum(loss) / 2:.4g}" in said, "above stand means"
    spread = dict(part.split(" ", 1) for part in out[at + 1].removeprefix("spread  ").split(", "))
    assert spread["loss"] == f"{min(loss):.4g} to {max(loss):.4g}"
    assert spread["accuracy"] == f"{min(accuracy):.4g} to {max(accuracy):.4g}"
