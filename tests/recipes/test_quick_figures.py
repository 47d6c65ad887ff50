"""docs/figures/quick.py on a small file: the figure of the digits is of every test image."""

import importlib.util
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.recipes.test_recipes import write_digits

FILE = Path(__file__).parents[2] / "docs/figures/quick.py"


@pytest.mark.full
def test_the_figure_of_the_digits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("quick", FILE)
    assert spec is not None and spec.loader is not None
    quick = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quick)
    write_digits(tmp_path / "digits.csv.gz")  # 60 images, of which 30 are for the test
    small = {
        "data": str(tmp_path / "digits.csv.gz"),
        "time": 5,
        "hidden": 6,
        "batch_size": 4,
        "max_steps": 2,
        "decay": "constant",
    }
    trained = quick.trained
    monkeypatch.setattr(
        quick, "trained", lambda name, **options: trained(name, validate_every=None, **options, **small)
    )
    figure = Figure()
    quick.digits(figure)
    _, _, scores, decisions = figure.axes
    assert [len(line.get_xdata()) for line in scores.lines] == [5] * 10, "time steps of every digit"
    assert sum(int(text.get_text()) for text in decisions.texts) == 30
