"""The copying recipe, from its flags to its files, at a size that trains in a second."""

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path

import pytest

import jaxtrain
import jaxtrain.commands.main
from tests.kit import forks
from tests.kit.tiers import longer

RECIPE = Path(__file__).parents[2] / "recipes" / "copy_gru.py"
TINY = "--time-lag 5 --digits 2 --batch-size 4 --hidden 8".split()
TINY += "--validate-every 10 --checkpoint-every 10 --log-every 5".split()


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("copy_gru", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["copy_gru"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(recipe, tmp_path, monkeypatch, capsys):
    """`call("--lr", 1)` -> (exit code, stdout, stderr), in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXTRAIN_TRACEBACK", raising=False)

    def run(*argv):
        argv = [*TINY, "--no-progress", *map(str, argv)]
        code = jaxtrain.cli.main(recipe.Config, recipe.make, presets=recipe.PRESETS, chance=recipe.CHANCE, argv=argv)
        return code, *capsys.readouterr()

    return run


def rows(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.quick
@pytest.mark.parametrize("strategy", ["drtrl", "bptt"])
def test_a_run(call, strategy):
    code, out, err = call("--strategy", strategy, "--max-steps", 20)
    assert (code, err) == (0, "")
    run = Path(f"checkpoints/copy_gru/0001-{strategy}-seed0")
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["time_lag"] == 5 and config["strategy"]["name"] == strategy
    assert [row["step"] for row in rows(run)] == [5, 10, 15, 20]
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "grad_norm"} <= rows(run)[-1].keys()
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [10, 20]
    assert any((run / "tensorboard").iterdir()) and len(list((run / "figures").iterdir())) == 2
    assert "finished at step 20" in out and "(chance 0.125)" in out and f"--run-dir {run} --resume last" in out
    assert jaxtrain.commands.main.tool(["info", str(run)]) == 0


@pytest.mark.full
def test_a_run_goes_on_and_forks(call):
    call("--max-steps", 20, "--seed", 3)
    code, out, _ = call("--resume", "last", "--max-steps", 40)
    run = Path("checkpoints/copy_gru/0001-drtrl-seed3")
    assert code == 0 and [row["step"] for row in rows(run)] == list(range(5, 45, 5))
    assert f"resuming {run} from its last checkpoint, with its saved configuration" in out
    assert call("--resume", "last")[0] == 0 and len(list(run.parent.iterdir())) == 1  # already finished
    code, out, _ = call("--resume", 30, "--lr", 1e-4)
    assert code == 0 and len(list(run.parent.iterdir())) == 2
    fork = next(path for path in run.parent.iterdir() if path != run)
    assert json.loads((fork / "config.json").read_text())["parent"]["step"] == 30 and str(fork) in out
    code, _, err = call("--resume", "last", "--hidden", 16)
    assert code == 1 and err.startswith("error: ") and len(err.splitlines()) == 1


@pytest.mark.full
@pytest.mark.parametrize("cell", ["vanilla", *longer("lru", "lstm", "mgu", "mini_gru")])
def test_other_cells(call, cell):
    code, out, err = call("--cell", cell, "--max-steps", 5, "--layers", 2)
    assert (code, err) == (0, "") and "finished at step 5" in out
    assert rows("checkpoints/copy_gru/0001-drtrl-seed0")[-1]["grad_norm"] > 0


@pytest.mark.full
def test_dry_run(call, caplog):
    code, _, err = call("--dry-run", "--layers", 2)
    assert (code, err) == (0, "") and not list(Path().iterdir())
    assert "rnn.layers.1.Wh.weight" in caplog.text and "readout.weight" in caplog.text


def test_a_mistake_is_one_line(call):
    for argv in ("--time-lag -1", "--max-steps 0", "--strategy.vjp single-step --strategy.window 2"):
        code, _, err = call(*argv.split())
        assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1, err
    for argv in ("--hidden 0", "--layers 0", "--validate-every 0", "--checkpoint-every soon", "--cell rnn"):
        code, _, err = call(*argv.split())
        assert code == 2 and argv.split()[0] in err, err
        assert "--cell" in argv or (err.startswith("error: ") and len(err.splitlines()) == 1), err
    assert not list(Path("checkpoints/copy_gru").iterdir())


def test_defaults_and_the_tutorials_setting(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fit, module, data = recipe.make(recipe.Config())
    assert fit.strategy == jaxtrain.DRTRL(window=10) and (fit.max_steps, fit.clip, fit.run_dir) == (40_000, 1.0, None)
    assert data.identity()["time_lag"] == 50 and isinstance(module, jaxtrain.Module)
    made = []

    def make(config):
        made.append(recipe.make(config)[0])
        raise KeyboardInterrupt

    for strategy in ("drtrl", "bptt"):
        argv = ["--preset", "tutorial", "--strategy", strategy]
        assert jaxtrain.cli.main(recipe.Config, make, presets=recipe.PRESETS, argv=argv) == 130
    assert [fit.strategy for fit in made] == [jaxtrain.DRTRL(vjp="single-step"), jaxtrain.BPTT()]
    assert jaxtrain.cli.main(recipe.Config, make, presets=recipe.PRESETS, argv=["--strategy.vjp", "multi-step"]) == 130
    assert made[-1].strategy == jaxtrain.DRTRL(window=10), "the recipe's own, also from the command line"
    made.pop()
    assert all((fit.max_steps, fit.clip) == (200, None) for fit in made)


@pytest.mark.long
def test_it_learns(call):
    argv = "--time-lag 3 --digits 2 --batch-size 32 --hidden 32 --lr 1e-2 --max-steps 600 --validate-every 600".split()
    assert call(*argv)[0] == 0
    assert rows("checkpoints/copy_gru/0001-drtrl-seed0")[-1]["val/accuracy"] > 0.5


@pytest.mark.full
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(tmp_path, number, code):
    command = [sys.executable, RECIPE, *TINY, "--max-steps", "1000000", "--run-dir", "run"]
    process = forks.Popen(command, cwd=tmp_path, stdout=forks.PIPE, stderr=forks.PIPE)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "--resume last" in out and "Traceback" not in err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == result["step"]
