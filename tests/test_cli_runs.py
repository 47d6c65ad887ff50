"""Which run directory a command line begins, and which run it resumes."""

import json
import os
from pathlib import Path

import pytest

import jaxtrain
from jaxtrain.utils.files import RunLock
from tests.commands import ROOT


def test_every_run_gets_a_folder_of_its_own(fit, call):
    names = []
    for argv in ([], ["--strategy", "bptt"], ["--seed", "3"]):
        call(*argv)
        names.append(Path(fit.config.run_dir).name)
    assert names == ["0001-drtrl-seed0", "0002-bptt-seed0", "0003-drtrl-seed3"]


def test_dry_run_leaves_nothing_behind(fit, call):
    code, out, _ = call("--dry-run")
    assert code == 0 and fit.asked["dry_run"] is True and not out
    assert not list(Path().iterdir())


def test_resume_takes_the_saved_config_and_flags_win(fit, call):
    call("--run-dir", "r", "--preset", "tutorial", "--batch-size", 8, "--strategy.batching", "vmap", "--no-progress")
    _, out, _ = call("--run-dir", "r", "--resume", "last", "--preset", "tutorial", "--lr", 0.5)
    assert "resuming r from its last checkpoint, with its saved configuration, which replaces --preset" in out
    assert fit.asked["resume"] == "last" and fit.config.run_dir == "r" and fit.config.progress is True
    assert (fit.config.lr, fit.config.clip, fit.config.batch_size) == (0.5, None, 8)
    assert fit.config.make_strategy() == jaxtrain.DRTRL(vjp="single-step", batching="vmap")


def test_resume_last_is_the_newest_numbered_run(fit, call):
    code, out, _ = call("--resume", "last", "--lr", 0.5)
    assert code == 0 and f"there is no run under {ROOT} yet" in out
    assert fit.asked["resume"] == "never" and fit.config.run_dir == str(ROOT / "0001-drtrl-seed0")
    call("--lr", 0.25)
    call("--resume", "last")
    assert fit.config.run_dir == str(ROOT / "0002-drtrl-seed0") and fit.config.lr == 0.25
    call("--resume", 500)
    assert fit.asked["resume"] == 500 and fit.config.run_dir == str(ROOT / "0002-drtrl-seed0")


@pytest.mark.parametrize("word", ["best", "500"])
def test_resume_of_nothing_is_an_error(call, word):
    code, _, err = call("--resume", word)
    assert code == 2 and f"--resume {word}: there is no run under {ROOT}" in err


def test_resume_last_in_an_empty_directory(fit, call):
    call("--run-dir", "r", "--resume", "last", "--preset", "tutorial")
    assert fit.asked["resume"] == "last" and fit.config.lr == 1e-3  # Fit says that it starts fresh


def test_resume_a_path(fit, call):
    call("--run-dir", "r", "--lr", 0.5)
    Path("r/checkpoints/00000050").mkdir(parents=True)
    call("--resume", "r/checkpoints/50")
    assert fit.asked["resume"] == "r/checkpoints/50" and fit.config.run_dir == "r" and fit.config.lr == 0.5
    call("--resume", "r/checkpoints/50", "--run-dir", "new", "--lr", 0.25)
    assert fit.asked["resume"] == "r/checkpoints/50" and fit.config.run_dir == "new" and fit.config.lr == 0.25
    assert call("--resume", "r/checkpoints/60")[0] == 2


def test_a_directory_in_use_is_refused_before_anything_is_made(fit, call):
    call("--run-dir", "r")
    fit.config = None
    with RunLock(Path("r")):
        code, _, err = call("--run-dir", "r", "--resume", "last")
    assert code == 1 and err == f"error: run directory r is in use by process {os.getpid()}: " + (
        "wait for it, or choose another run_dir\n"
    )
    assert fit.config is None and call("--run-dir", "r", "--resume", "last")[0] == 0


def test_a_saved_config_that_the_recipe_no_longer_knows(fit, call):
    call("--run-dir", "r")
    Path("r/config.json").write_text(json.dumps({"config": {"depth": 3}}))
    assert call("--run-dir", "r", "--resume", "last")[::2][0] == 2
    Path("r/config.json").write_text("{")
    code, _, err = call("--run-dir", "r", "--resume", "last")
    assert code == 1 and "cannot read r/config.json" in err


def test_a_run_without_a_recipes_config_is_resumed_with_the_layers(fit, call):
    Path("r").mkdir()
    Path("r/config.json").write_text(json.dumps({"config": None}))
    call("--run-dir", "r", "--resume", "last", "--preset", "tutorial")
    assert fit.config.lr == 1e-3
