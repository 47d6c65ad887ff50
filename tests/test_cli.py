"""A recipe as a command line: where its values come from, and what --help says."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jaxtrain
from jaxtrain import cli
from jaxtrain.errors import ConfigError
from jaxtrain.strategies import registry
from jaxtrain.utils.fields import options, summary
from tests.commands import ROOT, Config


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
        with pytest.raises(ConfigError, match=said):
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


def test_an_alias_stands_for_its_strategy(fit, call):
    Path("f.toml").write_text('strategy = "es_drtrl"\n[es_drtrl]\ndecay = 0.5\n')
    assert call("--config", "f.toml", "--run-dir", "r", "--strategy.window", 2)[0] == 0
    assert fit.config.make_strategy() == jaxtrain.strategies.PPProp(decay=0.5, window=2)
    assert fit.config.strategy == fit.asked["config"]["strategy"] == "pp_prop", "one name in all that is written"
    assert call("--run-dir", "r", "--resume", "last")[0] == 0
    assert fit.config.make_strategy() == jaxtrain.strategies.PPProp(decay=0.5, window=2)


def test_a_strategy_that_is_registered_later_is_a_choice(fit, call, monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    assert call("--strategy", "late")[0] == 2

    @jaxtrain.register
    @dataclass(frozen=True)
    class Late(jaxtrain.DRTRL):
        """Comes late."""

        name = "late"
        delay: int = 3

    assert call("--strategy", "late", "--strategy.delay", 4)[0] == 0
    assert fit.config.make_strategy() == Late(delay=4)
    assert "late Comes late" in " ".join(call("--help")[1].split())
    assert "--strategy.delay INT" in call("--strategy", "late", "--help")[1]


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


def sections(text):
    """The lines of each section of a help text, by title; what precedes them is under ""."""
    found, title = {"": []}, ""
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            title = line[:-1]
            found[title] = []
        elif line.strip():
            found[title].append(line)
    return found


def flags(lines):
    return [line.split()[0].rstrip(",") for line in lines if line.startswith("  --")]


@dataclass(frozen=True)
class Full(cli.TrainingOptions, cli.NetworkOptions):
    """A task with every option."""

    time_lag: int = 20
    """time steps of the blank, 100 % of them"""
    lr: float = 0.5
    """rate"""
    plan: list[int] | None = None
    """stages"""


@pytest.mark.parametrize("width", [80, 120])
def test_help_shows_what_matters_first_and_groups_the_rest(fit, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    presets = {"short": {"lr": 0.25, "drtrl": {"window": 3}}}
    assert cli.main(Full, fit.make, presets=presets, argv=["--preset", "short", "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width and "\x1b" not in text
    found = sections(text)
    assert list(found) == [
        "", "most used", "this recipe", "strategies (--strategy NAME --help shows what one does, and its fields)",
        "presets", "network", "training", "logging and checkpoints", "several processes",
    ]  # fmt: skip
    first = flags(found["most used"])
    assert first[:5] == ["--strategy", "--preset", "--max-steps", "--batch-size", "--lr"] and len(first) <= 14
    assert {"--hidden", "--seed", "--seeds", "--devices", "--run-dir", "--resume", "--dry-run"} <= {*first}
    assert flags(found["this recipe"]) == ["--time-lag", "--plan"]
    assert {"--layers", "--r-min"} <= {*flags(found["network"])} and "--clip" in flags(found["training"])
    assert {"--log-every", "--progress"} <= {*flags(found["logging and checkpoints"])}
    assert len(flags(found["several processes"])) == 4
    every = [flag for lines in found.values() for flag in flags(lines)]
    names = {f"--{field.name}".replace("_", "-") for field in dataclasses.fields(Full)} - {"--strategy-fields"}
    several = {"--processes", "--process", "--coordinator", "--process-timeout"}
    assert len({*every}) == len(every)
    assert {*every} == names | several | {"--preset", "--resume", "--config", "--dry-run"}
    plain = " ".join(text.split())
    assert "--time-lag INT time steps of the blank, 100 % of them (default: 20)" in plain
    assert "--lr FLOAT rate (default: 0.25)" in plain and "--plan INT ...|none stages (default: none)" in plain
    for name in registry.REGISTRY:
        assert f" {name} {summary(registry.lookup(name))} " in plain
    assert "short lr=0.25, drtrl.window=3" in plain


@pytest.mark.parametrize("name", registry.REGISTRY)
def test_help_of_a_strategy_shows_its_fields(call, name):
    code, out, _ = call("--strategy", name, "--help")
    found = sections(out)
    kind = options(registry.lookup(name))
    expected = [f"--strategy.{field}".replace("_", "-") for field in kind]
    assert code == 0 and flags(found[f"fields of {name}"]) == expected
    text = " ".join(out.split())
    assert summary(registry.lookup(name)) in text and "Args:" not in text and "--batch-size" not in text
    for field in kind.values():
        assert field.help in text


def test_help(call):
    code, out, _ = call("--help")
    text = " ".join(out.split())
    assert code == 0 and out.startswith("usage: python ") and "A recipe for tests of the command line" in text
    for option in ("--batch-size INT", "--resume never|last|best", "--no-progress", "--dry-run", "--config PATH|none"):
        assert option in text
    assert "sequences in a batch (default: 4)" in text
    assert "drtrl Real-time recurrent learning with a diagonal Jacobian (default)" in text
    assert "numbered directory under checkpoints/ (default: none)" in text, "one default"
    assert "tutorial lr=0.001, clip=None, drtrl.vjp=single-step" in text
    strategy = " ".join(call("--strategy", "drtrl", "--preset", "tutorial", "--help")[1].split())
    assert "single-step) (default: single-step)" in strategy, "the value that the preset sets"
    assert "--strategy.remat" in " ".join(call("--strategy", "bptt", "--help")[1].split())


def test_flags_that_help_shows_are_flags(fit, call):
    """Also those that turn a boolean off."""
    assert call("--strategy.stateful", "--no-progress")[0] == 0 and fit.config.make_strategy().stateful
    assert call("--no-strategy.stateful", "--progress")[0] == 0 and not fit.config.make_strategy().stateful


def test_a_terminal_without_colour(tmp_path):
    """NO_COLOR holds on a terminal, and nothing but a terminal gets colours."""
    main, other = os.openpty()
    recipe = Path(jaxtrain.__file__).parents[1] / "recipes" / "copy_gru.py"
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "80", "PYTHONPATH": str(recipe.parents[1])}
    env.pop("FORCE_COLOR", None)
    process = subprocess.Popen([sys.executable, recipe, "--help"], stdout=other, stderr=other, env=env)
    os.close(other)
    text = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(main, 4096):
            text += part
    os.close(main)
    assert process.wait() == 0 and b"most used:" in text and b"\x1b" not in text
    assert max(map(len, text.decode().splitlines())) <= 80
