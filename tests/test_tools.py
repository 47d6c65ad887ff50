"""The `jaxtrain` command."""

import jaxtrain
from jaxtrain.commands import main as tools
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


def test_fidelity_says_it_in_one_line_too(fit, capsys):
    recipe = str(RECIPES / "copy_curriculum.py")
    for argv, message in (
        ("--hidden x", "--hidden = 'x' is text; expected int"),
        ("--lags 1 y", "--lags[1] = 'y' is text; expected int"),
    ):
        assert tools.tool(["fidelity", recipe, *argv.split()]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith(f"error: {message}") and len(err.splitlines()) == 1
