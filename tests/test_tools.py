"""The `jaxtrain` command."""

import subprocess
import sys

import jaxtrain
from jaxtrain.commands import main as tools
from jaxtrain.strategies import registry
from tests.commands import RECIPES


def test_the_tool(fit, call, capsys):
    assert tools.tool(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxtrain {jaxtrain.__version__}\n"
    call("--lr", 0.5)
    assert tools.tool(["info", fit.config.run_dir]) == 0
    facts = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lr", "0.5"] in facts
    assert tools.tool(["info", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: nowhere is not a run directory: it has no config.json\n"
    assert tools.tool(["inof"]) == 2
    assert tools.tool([]) == 2


def test_the_package_is_a_program():
    done = subprocess.run([sys.executable, "-m", "jaxtrain", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"jaxtrain {jaxtrain.__version__}\n")


def test_fidelity_and_compare_know_the_rules_of_a_recipe(tmp_path, monkeypatch, capsys):
    """The recipe is loaded first: the next error is about the field, and no longer about the name."""
    recipe = tmp_path / "with_a_rule.py"
    recipe.write_text(
        "import jaxtrain\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@jaxtrain.register\n@dataclass(frozen=True)\nclass Mine(jaxtrain.BPTT):\n"
        "    name: ClassVar[str] = 'of_a_recipe'\n"
        "@dataclass(frozen=True)\nclass Config(jaxtrain.cli.TrainingOptions):\n    pass\ndef make(config): ...\n"
    )
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    for command in ("fidelity", "compare"):
        argv = [command, str(recipe), "--strategies", "of_a_recipe:windw=3", "--out", str(tmp_path / "out")]
        assert tools.tool([*argv, *(["--steps", "1"] if command == "compare" else [])]) == 2
        assert "--strategies of_a_recipe: no field 'windw'" in capsys.readouterr().err


def test_fidelity_says_it_in_one_line_too(fit, capsys):
    recipe = str(RECIPES / "copy_curriculum.py")
    for argv, message in (
        ("--hidden x", "--hidden = 'x' is text; expected int"),
        ("--lags 1 y", "--lags[1] = 'y' is text; expected int"),
    ):
        assert tools.tool(["fidelity", recipe, *argv.split()]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith(f"error: {message}") and len(err.splitlines()) == 1
