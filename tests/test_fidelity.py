"""``jaxtrain fidelity``: a table, its JSON and its figure."""

import json
from pathlib import Path

import pytest

from jaxtrain import fidelity
from jaxtrain.tools import tool

RECIPE = str(Path(__file__).parents[1] / "recipes/copy_gru.py")
TINY = ["--hidden", "6", "--time-lag", "3", "--digits", "2", "--batch-size", "4"]


def test_a_table_of_cells_by_rules(tmp_path, capsys):
    out = tmp_path / "out"
    rules, sizes = ["--rules", "drtrl,three_factor"], ["--cells", "lru", "--steps", "4", "--out", str(out)]
    assert tool(["fidelity", RECIPE, *rules, *sizes, *TINY]) == 0
    drtrl, reward = json.loads((out / "fidelity.json").read_text())["table"]
    assert drtrl["cell"] == "lru" and drtrl["rule"] == "drtrl" and not drtrl["failed"]
    assert drtrl["cosine"] > 0.9999 and drtrl["trained_cosine"] > 0.9999, "D-RTRL is exact on an LRU"
    assert abs(drtrl["norm_ratio"] - 1) < 1e-3 and drtrl["trace_bytes"] > 0 and drtrl["time"] > 0 and drtrl["loss"] > 0
    assert "reward" in reward["failed"] and reward["cosine"] is None, "a rule that cannot run is a row, not a crash"
    text = (out / "fidelity.md").read_text()
    assert "jaxtrain fidelity" in text and text.count("| lru |") == 2
    assert (out / "fidelity.png").stat().st_size > 5000
    assert "| lru | drtrl | 1.000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv,what,code",
    [
        (["nowhere.py"], "there is no recipe nowhere.py", 1),
        ([RECIPE, "--rules", "drtl"], "unknown strategy 'drtl'", 2),
        ([RECIPE, "--steps", "0"], "expected names, and a positive number", 2),
        ([__file__], "is no recipe: it defines no Config and no make", 2),
    ],
)
def test_mistakes_are_one_line(argv, what, code, capsys):
    assert tool(["fidelity", *argv]) == code
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1


def test_a_recipe_without_cells(tmp_path):
    class Config:
        pass

    with pytest.raises(ValueError, match="no option --cell"):
        fidelity.measure(None, Config(), ["drtrl"], ["gru"], 1)
