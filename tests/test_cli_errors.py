"""Mistakes on a recipe's command line, errors of its run, and the exit code of each end."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jaxtrain
from jaxtrain import cli
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.main import tool
from jaxtrain.strategies import registry
from tests.commands import ROOT, Config


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--batchsize 3", "unknown option --batchsize; did you mean '--batch-size'?"),
        ("--batch-siz=3", "unknown option --batch-siz; did you mean '--batch-size'?"),
        ("--strategy drtl", "unknown strategy 'drtl'; expected bptt, tbptt, drtrl, pp_prop, "),
        ("--strategy drtl", "did you mean 'drtrl'?"),
        ("--strategy.windw 3", "unknown option --strategy.windw; did you mean '--strategy.window'?"),
        ("--strategy bptt --strategy.window 3", "--strategy.window is a field of strategy tbptt and drtrl and"),
        ("--preset tutorail", "unknown preset 'tutorail'; expected tutorial; did you mean 'tutorial'?"),
        ("--resume lst", "did you mean 'last'?"),
        ("--resume some/where", "--resume some/where: expected never, last, best, a step, or the path"),
        ("--config f.toml", "f.toml: unknown key 'batchsize'; expected"),
        ("--config g.toml", "g.toml: lr = '3e-4' is text; expected float"),
        (
            "--config h.toml",
            "h.toml: drtrl: no field 'windw'; expected update_every, stateful, batching, vjp, window, ",
        ),
        ("--config i.toml", "i.toml: strategy_fields = 3; expected a table"),
        ("--config none.toml", "none.toml: No such file"),
        ("word", "unexpected argument 'word'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(fit, call, argv, message):
    Path("f.toml").write_text("batchsize = 3")
    Path("g.toml").write_text('lr = "3e-4"')
    Path("h.toml").write_text("[drtrl]\nwindw = 3")
    Path("i.toml").write_text("strategy_fields = 3")
    code, out, err = call(*argv.split())
    assert code == 2 and err.startswith("error: ") and message in err
    assert len(err.splitlines()) == 1 and not out
    assert not ROOT.exists()


def test_a_config_checks_its_values(fit, call, capsys):
    @dataclass(frozen=True)
    class Checked(Config):
        """A task for tests."""

        every: int | str = 10
        """steps"""

        def __post_init__(self):
            cli.check_options(self, counts=("batch_size",), periods=("every",))

    for argv, message in (
        ("--batch-size 0", "error: --batch-size 0: expected a whole number, 1 or more\n"),
        ("--every 0", "error: --every 0: period: 0 is not positive and finite; expected "),
        ("--every soon", "error: --every soon: period: 'soon' is not understood; expected "),
        ("--config f.toml", "error: --batch-size -3: expected a whole number, 1 or more\n"),
    ):
        Path("f.toml").write_text("batch_size = -3")
        assert cli.main(Checked, fit.make, argv=argv.split()) == 2
        err = capsys.readouterr().err
        assert err.startswith(message) and len(err.splitlines()) == 1
    assert cli.main(Checked, fit.make, argv=["--every", "10min"]) == 0 and fit.config.every == "10min"


def test_jaxtrains_own_errors_are_one_line(fit, call, monkeypatch):
    def mistake():
        jaxtrain.period.Period.of("soon")

    fit.before = mistake
    code, _, err = call()
    assert code == 1 and err.startswith("error: period: 'soon'") and len(err.splitlines()) == 1
    assert not any(ROOT.iterdir())  # the numbered folder in which nothing began is gone
    monkeypatch.setenv("JAXTRAIN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="soon"):
        call()


def test_notes_are_shown(fit, call):
    def mistake():
        try:
            jaxtrain.period.Period.of("soon")
        except ValueError as error:
            error.add_note("train data: batch 3")
            raise

    fit.before = mistake
    assert call()[2].endswith("; train data: batch 3\n")


@pytest.mark.parametrize("error", [ValueError("mine"), OSError("mine"), AttributeError("mine")])
def test_errors_of_the_users_code_keep_their_traceback(fit, call, error):
    def bug():
        raise error

    fit.before = bug
    with pytest.raises(type(error), match="mine"):
        call()
    assert not any(ROOT.iterdir())


def test_a_slip_inside_jaxtrain_keeps_its_traceback(fit, call):
    fit.before = lambda: jaxtrain.period.Period.of(["x"])  # any error is reported
    assert call()[0] == 1
    fit.before = lambda: registry.check(jaxtrain.DRTRL, 3)  # pyright: ignore
    with pytest.raises(AttributeError):
        call()


def test_a_file_in_the_way(fit, call):
    Path("checkpoints").write_text("")
    code, _, err = call()
    assert code == 1 and len(err.splitlines()) == 1 and "checkpoints" in err


def test_ctrl_c_outside_the_loop(fit, call):
    def stop():
        raise KeyboardInterrupt

    fit.before = stop
    assert call()[::2] == (130, "interrupted\n")


@pytest.mark.parametrize("status, code", [("finished", 0), ("stopped", 0), ("interrupted", 130), ("terminated", 143)])
def test_exit_codes(fit, call, status, code):
    fit.result.status = status
    assert call()[0] == code


def test_exit_code_of_a_run_that_is_not_on_disk(fit, call):
    fit.result.saved = False
    assert call()[0] == 1


def test_what_a_strategy_or_fit_refuses_is_an_error_of_the_command_line(fit, call, capsys):
    """Also where types are right: a run has not begun, so it has not failed."""

    def make(config):
        jaxtrain.Fit(config.make_strategy(), max_steps=config.max_steps)
        return fit.make(config)

    for argv, message in (
        (["--strategy.window", "0"], "DRTRL(window=0): expected a whole number of time steps, at least 1"),
        (["--max-steps", "0"], "Fit(max_steps=0): expected a whole number, 1 or more"),
    ):
        assert cli.main(Config, make, argv=argv) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not any((Path("checkpoints") / Path(__file__).stem).iterdir())  # of this file, since make is in it

    def mine(config):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        cli.main(Config, mine, argv=[])


def test_a_recipe_that_makes_something_else(fit, capsys):
    assert cli.main(Config, lambda config: None, argv=[]) == 1  # pyright: ignore
    assert "make(config) returned NoneType; expected (fit, module, data)" in capsys.readouterr().err
    assert cli.main(dict, fit.make, argv=[]) == 1  # pyright: ignore
    assert "extends jaxtrain.cli.Options" in capsys.readouterr().err


def test_exit_codes_of_a_process(tmp_path):
    """A recipe ends in sys.exit(main(...)): SIGTERM before the loop ends the process as the system does."""
    recipe = tmp_path / "wait.py"
    recipe.write_text(
        "import sys, time\nfrom dataclasses import dataclass\nfrom jaxtrain import cli\n"
        "@dataclass(frozen=True)\nclass Config(cli.Options):\n    'Waits.'\n"
        "def make(config):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    sys.exit(cli.main(Config, make))\n"
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        env = {**os.environ, "PYTHONPATH": str(Path(jaxtrain.__file__).parents[1])}
        process = subprocess.Popen(
            [sys.executable, recipe], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == code


def into_a_closed_pipe(*command, cwd=None):
    """Exit code and stderr of a Python whose stdout nobody reads, as behind `| head` that has ended."""
    reads, writes = os.pipe()
    os.close(reads)
    env = {**os.environ, "PYTHONPATH": str(Path(jaxtrain.__file__).parents[1])}
    with os.fdopen(writes, "wb") as stdout:
        done = subprocess.run([sys.executable, *command], stdout=stdout, stderr=subprocess.PIPE, env=env, cwd=cwd)
    return done.returncode, done.stderr.decode()


INFO = "import sys; from jaxtrain.commands.main import tool; sys.exit(tool(sys.argv[1:]))"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_closed_pipe_is_quiet(tmp_path, unbuffered):
    recipe = Path(jaxtrain.__file__).parents[1] / "recipes" / "copy_gru.py"
    options = ["-u"] * unbuffered
    quiet = (0, ""), (141, "")  # nobody heard all that was said, or the work was cut short
    assert into_a_closed_pipe(*options, recipe, "--help") in quiet
    assert into_a_closed_pipe(*options, recipe, "--strategy", "bptt", "--help") in quiet
    (tmp_path / "config.json").write_text('{"fit": {}, "strategy": {"name": "bptt"}, "data": {}, "config": {"a": 1}}')
    assert into_a_closed_pipe(*options, "-c", INFO, "info", tmp_path) in quiet
    assert into_a_closed_pipe(*options, "-c", INFO, "info", tmp_path, "--json") in quiet
    assert into_a_closed_pipe(*options, "-c", INFO, "runs", tmp_path) in quiet
    assert into_a_closed_pipe(*options, "-c", INFO, "compare", "--help") in quiet
    assert into_a_closed_pipe(*options, "-c", INFO, "--help") in quiet


def test_a_closed_pipe_hides_no_error(tmp_path):
    code, said = into_a_closed_pipe("-c", INFO, "info", tmp_path / "none")
    assert code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1


@pytest.mark.full
def test_a_run_goes_on_though_nobody_reads_along(tmp_path):
    recipe = Path(jaxtrain.__file__).parents[1] / "recipes" / "copy_gru.py"
    sizes = "--hidden 4 --time-lag 3 --digits 2 --batch-size 2 --max-steps 40 --log-every 10 --run-dir run"
    assert into_a_closed_pipe(recipe, *sizes.split(), cwd=tmp_path) == (0, "")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 40


CARELESS = """
from dataclasses import dataclass
from jaxtrain import cli
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.main import tool

@dataclass(frozen=True)
class Config(cli.TrainingOptions):
    strategy: cli.StrategyName = "bptt"
    max_steps: int = 2

def make(config):
    import jaxtrain as jt
    from tests.small import Linear, lines

    return jt.Fit(config.strategy, max_steps=config.max_steps, run_dir=config.run_dir), Linear(), lines()
"""
LOST = (
    "error: careless.py: make(config) returned a Fit with window=10, but window=2 was asked for: pass "
    "config.make_strategy() to Fit as its strategy\n"
)


def test_a_recipe_that_drops_the_fields_of_a_strategy(fit, capsys):
    """Every command says so, and following the advice mends it."""
    careless = Path("careless.py")
    careless.write_text(CARELESS)
    recipe = load_recipe(careless)
    argv = ["--strategy", "tbptt", "--strategy.window", "2"]
    assert cli.main(recipe.Config, recipe.make, argv=argv) == 2
    assert capsys.readouterr().err == LOST and not any(Path("checkpoints/careless").iterdir())
    fidelity = ["fidelity", "careless.py", "--strategies", "tbptt:window=2", "--steps", "1", "--out"]
    assert tool([*fidelity, "out"]) == 2 and capsys.readouterr().err == LOST
    careless.write_text(CARELESS.replace("config.strategy", "config.make_strategy()"))
    assert cli.main(recipe.Config, load_recipe(careless).make, argv=argv) == 0
    careless.write_text(CARELESS.replace("config.strategy", "'drtrl'"))
    assert cli.main(recipe.Config, load_recipe(careless).make, argv=argv) == 2
    assert "with strategy 'drtrl', but 'tbptt' was asked for: pass config.make" in capsys.readouterr().err


@pytest.mark.full
def test_a_comparison_with_a_recipe_that_drops_the_fields_of_a_strategy(fit, capsys, monkeypatch):
    Path("careless.py").write_text(CARELESS)
    monkeypatch.setenv("PYTHONPATH", str(Path(jaxtrain.__file__).parents[1]))
    compare = ["compare", "careless.py", "--strategies", "tbptt:window=2", "--seeds", "0", "--metric", "train/loss"]
    assert tool([*compare, "--mode", "min", "--out", "compared"]) == 2 and capsys.readouterr().err == LOST


@pytest.mark.parametrize("argv", [[], ["--dry-run"]])
def test_a_recipe_that_drops_the_run_directory(fit, capsys, argv):
    careless = Path("careless.py")
    careless.write_text(CARELESS.replace(", run_dir=config.run_dir", ""))
    recipe = load_recipe(careless)
    assert cli.main(recipe.Config, recipe.make, argv=argv) == 2
    assert capsys.readouterr().err == (
        "error: careless.py: make(config) returned a Fit with run_dir=None, but the directory of this run is "
        "checkpoints/careless/0001-bptt-seed0: pass run_dir=config.run_dir to Fit\n"
    )


@pytest.mark.parametrize("command", ["fidelity", "compare"])
def test_a_plain_dataclass_is_no_config(fit, capsys, command):
    Path("careless.py").write_text(CARELESS.replace("(cli.TrainingOptions)", ""))
    assert tool([command, "careless.py"]) == 2
    assert "its Config is not a dataclass that extends jaxtrain.cli.Options" in capsys.readouterr().err
