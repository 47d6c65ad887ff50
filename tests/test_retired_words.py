"""Words that the code and the pages no longer use, and the standard terms that replace them.

``python tests/test_retired_words.py`` prints ``file:line`` for every use.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ["jaxtrain", "recipes", "benchmarks", "docs", "README.md", "CONTRIBUTING.md"]

# Patterns are case-insensitive and match whole words, also those within an identifier: `lanes?` finds `n_lanes` and
# `LaneAxis`. A space stands for any whitespace, so that a phrase is found across two lines.
RETIRED = {
    "lanes?": "sequence (of a batch), or seed",
    "edges?|event edges?": "boundary",
    "pieces?": "segment (of a sequence), or batch (of a stream)",
    "nudg(?:e|es|ed|ing)": "perturbation, perturb",
    "retask(?:s|ed|ing)?": "set_task",
    "cadences?": "update schedule",
    "judged?": "checked, compared with the goal",
    "anew": "again, from scratch",
    "lasting": "long-term (states)",
    "strengthen(?:s|ed|ing)?": "with strong types",
    "rows? of the record": "log entry",
    "hangs? on": "depends on",
    "gone on|go(?:es|ing)? on from": "continue, resume",
    "(?:is|are|was|were|be) (?:said|told)": "is reported, receives",
    "by (?:itself|themselves)": "by default",
}

# As identifiers and arguments, with exactly this spelling.
RETIRED_NAMES = {
    r"\bon_row\b": "on_log",
    r"--pieces?\b": "--unroll",
    r"\bcarry=": "stateful=",
    r"\b_?(?:FINE|BAD|DEAD)\b": "ALL_FINITE, NONFINITE_INDEX, ZERO_GRADIENT",
}

# "by itself" may mean "alone". It means "by default" after a bracket, a semicolon, a comma or a value, and after "has".
BY_DEFAULT = re.compile(r"([;:(,`|]|\b(?:has|have|offers?))\s*$")

EXCEPTIONS = {
    ("CONTRIBUTING.md", "by itself"): "the style page quotes it",
    ("jaxtrain/loggers/event_files.py", "edges"): "of the bins of a histogram",
}
OLD_FILES = {"jaxtrain/checkpoint/migration.py", "jaxtrain/callbacks/foreign_names.py"}
"""Code that reads the names in checkpoints of earlier versions, and that answers to names of events elsewhere."""


def _whole_words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z-])(?:{pattern})(?![A-Za-z])".replace(" ", r"[\s#]+"), re.I)


WORDS = {_whole_words(pattern): instead for pattern, instead in RETIRED.items()}
NAMES = {re.compile(pattern): instead for pattern, instead in RETIRED_NAMES.items()}


def _split_identifiers(text: str) -> str:
    """``n_laneAxis`` as ``n lane Axis``; lines stay."""
    return re.sub(r"_|(?<=[a-z0-9])(?=[A-Z])", " ", text)


def _docstrings(text: str) -> list[tuple[int, str]]:
    """Line and text of every string that stands alone: docstrings, and the documentation of fields and constants."""
    strings = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    values = [(node.lineno, node.value.value) for node in strings if isinstance(node.value, ast.Constant)]
    return [(line, value) for line, value in values if isinstance(value, str)]


def uses(text: str, python: bool) -> list[tuple[int, str, str]]:
    """Line, word and replacement of every retired word in a text."""
    found = []
    split = _split_identifiers(text)
    for searched, patterns in ((split, WORDS), (text, NAMES)):
        for pattern, instead in patterns.items():
            for match in pattern.finditer(searched):
                word = " ".join(match[0].lower().replace("#", " ").split())
                if not word.startswith("by ") or BY_DEFAULT.search(searched[: match.start()]):
                    found.append((searched.count("\n", 0, match.start()) + 1, word, instead))
    if python:
        starts = [line for line, doc in _docstrings(text) if doc.lstrip().startswith("Of ")]
        found += [(line, "Of ...", "begin the docstring with the subject") for line in starts]
    return sorted(set(found))


def files() -> list[Path]:
    """The files that are searched."""
    folders = [path for place in PLACES for path in [ROOT / place, *(ROOT / place).rglob("*")]]
    return sorted(path for path in folders if path.suffix in (".py", ".pyi", ".md", ".ipynb", ".txt"))


def retired() -> list[str]:
    """``file:line: word -> replacement`` for every use outside the exceptions."""
    lines = []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name not in OLD_FILES:
            hits = uses(path.read_text(), path.suffix in (".py", ".pyi"))
            lines += [f"{name}:{line}: {word} -> {new}" for line, word, new in hits if (name, word) not in EXCEPTIONS]
    return lines


def test_no_file_uses_a_retired_word():
    assert not retired(), "\n" + "\n".join(retired())


def test_every_exception_is_needed():
    for name, word in EXCEPTIONS:
        text = (ROOT / name).read_text()
        assert word in {found for _, found, _ in uses(text, name.endswith(".py"))}, f"{name} does not use {word!r}"
    assert all((ROOT / name).exists() for name in OLD_FILES)


@pytest.mark.parametrize(
    "text",
    [
        "n_lanes = 3", "class LaneAxis: ...", "the next event\nedge", "# it goes\n# on from step 3", "a nudge",
        "carry=True", "def on_row(self): ...", "Fit(piece=3)", "directory; by itself a new one", "`0-4` by itself",
        "it is told once", 'def f():\n    """Of a run: its seed."""', "x = 1\n'''Of no use.'''", "self._judge()",
        "DEAD = 2",
    ],
)  # fmt: skip
def test_a_retired_word_is_found(text):
    assert uses(text, python=text.startswith(("def", "x")))


@pytest.mark.parametrize(
    "text",
    [
        "planes", "knowledge", "masterpiece", "long-lasting", "carry = init", "judgement", "a newer one",
        "life goes on", "each sequence by itself", "hanging", "edged", "the rows of an array", '"""Offline."""',
    ],
)  # fmt: skip
def test_other_english_is_not_found(text):
    assert not uses(text, python=text.startswith('"'))


if __name__ == "__main__":
    print(*retired(), sep="\n")
    print(dict(Counter("/".join(line.split("/")[: 2 if line.startswith("jaxtrain/") else 1]) for line in retired())))
