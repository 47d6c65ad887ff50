"""Put what the benchmarks measured last, benchmarks/results/*.json, into docs/performance.md.

python benchmarks/page.py

A result NAME.json stands between `<!-- NAME -->` and `<!-- end -->`, and where there is none, how to get it; every goal
that was missed is listed after `<!-- missed -->`. What stood there is replaced.
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
NAMES = ("step_time", "online", "memory", "credit", "start", "overhead", "seeds", "devices", "peers")
MISSED = "missed"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.S)


def filled(text: str, results: Mapping[str, Any], names: Sequence[str] = NAMES) -> str:
    """A page with every result in its place. Raises ValueError where the page has other places than one for each of
    ``names`` and one for what was missed, or where there is a result of something else."""
    places, wanted = [found[1] for found in BLOCK.findall(text)], [*names, MISSED]
    if sorted(places) != sorted(wanted):
        raise ValueError(f"the page has places for {sorted(places)}, expected {sorted(wanted)}")
    if unknown := sorted(set(results) - set(names)):
        raise ValueError(f"there are results of {unknown}, expected some of {sorted(names)}")
    blocks = {name: block(results[name]) if name in results else unmeasured(name) for name in names}
    blocks[MISSED] = missed({name: results[name] for name in names if name in results})
    return BLOCK.sub(lambda found: found[1] + blocks[found[2]] + found[3], text)


def block(result: dict[str, Any]) -> str:
    lines = [f"`{result['command']}`", "", f"({result['machine']})", ""]
    for title, section in result["sections"].items():
        lines += [f"**{title}**", "", *section, ""]
    return "\n".join(lines)


def unmeasured(name: str) -> str:
    return f"Not measured yet: run `make bench BENCHMARKS={name}`.\n"


def missed(results: Mapping[str, Any]) -> str:
    """A list of every goal that was missed."""
    lines = [
        f"- `{name}`: {goal['what']}, {goal['measured']} where {goal['goal']} was hoped for"
        for name, result in results.items()
        for goal in result["goals"]
        if not goal["met"]
    ]
    return "\n".join(lines or ["Nothing that was judged."]) + "\n"


def results(folder: Path = common.RESULTS) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(filled(PAGE.read_text(), results()))


if __name__ == "__main__":
    main()
