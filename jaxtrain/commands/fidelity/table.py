"""The table of `jaxtrain fidelity` in markdown, as JSON and as a figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...utils.files import write_json
from ..output import markdown, new_figure, save_figure


@dataclasses.dataclass
class Entry:
    """One row of the table: a strategy on a cell.

    ``cosine``, ``norm_ratio``, ``sign_agreement``: of the gradient and BPTT's, at initialisation and (``trained_...``)
    after training. ``time``: that of a step relative to BPTT's. ``trace_bytes``: memory of the traces. ``failed``: why
    there are no values; ``untimed``: why there is no time.
    """

    cell: str
    strategy: str
    cosine: float = math.nan
    norm_ratio: float = math.nan
    sign_agreement: float = math.nan
    trained_cosine: float = math.nan
    trained_norm_ratio: float = math.nan
    loss: float = math.nan
    time: float = math.nan
    trace_bytes: int = 0
    failed: str = ""
    untimed: str = ""


COLUMNS = ("cell", "strategy", "cosine", "norm ratio", "signs", "cosine, trained", "norm ratio, trained", "loss",
           "time / BPTT", "trace bytes")  # fmt: skip


def reasons(table: Sequence[Entry]) -> list[str]:
    """Why values are missing, each reason once. They are too long for a cell and are printed below the table."""
    return list(dict.fromkeys(reason for entry in table if (reason := entry.failed or entry.untimed)))


def notes(table: Sequence[Entry]) -> str:
    return "".join(f"\n({number}) {reason}\n" for number, reason in enumerate(reasons(table), 1))


def row(entry: Entry, reasons: Sequence[str]) -> list[str]:
    """The cells of a row. A missing value is replaced by the number of its reason."""
    if entry.failed:
        return [
            entry.cell,
            entry.strategy,
            f"cannot run ({reasons.index(entry.failed) + 1})",
            *[""] * (len(COLUMNS) - 3),
        ]
    numbers = (entry.cosine, entry.norm_ratio, entry.sign_agreement, entry.trained_cosine, entry.trained_norm_ratio,
               entry.loss)  # fmt: skip
    time = f"- ({reasons.index(entry.untimed) + 1})" if entry.untimed else f"{entry.time:.3f}"
    return [entry.cell, entry.strategy, *(f"{x:.3f}" for x in numbers), time, f"{entry.trace_bytes:,}"]


def write(table: Sequence[Entry], out: Path, command: str) -> None:
    """Write ``fidelity.md``, ``fidelity.json`` and ``fidelity.png`` to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [row(entry, reasons(table)) for entry in table]
    (out / "fidelity.md").write_text(f"`{command}`\n\n{markdown(COLUMNS, rows)}{notes(table)}")
    write_json(out / "fidelity.json", {"command": command, "table": [dataclasses.asdict(entry) for entry in table]})
    save_figure(_figure(table), out / "fidelity.png")


def _figure(table: Sequence[Entry]) -> Any:
    """Cosine to BPTT's gradient at initialisation and after training: a heat map of cells and strategies."""
    cells, strategies = list(dict.fromkeys(e.cell for e in table)), list(dict.fromkeys(e.strategy for e in table))
    entries = {(entry.cell, entry.strategy): entry for entry in table}
    figure = new_figure(2.6 + 0.85 * len(strategies), 1.6 + 1.1 * len(cells))
    for place, (title, name) in enumerate((("at initialisation", "cosine"), ("after training", "trained_cosine")), 1):
        axes = figure.add_subplot(2, 1, place)
        values = [[getattr(entries[cell, strategy], name) for strategy in strategies] for cell in cells]
        axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_yticks(range(len(cells)), cells)
        labels = [strategy.replace(",", ",\n") if place == 2 else "" for strategy in strategies]  # one field per line
        axes.set_xticks(range(len(strategies)), labels, rotation=40, ha="right")
        axes.set_title(f"cosine to BPTT's gradient, {title}", fontsize=9)
        for i, line in enumerate(values):
            for j, value in enumerate(line):
                text = "-" if math.isnan(value) else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value < 0.6 else "black")
    figure.subplots_adjust(hspace=0.4)
    return figure
