"""Output that several commands share: markdown tables, figures, and the error of a child process."""

from __future__ import annotations

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
