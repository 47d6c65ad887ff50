"""``jaxtrain verify-resume``: an exact recipe passes; one whose data loses its position does not."""

import importlib.util
from pathlib import Path

import pytest

from jaxtrain.commands import verify_resume as verify
from jaxtrain.commands.main import tool
from tests.kit import forks

RECIPE = '''
"""A recipe as small as they get."""
import sys
from dataclasses import dataclass

sys.path.insert(0, {root!r})

from jaxtrain import cli


@dataclass(frozen=True)
class Config(cli.Options):
    """A recipe."""

    strategy: cli.StrategyName = "bptt"
    forgetful: bool = False
    """data that counts its batches in Python, and not from the step"""
    rarely: bool = False
    """one checkpoint, at the last step"""
    fails: bool = False


def make(config):
    import time

    import jaxtrain as jt
    from tests.faults.tiny import Noisy
    from tests.small import Lines, LinesOf, line

    class Slow(Lines):
        count = 0

        def batch(self, step):
            if config.fails:
                raise ValueError("no such file")
            time.sleep(0.01)
            self.count += 1
            return line(self.count if config.forgetful else step)

    checkpoint = jt.Checkpoint(every=200 if config.rarely else 20, monitor=None)
    callbacks = [jt.loggers.JSONL(), jt.loggers.TensorBoard(), checkpoint]
    fit = jt.Fit("bptt", max_steps=200, chunk=5, log_every=2, validate_every=50, callbacks=callbacks,
                 run_dir=config.run_dir)
    return fit, Noisy(), jt.DataModule(Slow(), LinesOf(2))


if __name__ == "__main__":
    sys.exit(cli.main(Config, make))
'''


@pytest.fixture
def recipe(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setattr(verify, "subprocess", forks)
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(root=str(Path(__file__).parents[2])))
    return path


def run(capsys, *argv):
    code = tool(["verify-resume", *map(str, argv)])
    return code, capsys.readouterr()


@pytest.mark.full
def test_an_exact_recipe_and_one_that_forgets(recipe, tmp_path, capsys):
    code, said = run(capsys, recipe, "--kills", 3, "--keep", tmp_path / "kept")
    assert code == 0, said
    assert said.out.count("\nkill ") == 3 and "\nresume is exact\n" in said.out
    for part in ("result", "parameters", "training state", "callback states", "metrics.jsonl", "TensorBoard"):
        assert f"  {part:<18}equal\n" in said.out
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"whole", "whole.log", "killed-1"}
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.py", "kept"}, "no run of the user's is touched"

    code, said = run(capsys, recipe, "--forgetful", "--kills", 3, "--kill-seed", 7)
    assert code == 1, said
    assert "  training state    DIFFERS: " in said.out and "  metrics.jsonl     DIFFERS: " in said.out
    assert "\nresume is NOT exact\n" in said.out

    code, said = run(capsys, recipe, "--forgetful", "--kills", 1)
    assert code == 1 and "kill 1: after a checkpoint, " in said.out and "resume is NOT exact" in said.out

    code, said = run(capsys, recipe, "--rarely", "--kills", 1)
    assert code == 1 and said.err.startswith("error: resume was not tested: no run continued from a checkpoint"), said
    assert "save checkpoints more often" in said.err

    code, said = run(capsys, recipe, "--fails")
    assert code == 1 and said.err.startswith("error: the run without kills ended with exit code 1: ")
    assert len(said.err.splitlines()) == 1 and "no such file" in said.err


@pytest.mark.parametrize(
    "argv,message",
    [
        (["nowhere.py"], "nowhere.py: no such file; expected a recipe"),
        (["recipe.py", "--kills", "0"], "verify-resume --kills 0: expected a positive number"),
        (["recipe.py", "--run-dir", "mine"], "its own runs and directories: leave --run-dir out"),
        (["recipe.py", "--run_dir=mine"], "its own runs and directories: leave --run_dir out"),
        (["recipe.py", "--resume", "best"], "leave --resume out"),
        (["recipe.py", "--keep", "."], "verify-resume --keep .: expected an empty or new directory"),
    ],
)
def test_what_cannot_be_verified_is_one_line(recipe, capsys, argv, message):
    code, said = run(capsys, *argv)
    assert code == 2 and message in said.err and len(said.err.splitlines()) == 1
    assert [path.name for path in recipe.parent.iterdir()] == ["recipe.py"]


@pytest.mark.long
def test_what_cannot_be_read_is_said_to_be_left_out(recipe, tmp_path, capsys, monkeypatch):
    """Without tensorboard, a run that wrote for it: its points are not compared, and a line says so."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: name != "tensorboard" and find(name, *more))
    code, said = run(capsys, recipe, "--kills", 1, "--keep", tmp_path / "kept")
    assert code == 0, said
    assert "\n  TensorBoard: not compared (tensorboard is not installed)\n" in said.out
    assert "TensorBoard       equal" not in said.out


def test_nan_equals_nan_and_nothing_else():
    nan = float("nan")
    assert verify.difference({"a": [nan]}, {"a": [float("nan")]}) is None
    assert verify.difference({"a": [nan]}, {"a": [1.0]}) == "a.0: 'NaN' without kills, 1.0 with kills"
    assert verify.difference({"a": [None]}, {"a": [nan]}) == "a.0: None without kills, 'NaN' with kills"


def test_the_first_difference_is_named_with_both_values():
    whole = {"a": [1, {"b": 2.0}], "c": None}
    assert verify.difference(whole, {"a": [1, {"b": 2.0}], "c": None}) is None
    assert verify.difference(whole, {"a": [1, {"b": 2.5}], "c": None}) == "a.1.b: 2.0 without kills, 2.5 with kills"
    assert verify.difference(whole, {"a": [1], "c": None}) == "a.1: {'b': 2.0} without kills, None with kills"
    assert verify.difference(whole, {"a": whole["a"], "c": 1}) == "c: None without kills, 1 with kills"
    assert verify.difference(whole, {"c": None, "a": whole["a"], "d": 0}) == "d: None without kills, 0 with kills"
