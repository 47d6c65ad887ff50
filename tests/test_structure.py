"""The house stands: imports point one way, files stay small, and nothing waits for JAX that need not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxtrain"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file imports only from files and packages to the left of its own; within a package, from any.
LAYERS = """
    alone period metrics processes console compilation_cache files digests agreement quiet orbax config state batches
    sources datamodule data passes module datasets cells nn rates optimizer strategies preflight lanes devices chunks
    program callback record signals run nonfinite folders checkpoint schedule resume loading snapshots evaluating
    callbacks loggers live loop outcome fit fidelity trial compare comparison words summary cli options verify tools
""".split()


def layer(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, first name below the package) of every import of the package, also inside functions.

    What only type checkers see does not count.
    """
    package = path.relative_to(PACKAGE).parent.parts
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found.extend((node.lineno, name[1] if name[1:] else "") for name in names if name[0] == "jaxtrain")
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = [*package[: len(package) + 1 - node.level], *module]
            elif module[:1] == ["jaxtrain"]:
                module = module[1:]
            else:
                return
            # `from . import x` names files of the package, or what its __init__ holds.
            targets = [module[0]] if module else [alias.name for alias in node.names]
            found.extend((node.lineno, target) for target in targets)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_every_file_has_a_layer():
    homes = {layer(path.relative_to(PACKAGE).parts) for path in FILES} - {"__init__"}
    assert homes <= set(LAYERS), f"no layer for {sorted(homes - set(LAYERS))}: add it to LAYERS where it belongs"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = layer(path.relative_to(PACKAGE).parts)
    if own == "__init__":
        return  # the package itself re-exports all, lazily
    wrong = []
    for line, target in imports(path):
        if target == "__version__":
            continue
        if target != own and (target not in LAYERS or LAYERS.index(target) > LAYERS.index(own)):
            wrong.append(f"line {line} imports {target or 'jaxtrain'}")
    assert not wrong


def test_only_the_command_line_imports_fit():
    users = [path for path in FILES for _, target in imports(path) if target == "fit"]
    assert {layer(path.relative_to(PACKAGE).parts) for path in users} <= {"cli", "__init__", "fit"}


def test_the_reader_of_imports_sees_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "loggers").mkdir()
    path = tmp_path / "loggers" / "x.py"
    path.write_text(
        "from ..run import Run\nfrom . import y\nimport jaxtrain.training.fit\nfrom jaxtrain import cli\nimport os\n"
        "if TYPE_CHECKING:\n    from ..fit import Fit\ndef f():\n    from ..callback import Callback\n"
    )
    assert imports(path) == [(1, "run"), (2, "loggers"), (3, "fit"), (4, "cli"), (9, "callback")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 400, "one idea a file: split it"


def without_jax(code: str, *argv: str) -> str:
    check = "import sys\nassert 'jax' not in sys.modules and 'numpy' not in sys.modules, 'heavy imports'\n"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_leaves_jax_alone():
    without_jax("import jaxtrain, jaxtrain.cli.recipe, jaxtrain.strategies\nfrom jaxtrain.strategies import registry")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_help_of_a_recipe_leaves_jax_alone(recipe):
    code = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as leaving:
    assert leaving.code == 0, leaving.code
else:
    raise AssertionError("a recipe ends in sys.exit(...)")
"""
    assert "--strategy" in without_jax(code, str(recipe))
