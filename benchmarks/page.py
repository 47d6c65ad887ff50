"""Put what the benchmarks measured last, benchmarks/results/*.json, into docs/performance.md.

python benchmarks/page.py

A result NAME.json stands between `<!-- NAME -->` and `<!-- end -->`; what stood there is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import common

PAGE = common.ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.S)


def filled(text: str, results: dict[str, Any]) -> str:
    """A page with every result in its place; raises ValueError where one has none, or a place has no result."""
    places = [found[1] for found in BLOCK.findall(text)]
    if sorted(places) != sorted(results):
        raise ValueError(f"the page has places for {sorted(places)}, and there are results of {sorted(results)}")
    return BLOCK.sub(lambda found: found[1] + block(results[found[2]]) + found[3], text)


def block(result: dict[str, Any]) -> str:
    lines = [f"`{result['command']}`", "", f"({result['machine']})", ""]
    for title, section in result["sections"].items():
        lines += [f"**{title}**", "", *section, ""]
    return "\n".join(lines)


def results(folder: Path = common.RESULTS) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(filled(PAGE.read_text(), results()))


if __name__ == "__main__":
    main()
