"""The notebooks of docs/notebooks: what is committed, how a page is made, and, as long tests, that they run."""

import ast
import base64
import importlib.util
import json
import os
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_api import NAMESPACES

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FIELDS = {"markdown": {"cell_type", "id", "metadata", "source"}}
FIELDS["code"] = FIELDS["markdown"] | {"execution_count", "outputs"}


def script():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "theme" / "notebooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def program(source: str) -> str:
    """The Python of a code cell: of a file that it writes, or without the lines for the shell."""
    return re.sub(r"\A%%writefile .*|^!.*", "", source, flags=re.M)


def test_there_are_five():
    assert len(PATHS) == 5


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_only_sources_are_committed(path):
    text = path.read_text()
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "as Jupyter writes it"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    for cell in notebook["cells"]:
        assert {*cell} == FIELDS[cell["cell_type"]] and cell["metadata"] == {}
        assert "outputs" not in cell or (cell["outputs"] == [] and cell["execution_count"] is None)
    assert not re.search(r"(?<![\w.:/<>)\]])(?:/|~/|[A-Z]:\\)\w+", "\n".join(cells(path, "code"))), "an absolute path"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_code_compiles_and_uses_public_names(path):
    public = {name: import_module(f"jaxtrain.{name}".rstrip(".")) for name in NAMESPACES}
    for source in cells(path, "code"):
        for node in ast.walk(compile(program(source), path.name, "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxtrain":
                namespace = (node.module or "").removeprefix("jaxtrain").removeprefix(".")
                assert {alias.name for alias in node.names} <= {*public[namespace].__all__}
            elif isinstance(node, ast.Import):
                assert all(alias.name == "jaxtrain" for alias in node.names if alias.name.startswith("jaxtrain"))
            elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("jaxtrain."):
                namespace, _, own = name.removeprefix("jaxtrain.").rpartition(".")
                if namespace in public:  # not an attribute of a class
                    assert own in public[namespace].__all__, name


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_begins_with_a_title_and_its_links_lead_somewhere(path):
    texts = cells(path, "markdown")
    assert re.match(r"# \S", texts[0])
    for target in re.findall(r"\]\((?!https:)([^)#]+)", "\n".join(texts)):
        page = path.parent / target
        assert page.exists() or page.with_suffix(".ipynb") in PATHS, target


def test_a_page_has_code_texts_and_figures(tmp_path, monkeypatch):
    notebooks = script()
    monkeypatch.setattr(notebooks, "EXECUTED", tmp_path)
    source = tmp_path / "one.ipynb"
    code = {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": []}
    source.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# One"]}, code]}))
    text, figures = notebooks.page(source)
    assert text.startswith("# One\n\n[Download this notebook](one.ipynb). It was not executed") and not figures
    assert text.endswith("```python\nx = 1\nx\n```\n")

    png = b"\x89PNG of a figure"
    code["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["\r40 %"]},
        {"output_type": "stream", "name": "stderr", "text": ["\r50 %", "\r100 %"]},
        {"output_type": "stream", "name": "stdout", "text": ["trained\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["done\n"]},
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"},
        },
        {"output_type": "execute_result", "data": {"text/plain": ["1"]}},
    ]
    notebooks.executed(source).write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# One"]}, code]}))
    text, figures = notebooks.page(source)
    assert figures == {"one-1.png": png} and "not executed" not in text
    assert text.split("```python")[1] == (
        "\nx = 1\nx\n```\n\n```text\nred\n100 %\ntrained\ndone\n```\n\n"
        "![What the code above draws](one-1.png)\n\n```text\n1\n```\n"
    )


def test_strip_restores_the_source(tmp_path):
    notebook = json.loads(PATHS[0].read_text())
    notebook["metadata"]["language_info"]["version"] = "3.13"
    for cell in notebook["cells"]:
        cell["metadata"] = {"collapsed": True}
        if cell["cell_type"] == "code":
            cell.update(execution_count=3, outputs=[{"output_type": "stream", "name": "stdout", "text": ["1"]}])
    (tmp_path / "used.ipynb").write_text(json.dumps(notebook))
    script().strip(tmp_path / "used.ipynb")
    assert (tmp_path / "used.ipynb").read_text() == PATHS[0].read_text()


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    missing = [name for name in ("nbclient", "ipykernel") if not importlib.util.find_spec(name)]
    if missing:
        skips = os.environ.get("SKIP_SYSTEM") == "1"
        (pytest.skip if skips else pytest.fail)(f"{', '.join(missing)} missing: pip install '.[notebooks]'")
    notebooks = script()
    monkeypatch.setattr(notebooks, "EXECUTED", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    notebooks.execute(path)
    text, figures = notebooks.page(path)
    assert figures and all(png.startswith(b"\x89PNG") for png in figures.values())
    assert "not executed" not in text and "Traceback" not in text
