"""The notebooks: executed by this script, shown as pages of the site by this hook of mkdocs.

python docs/theme/notebooks.py                       # execute those that changed, or all if the package changed
python docs/theme/notebooks.py spiking --limit 600   # this one, with another limit in seconds
python docs/theme/notebooks.py --strip               # remove what Jupyter saved with the sources, before a commit

Notebooks are committed without outputs. Executed copies are in .cache/notebooks. The page of a
notebook without a current copy shows no outputs, and a note gives the reason.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
EXECUTED = ROOT / ".cache" / "notebooks"
LIMIT = 360
"""Seconds that a notebook may take."""


def executed(path: Path) -> Path:
    """Where the executed copy of a notebook is: its name depends on the notebook and on the package."""
    digest = hashlib.sha256(path.read_bytes())
    for source in sorted((ROOT / "jaxtrain").rglob("*.py")):
        digest.update(source.read_bytes())
    return EXECUTED / f"{path.stem}-{digest.hexdigest()[:16]}.ipynb"


def execute(path: Path, limit: float = LIMIT) -> Path:
    """Execute a notebook in an empty folder, and return the path of the executed copy.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised an error.
        nbclient.exceptions.CellTimeoutError: The notebook takes longer than ``limit`` seconds.
    """
    import nbclient
    import nbformat

    end = time.monotonic() + limit
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook, timeout_func=lambda cell: max(1, int(end - time.monotonic())), kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )  # fmt: skip
        # brainstate imports tqdm.auto, which warns where the widgets of Jupyter are not installed. JAX warns of the
        # fork before a command.
        ignored = "ignore:IProgress not found,ignore:os.fork() was called"
        client.execute(env=os.environ | {"PYTHONWARNINGS": ignored})
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for old in EXECUTED.glob(f"{path.stem}-*.ipynb"):
        old.unlink()
    nbformat.write(notebook, executed(path))
    return executed(path)


def strip(path: Path) -> None:
    """Remove outputs, counts and the metadata of editors from a notebook."""
    notebook = json.loads(path.read_text())
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by file name."""
    copy = executed(path)
    notebook = json.loads((copy if copy.exists() else path).read_text())
    parts, figures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += _shown(cell.get("outputs", ()), path.stem, figures)
    about = f"[Download this notebook]({path.name})."
    if not copy.exists():
        about += " It was not executed when this page was built, so its outputs are missing."
    parts.insert(1, about)
    return "\n\n".join(filter(None, parts)) + "\n", figures


def _shown(outputs: Iterable[dict[str, Any]], stem: str, figures: dict[str, bytes]) -> list[str]:
    """The outputs of a cell as Markdown: its figures, which are added to ``figures``, and a block of text before,
    between and after them."""
    parts, text, stream = [], "", None  # a progress bar is in many outputs
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{stem}-{len(figures) + 1}.png"
            figures[name] = base64.b64decode("".join(data["image/png"]))
            parts += [_block(text), f"![What the code above draws]({name})"]
            text = ""
            continue
        new = "".join(output.get("text", data.get("text/plain", "")))
        if text and text[-1] != "\n" and output.get("name") != stream:
            text += "\n"  # the end of a progress bar's line may come after the next text
        text += "" if new == "\n" and text[-1:] == "\n" else new
        stream = output.get("name")
    return [*parts, _block(text)]


def _block(text: str) -> str:
    """Printed text as Markdown, without colours and all but the end of a progress bar."""
    text = re.sub(r"\x1b\[[0-9;]*[mA]|[^\n]*\r(?!\n)", "", text).strip("\n")
    return f"```text\n{text}\n```" if text else ""


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every notebook (mkdocs calls this)."""
    from mkdocs.structure.files import File

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, figures = page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, png in figures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=png))
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks of docs/notebooks.")
    parser.add_argument("names", nargs="*", help="names without .ipynb; default: all that have no current copy")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a notebook may take")
    parser.add_argument("--strip", action="store_true", help="remove outputs from the sources; execute nothing")
    arguments = parser.parse_args()
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in arguments.names]
    for path in paths or sorted(NOTEBOOKS.glob("*.ipynb")):
        if arguments.strip:
            strip(path)
        elif paths or not executed(path).exists():
            start = time.monotonic()
            copy = execute(path, arguments.limit).relative_to(ROOT)
            print(f"{path.stem}: {time.monotonic() - start:.0f} s, {copy}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
