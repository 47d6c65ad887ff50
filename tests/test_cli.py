"""A recipe as a command line, with a Fit that only notes what it was asked."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jaxtrain
from jaxtrain import cli, tools
from jaxtrain.fidelity import load_recipe
from jaxtrain.run import Result


@dataclass(frozen=True)
class Config(cli.Options):
    """A task for tests."""

    batch_size: int = 4
    """sequences in a batch"""
    lr: float = 3e-3
    """learning rate"""
    clip: float | None = 1.0
    """largest norm"""
    max_steps: int = 100
    """steps"""
    seed: int = 0
    """seed"""


PRESETS = {"tutorial": {"lr": 1e-3, "clip": None, "drtrl": {"vjp": "single-step"}}}
ROOT = Path("checkpoints") / Path(__file__).stem
RECIPES = Path(__file__).parents[1] / "recipes"


class Recorder:
    """Stands for Fit: notes what it was asked, and begins a run directory as Fit does."""

    def __init__(self):
        self.result = Result("finished", 100, metrics={"train/loss": 0.51234567, "val/accuracy": 0.75, "lr": 1.0})
        self.error = None
        self.before = None

    def make(self, config):
        self.config = config
        return self, "module", "data"

    def run(self, module, data, *, resume, config, dry_run):
        self.asked = {"resume": resume, "config": config, "dry_run": dry_run}
        if self.before is not None:
            self.before()
        if not dry_run:
            Path(self.config.run_dir).mkdir(parents=True, exist_ok=True)
            (Path(self.config.run_dir) / "config.json").write_text(json.dumps({"schema": 1, "config": config}))
        return dataclasses.replace(self.result, run_dir=Path(self.config.run_dir))


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXTRAIN_TRACEBACK", raising=False)
    return Recorder()


@pytest.fixture
def call(fit, capsys):
    """`call("--lr", 1)` -> (exit code, stdout, stderr)"""

    def run(*argv):
        code = cli.main(Config, fit.make, presets=PRESETS, chance={"accuracy": 0.125}, argv=[str(a) for a in argv])
        return code, *capsys.readouterr()

    return run


# ---- where values come from ----


def test_defaults(fit, call):
    assert call()[0] == 0
    assert fit.config == Config(
        run_dir=str(ROOT / "0001-drtrl-seed0"),
        strategy_fields=dataclasses.asdict(jaxtrain.DRTRL()),
    )
    assert fit.asked["resume"] == "never" and fit.asked["dry_run"] is False
    assert fit.asked["config"] == fit.config.saved()
    assert not {"run_dir", "progress"} & fit.asked["config"].keys()


def test_later_ones_win(fit, call):
    Path("f.toml").write_text("lr = 0.5\nbatch_size = 8\n")
    call("--preset", "tutorial")
    assert (fit.config.lr, fit.config.clip, fit.config.batch_size) == (1e-3, None, 4)
    call("--preset", "tutorial", "--config", "f.toml")
    assert (fit.config.lr, fit.config.clip, fit.config.batch_size) == (0.5, None, 8)
    call("--preset=tutorial", "--config", "f.toml", "--batch_size", 16, "--clip", 2, "--no-progress")
    assert (fit.config.lr, fit.config.clip, fit.config.batch_size) == (0.5, 2.0, 16)
    assert fit.config.progress is False


def test_a_recipes_own_fields_of_a_strategy(fit, tmp_path, monkeypatch):
    """They give way to presets, files and flags, and hold where a Config is made in Python."""
    monkeypatch.chdir(tmp_path)

    @dataclass(frozen=True)
    class Own(Config):
        rule_defaults = {"drtrl": {"window": 7}, "tbptt": {"window": 3}}

    def call(*argv):
        cli.main(Own, fit.make, presets={"narrow": {"drtrl": {"window": 2}}}, argv=argv)
        return fit.config.make_strategy()

    assert Own().make_strategy() == call() == jaxtrain.DRTRL(window=7)
    assert Own(strategy="tbptt").make_strategy() == call("--strategy", "tbptt") == jaxtrain.TBPTT(window=3)
    assert Own(strategy="bptt").make_strategy() == call("--strategy", "bptt") == jaxtrain.BPTT()
    assert Own(strategy_fields={"window": 4}).make_strategy() == call("--strategy.window", "4")
    assert call("--preset", "narrow") == jaxtrain.DRTRL(window=2)
    assert call("--preset", "narrow", "--strategy.window", "5") == jaxtrain.DRTRL(window=5)
    assert "window" in fit.config.saved()["strategy_fields"], "a resume needs no defaults"
    for wrong, said in ({"drtl": {}}, "unknown strategy 'drtl'"), ({"bptt": {"windw": 1}}, "no field 'windw'"):
        monkeypatch.setattr(Own, "rule_defaults", wrong)
        with pytest.raises(cli.ConfigError, match=said):
            Own(strategy="bptt").make_strategy()


def test_strategy_fields(fit, call):
    call("--strategy.window", 3)
    assert fit.config.make_strategy() == jaxtrain.DRTRL(window=3)
    call("--strategy", "bptt", "--strategy.remat")
    assert fit.config.make_strategy() == jaxtrain.BPTT(remat=True)
    call("--preset", "tutorial")
    assert fit.config.strategy_fields["vjp"] == "single-step"
    call("--preset", "tutorial", "--strategy.vjp", "multi-step")
    assert fit.config.strategy_fields["vjp"] == "multi-step"
    assert call("--preset", "tutorial", "--strategy", "bptt")[0] == 0
    assert fit.config.make_strategy() == jaxtrain.BPTT()
    Path("f.toml").write_text('strategy = "drtrl"\n[strategy_fields]\nwindow = 4\n')
    call("--config", "f.toml")
    assert fit.config.strategy_fields["window"] == 4
    call("--config", "f.toml", "--strategy", "bptt")
    assert fit.config.make_strategy() == jaxtrain.BPTT()


@pytest.mark.parametrize("argv", [("--clip", "none"), ("--clip=none",), ("--clip", "None")])
def test_none_is_spelled_either_way(fit, call, argv):
    assert call(*argv)[0] == 0 and fit.config.clip is None
    assert call("--strategy", "pp_prop", "--strategy.rank", "none")[0] == 0
    assert fit.config.strategy_fields["rank"] is None
    assert call("--batch-size", "none")[0] == 2


def test_an_alias_stands_for_its_strategy(fit, call):
    Path("f.toml").write_text('strategy = "es_drtrl"\n[es_drtrl]\ndecay = 0.5\n')
    assert call("--config", "f.toml", "--run-dir", "r", "--strategy.window", 2)[0] == 0
    assert fit.config.make_strategy() == jaxtrain.PPProp(decay=0.5, window=2)
    assert fit.config.strategy == fit.asked["config"]["strategy"] == "pp_prop", "one name in all that is written"
    assert call("--run-dir", "r", "--resume", "last")[0] == 0
    assert fit.config.make_strategy() == jaxtrain.PPProp(decay=0.5, window=2)


def test_a_strategy_that_is_registered_later_is_a_choice(fit, call, monkeypatch):
    monkeypatch.setattr(cli.names, "REGISTRY", dict(cli.names.REGISTRY))
    assert call("--strategy", "late")[0] == 2

    @jaxtrain.register
    @dataclass(frozen=True)
    class Late(jaxtrain.DRTRL):
        """Comes late."""

        name = "late"
        delay: int = 3

    assert call("--strategy", "late", "--strategy.delay", 4)[0] == 0
    assert fit.config.make_strategy() == Late(delay=4)
    assert "--strategy late (Comes late.) takes" in " ".join(call("--help")[1].replace("│", " ").split())


def test_a_runs_own_config_json_is_a_config_file(fit, call):
    call("--lr", 0.25, "--strategy.window", 2)
    first = fit.config
    call("--config", f"{first.run_dir}/config.json")
    assert dataclasses.replace(fit.config, run_dir=first.run_dir) == first
    assert fit.config.run_dir != first.run_dir


def test_a_file_may_name_the_run_directory(fit, call):
    Path("f.toml").write_text('run-dir = "mine"\n')
    call("--config", "f.toml")
    assert fit.config.run_dir == "mine" and not ROOT.exists()


# ---- mistakes ----


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
        ("--config h.toml", "h.toml: drtrl: no field 'windw'; expected update_every, carry, batching, vjp, window, "),
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
            cli.check(self, counts=("batch_size",), periods=("every",))

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


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--lr x", "--lr x: expected a number"),
        ("--lr=x", "--lr x: expected a number"),
        ("--lr", "--lr: no value; expected a number"),
        ("--batch_size --lr 1", "--batch_size: no value; expected a whole number"),
        ("--max-steps 2.5", "--max-steps 2.5: expected a whole number"),
        ("--clip x", "--clip x: expected a number or none"),
        ("--resume", "--resume: no value; expected text"),
        ("--strategy.vjp both", "--strategy.vjp both: expected multi-step or single-step"),
        (
            "--strategy.vjp multi",
            "--strategy.vjp multi: expected multi-step or single-step; did you mean 'multi-step'?",
        ),
        ("--strategy.update-every often", "--strategy.update-every often: expected sequence or a whole number"),
        ("--strategy pp_prop --strategy.rank a", "--strategy.rank a: expected a whole number or none"),
        ("--strategy etrace --strategy.decay 0.1 x", "--strategy.decay x: expected a number or none"),
        ("--strategy etrace --strategy.kappa x --help", None),
    ],
)
def test_a_value_that_its_option_cannot_hold_is_one_line(fit, call, argv, message):
    code, out, err = call(*argv.split())
    if message is None:
        assert code == 0 and out and not err, "--help says what may stand there"
    else:
        assert (code, out, err) == (2, "", f"error: {message}\n")
    assert not ROOT.exists()


def test_values_that_options_hold(fit, call):
    pair = "--strategy etrace --strategy.trace-factorization io_factorized --strategy.decay 0.5 0 --lr=-1e-3 --clip inf"
    assert call(*pair.split())[0] == 0
    assert fit.config.strategy_fields["decay"] == (0.5, 0.0) and (fit.config.lr, fit.config.clip) == (-1e-3, math.inf)
    assert call("--strategy", "etrace", "--strategy.decay", "none", "--strategy.trace-filter", "none")[0] == 0
    assert fit.config.strategy_fields["decay"] is None and fit.config.strategy_fields["trace_filter"] == "none"


def test_fidelity_says_it_in_one_line_too(fit, capsys):
    recipe = str(RECIPES / "copy_curriculum.py")
    for argv, message in (("--hidden x", "--hidden x: expected a whole number"), ("--lags 1 y", "--lags y: expected")):
        assert tools.tool(["fidelity", recipe, *argv.split()]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith(f"error: {message}") and len(err.splitlines()) == 1


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    text = " ".join(re.sub("[│─╭╮╰╯]", " ", out).split())
    for option in ("--batch-size INT", "--strategy.window INT", "--resume", "--no-progress", "--dry-run", "--config"):
        assert option in text
    assert "sequences in a batch" in text and "--strategy bptt (backpropagation through time) takes" in text
    assert "--strategy drtrl (diagonal RTRL, the default) has the fields below." in text
    assert "--strategy.remat" in " ".join(call("--strategy", "bptt", "--help")[1].split())


def test_jaxtrains_own_errors_are_one_line(fit, call, monkeypatch):
    def mistake():
        jaxtrain.Period.of("soon")

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
            jaxtrain.Period.of("soon")
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
    fit.before = lambda: jaxtrain.Period.of(["x"])  # whatever it raises, it is told
    assert call()[0] == 1
    fit.before = lambda: cli.names.REGISTRY["drtrl"].check(3)  # pyright: ignore
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
    assert not any(ROOT.iterdir())

    def mine(config):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        cli.main(Config, mine, argv=[])


def test_a_recipe_that_makes_something_else(fit, capsys):
    assert cli.main(Config, lambda config: None, argv=[]) == 1  # pyright: ignore
    assert "make(config) returned NoneType; expected (fit, module, data)" in capsys.readouterr().err
    assert cli.main(dict, fit.make, argv=[]) == 1  # pyright: ignore
    assert "extends jaxtrain.cli.Options" in capsys.readouterr().err


# ---- run directories and resume ----


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
    assert "resuming r at last with its saved configuration, which replaces --preset" in out
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
    Path("r/checkpoints/50").mkdir(parents=True)
    call("--resume", "r/checkpoints/50")
    assert fit.asked["resume"] == "r/checkpoints/50" and fit.config.run_dir == "r" and fit.config.lr == 0.5
    call("--resume", "r/checkpoints/50", "--run-dir", "new", "--lr", 0.25)
    assert fit.asked["resume"] == "r/checkpoints/50" and fit.config.run_dir == "new" and fit.config.lr == 0.25
    assert call("--resume", "r/checkpoints/60")[0] == 2


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


# ---- what is said ----


def test_summary(fit, call):
    _, out, _ = call()
    lines = out.strip().splitlines()
    assert lines[0] == "finished at step 100, strategy drtrl"
    assert lines[1:3] == ["train   loss 0.5123", "val     accuracy 0.75 (chance 0.125)"]
    assert lines[3] == f"run     {ROOT}/0001-drtrl-seed0"
    assert lines[4] == "logs    tensorboard --logdir checkpoints"
    assert lines[5].endswith(f"test_cli.py --run-dir {ROOT}/0001-drtrl-seed0 --resume last --max-steps 200")
    fit.result.status, fit.result.reason = "interrupted", "Ctrl-C"
    _, out, _ = call("--run-dir", "a b")
    assert out.strip().startswith("interrupted at step 100 (Ctrl-C)")
    assert "tensorboard --logdir 'a b'" in out and out.strip().endswith("--run-dir 'a b' --resume last")


def test_summary_of_several_seeds(fit, call):
    lanes = {
        "train/loss": [1.0, 2.0],
        "val/loss": [0.5, 0.25],
        "val/accuracy": [0.75, math.nan],
        "val/z": [math.nan] * 2,
    }
    fit.result.summary = {"seeds": [3, 4], "frozen": [], "lanes": lanes}
    lines = call()[1].strip().splitlines()
    assert lines[3:5] == ["seeds   3, 4", "spread  loss 0.25 to 0.5, accuracy 0.75 to 0.75"]
    fit.result.summary = {"seeds": [3, 4], "frozen": [4], "lanes": {"train/loss": [1.0, 2.0]}}
    lines = call()[1].strip().splitlines()
    assert lines[3] == "seeds   3, 4; frozen since something was not finite: 4" and lines[4].startswith("run ")


def test_a_recipe_says_what_its_seeds_came_to(fit, capsys):
    recipe = load_recipe(RECIPES / "copy_gru.py")
    argv = "--seed 5 --seeds 2 --hidden 4 --time-lag 2 --digits 2 --batch-size 4 --max-steps 4 --log-every 2"
    argv += " --validate-every 4 --checkpoint-every 4 --no-progress --run-dir r"
    assert cli.main(recipe.Config, recipe.make, argv=argv.split()) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads(Path("r/result.json").read_text())
    loss, accuracy = (result["lanes"][f"val/{name}"] for name in ("loss", "accuracy"))
    assert len(set(loss)) == 2 and result["seeds"] == [5, 6]
    at = out.index("seeds   5, 6")
    (said,) = [line for line in out if line.startswith("val ")]
    assert f"loss {sum(loss) / 2:.4g}" in said, "above stand means"
    spread = dict(part.split(" ", 1) for part in out[at + 1].removeprefix("spread  ").split(", "))
    assert spread["loss"] == f"{min(loss):.4g} to {max(loss):.4g}"
    assert spread["accuracy"] == f"{min(accuracy):.4g} to {max(accuracy):.4g}"


def test_the_tool(fit, call, capsys):
    assert tools.tool(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxtrain {jaxtrain.__version__}\n"
    call("--lr", 0.5)
    assert tools.tool(["info", fit.config.run_dir]) == 0
    assert "lr=0.5" in capsys.readouterr().out
    assert tools.tool(["info", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: nowhere is no run directory: it has no config.json\n"
    assert tools.tool(["inof"]) == 2
    assert tools.tool([]) == 2


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
