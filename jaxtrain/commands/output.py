"""Output that several commands share: markdown tables, figures, and the error of a child process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(markdown_row(row) + "\n" for row in (head, ["---"] * len(head), *rows))


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure that needs no display. Width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150, bbox_inches="tight")


def last_words(output: str) -> str:
    """Why a process failed: its last line of output, or the error and its notes that end a traceback."""
    lines = output.strip().splitlines()
    if not lines:
        return "it printed nothing"
    indented = [number for number, line in enumerate(lines) if line.startswith("  ")]
    first = len(lines) - 1 if lines[-1].startswith("error: ") or not indented else indented[-1] + 1
    return "; ".join(line.strip() for line in lines[first:] or lines[-1:])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def age(seconds: float) -> str:
    """A duration in its largest unit: ``12 s``, ``3 min``, ``5 h``, ``2 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """A curve in one line of text: block characters, or ASCII if stdout cannot encode them.

    Longer curves are means over equal shares of the values. A share without a finite value is blank.
    """
    levels = "▁▂▃▄▅▆▇█"
    try:
        levels.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        levels = "_.-=+*%#"
    count = min(width, len(values))
    shares = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    finite = [[value for value in share if value is not None] for share in shares]
    means = [sum(share) / len(share) if share else None for share in finite]
    known = [mean for mean in means if mean is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    return "".join(" " if mean is None else levels[round((mean - low) / span * (len(levels) - 1))] for mean in means)
