"""The README's program runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_example_runs_and_resumes(tmp_path, monkeypatch, capsys, caplog):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    program = blocks[0].replace("max_epochs=5", "max_epochs=2")
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    assert "(40, 16, 1)" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "checkpoints/integrator/checkpoints").iterdir())
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    assert "already finished at step 200" in caplog.text


@pytest.mark.parametrize("page", ["README.md", "docs/design.md", "docs/callbacks.md", "checkpoints/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
