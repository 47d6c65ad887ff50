"""The `jaxtrain` command."""

import jaxtrain
from jaxtrain.commands import main as tools
from tests.commands import RECIPES


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


def test_fidelity_says_it_in_one_line_too(fit, capsys):
    recipe = str(RECIPES / "copy_curriculum.py")
    for argv, message in (("--hidden x", "--hidden x: expected a whole number"), ("--lags 1 y", "--lags y: expected")):
        assert tools.tool(["fidelity", recipe, *argv.split()]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith(f"error: {message}") and len(err.splitlines()) == 1
