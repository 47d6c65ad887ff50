"""The examples of docs/pretrained.md and docs/search.md run as they stand."""

import pytest

from tests.small import leaves
from tests.test_readme import blocks, execute


@pytest.mark.full
def test_the_page_on_pretrained_parameters(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors", reason="the extra dev is not installed")
    monkeypatch.chdir(tmp_path)
    page = None
    for block in blocks("docs/pretrained.md"):
        page = execute(block, "docs/pretrained.md", page)
    report, module = page["report"], page["module"]
    assert len(report.loaded) == 6 and set(report.skipped.values()) == {"not selected"}
    assert sorted(report.as_built) == ["head.weight.bias", "head.weight.weight"]
    assert page["second_epoch"].step == 40
    first = leaves(page["jaxtrain"].load("checkpoints/sums", page["Sums"]()))
    for name, value in leaves(module).items():
        assert name.startswith("head") or (value == first[name]).all(), "frozen"
    assert "loaded 6: trunk." in capsys.readouterr().out
