"""Insert the last results of the benchmarks, benchmarks/results/*.json, into docs/performance.md.

python benchmarks/page.py

The text between `<!-- NAME -->` and `<!-- end -->` is replaced by the result NAME.json, or by the command that measures
it if there is no result. The missed goals of all results are listed after `<!-- missed -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

PAGE = common.ROOT / "docs" / "performance.md"
NAMES = ("step_time", "rules", "online", "live", "memory", "credit", "start", "overhead", "feed", "seeds",
         "devices", "allocator", "peers")  # fmt: skip
MISSED = "missed"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.S)


def filled(text: str, results: Mapping[str, Any], names: Sequence[str] = NAMES) -> str:
    """Insert results into a page.

    Args:
        text: The page, with one place for each of ``names`` and one for the missed goals.
        results: Contents of the result files, by name.
        names: Names of all benchmarks.

    Raises:
        ValueError: The page has other places, or there is a result of another benchmark.
    """
    places, wanted = sorted(match[1] for match in BLOCK.findall(text)), sorted([*names, MISSED])
    if places != wanted:
        raise ValueError(f"the page has places for {places}; expected {wanted}")
    if unknown := sorted(set(results) - set(names)):
        raise ValueError(f"there are results of {unknown}; expected only results of {sorted(names)}")
    blocks = {name: block(results[name]) if name in results else unmeasured(name) for name in names}
    blocks[MISSED] = missed({name: results[name] for name in names if name in results})
    return BLOCK.sub(lambda match: match[1] + blocks[match[2]] + match[3], text)


def block(result: dict[str, Any]) -> str:
    lines = []
    for run in (*result.get("earlier", ()), result):
        lines += [f"`{run['command']}`", "", f"({run['machine']})", ""]
    for title, section in result["sections"].items():
        lines += [f"**{title}**", "", *section, ""]
    return "\n".join(lines)


def unmeasured(name: str) -> str:
    return f"Not measured yet: run `make bench BENCHMARKS={name}`.\n"


def missed(results: Mapping[str, Any]) -> str:
    """A list of all missed goals."""
    lines = [
        f"- `{name}`: {goal['what']}: {goal['measured']} (goal: {goal['goal']})"
        for name, result in results.items()
        for goal in result["goals"]
        if not goal["met"]
    ]
    return "\n".join(lines or ["All goals were met."]) + "\n"


def results(folder: Path = common.RESULTS) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(filled(PAGE.read_text(), results()))


if __name__ == "__main__":
    main()
