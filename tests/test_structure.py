"""The structure of the package: imports point one way, files and functions stay small, nothing loads JAX needlessly.

``python tests/test_structure.py`` prints the measures.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxtrain"
FILES = sorted(PACKAGE.rglob("*.py"))

FOLDERS = """
    _lazy _version errors period projections distributed utils core metrics data strategies engine callbacks loggers
    checkpoint pretrained training nn datasets cli commands __main__
""".split()
"""A file imports only from its own folder and from folders to the left. nn and datasets do not know each other's files
either way, but no rule needs that."""

LONGEST_FILE, LONGEST_FUNCTION, MOST_ATTRIBUTES, MOST_CODE = 300, 40, 12, 17_697
"""Lines of a file, statements of a function, attributes that a class sets outside dataclass fields, code lines."""

# Older code that is still longer. Remove an entry when it fits; never add one.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
LARGE_CLASSES: set[str] = set()


# ------------------------------------------------------------------------------------------------------- imports


def name_of(path: Path) -> str:
    """The dotted name of a file, below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name, below the package, of every import of it: those in functions and of types included."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((node.lineno, ".".join(name[1:])) for name in names if name[0] == "jaxtrain")
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = [*package[: len(package) + 1 - node.level], *module]
            elif module[:1] == ["jaxtrain"]:
                module = module[1:]
            else:
                continue
            yield from ((node.lineno, ".".join([*module, alias.name])) for alias in node.names)


def folder(name: str) -> str:
    return name.partition(".")[0]


def upward() -> list[str]:
    """Imports of a folder that comes later."""
    found = []
    for path in FILES:
        own = folder(name_of(path))
        if not own:
            continue  # the package itself re-exports names of all folders, lazily
        for line, target in imports(path):
            if folder(target) not in FOLDERS or FOLDERS.index(folder(target)) > FOLDERS.index(own):
                found.append(f"{path.relative_to(PACKAGE)}:{line} imports {target}")
    return found


def test_every_folder_has_its_place():
    assert {folder(name_of(path)) for path in FILES} - {""} == set(FOLDERS)


def test_imports_point_one_way():
    assert not upward()


def test_the_reader_of_imports_sees_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "loggers").mkdir()
    path = tmp_path / "loggers" / "x.py"
    path.write_text(
        "from ..core.run import Run\nfrom . import y\nimport jaxtrain.training.fit\nfrom jaxtrain import cli\n\n"
        "if TYPE_CHECKING:\n    from ..training.fit import Fit\ndef f():\n    from ..callbacks import Callback\n"
    )
    assert sorted(imports(path)) == [
        (1, "core.run.Run"), (2, "loggers.y"), (3, "training.fit"), (4, "cli"), (7, "training.fit.Fit"),
        (9, "callbacks.Callback"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------- sizes


def statements(function: ast.AST) -> int:
    """Statements of a function, without its docstring and those of functions within it."""
    count, waiting = -1, [function]
    while waiting:
        node = waiting.pop()
        count += isinstance(node, ast.stmt)
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node is not function
        waiting.extend([] if inner else ast.iter_child_nodes(node))
    return count - (ast.get_docstring(function) is not None)  # type: ignore[arg-type]


def attributes(kind: ast.ClassDef) -> set[str]:
    """Names that methods of a class assign to ``self``."""
    nodes = [node for node in ast.walk(kind) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "self"}


def definitions() -> Iterator[tuple[str, ast.AST]]:
    """``("folder/file.py:Class.method", node)`` for every function and class."""

    def below(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield f"{prefix}{child.name}", child
                yield from below(child, f"{prefix}{child.name}.")
            else:
                yield from below(child, prefix)

    for path in FILES:
        yield from below(ast.parse(path.read_text()), f"{path.relative_to(PACKAGE)}:")


def code_lines(path: Path) -> int:
    """Lines with code: no blank lines, comments or docstrings."""
    text = path.read_text()
    docs = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in blank]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - docs)


LENGTHS = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
FUNCTIONS = {name: statements(node) for name, node in definitions() if isinstance(node, ast.FunctionDef)}
CLASSES = {name: len(attributes(node)) for name, node in definitions() if isinstance(node, ast.ClassDef)}
CODE = sum(code_lines(path) for path in FILES)


def test_files_functions_and_classes_are_small():
    assert {name for name, size in LENGTHS.items() if size > LONGEST_FILE} == LONG_FILES
    assert {name for name, size in FUNCTIONS.items() if size > LONGEST_FUNCTION} == LONG_FUNCTIONS
    assert {name for name, size in CLASSES.items() if size > MOST_ATTRIBUTES} == LARGE_CLASSES


def test_the_package_does_not_grow_unnoticed():
    """A commit that raises the figure says what the lines are for."""
    assert CODE <= MOST_CODE


# --------------------------------------------------------------------------------------------------- what loads JAX


def without_jax(code: str, *argv: str) -> str:
    check = "import sys\nassert 'jax' not in sys.modules and 'numpy' not in sys.modules, 'heavy imports'\n"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_leaves_jax_alone():
    without_jax("import jaxtrain, jaxtrain.cli, jaxtrain.strategies\nfrom jaxtrain.strategies import registry")


RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def test_help_of_a_recipe_leaves_jax_alone():
    code = """
import os, runpy, sys
sys.argv = [sys.argv[1], "--help"]
sys.path[0] = os.path.dirname(sys.argv[0])  # as `python RECIPE` does, for imports of neighbouring files
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as leaving:
    assert leaving.code == 0, leaving.code
else:
    raise AssertionError("a recipe ends in sys.exit(...)")
"""
    assert len(RECIPES) >= 5
    for recipe in RECIPES:
        assert "--strategy" in without_jax(code, str(recipe)), recipe


def report() -> str:
    per_folder = Counter(str(Path(name).parent) for name in LENGTHS)
    longest = [max(table, key=lambda name: table[name]) for table in (LENGTHS, FUNCTIONS, CLASSES)]
    return "\n".join(
        [
            "files       " + ", ".join(f"{name} {count}" for name, count in sorted(per_folder.items())),
            f"code lines  {CODE:,} of {sum(LENGTHS.values()):,}",
            f"file        {longest[0]}: {LENGTHS[longest[0]]} lines",
            f"function    {longest[1]}: {FUNCTIONS[longest[1]]} statements",
            f"class       {longest[2]}: {CLASSES[longest[2]]} attributes",
            f"upward      {len(upward())} imports",
        ]
    )


if __name__ == "__main__":
    print(report())
