"""The table of `jaxtrain fidelity`: markdown, JSON and a figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import write_json


@dataclasses.dataclass
class Cell:
    """One entry of the table. Cosine and norm ratio at initialisation and after training; ``time``: a step's over
    BPTT's, measured side by side; ``trace_bytes``: what the rule carries. ``failed``: why there is nothing else;
    ``untimed``: why there is no time."""

    cell: str
    rule: str
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


COLUMNS = ("cell", "rule", "cosine", "norm ratio", "signs", "cosine, trained", "norm ratio, trained", "loss",
           "time / BPTT", "trace bytes")  # fmt: skip
HEAD = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]


def reasons(table: Sequence[Cell]) -> list[str]:
    """Why entries lack numbers, each reason once: they are too long for a cell, and stand below the table."""
    return list(dict.fromkeys(why for entry in table if (why := entry.failed or entry.untimed)))


def notes(table: Sequence[Cell]) -> str:
    return "".join(f"\n({number}) {reason}\n" for number, reason in enumerate(reasons(table), 1))


def line(entry: Cell, reasons: Sequence[str] = ()) -> str:
    """``reasons``: of the table, so that the row can say which is its own."""
    if entry.failed:
        return f"| {entry.cell} | {entry.rule} | cannot run ({reasons.index(entry.failed) + 1}) | | | | | | | |"
    numbers = (entry.cosine, entry.norm_ratio, entry.sign_agreement, entry.trained_cosine, entry.trained_norm_ratio,
               entry.loss)  # fmt: skip
    time = f"- ({reasons.index(entry.untimed) + 1})" if entry.untimed else f"{entry.time:.3f}"
    cells = [entry.cell, entry.rule, *(f"{x:.3f}" for x in numbers), time, f"{entry.trace_bytes:,}"]
    return f"| {' | '.join(cells)} |"


def markdown(table: Sequence[Cell]) -> str:
    why = reasons(table)
    return "\n".join([*HEAD, *(line(entry, why) for entry in table)]) + "\n" + notes(table)


def write(table: Sequence[Cell], out: Path, command: str) -> None:
    """``fidelity.md``, ``fidelity.json`` and ``fidelity.png`` under ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "fidelity.md").write_text(f"`{command}`\n\n{markdown(table)}")
    write_json(out / "fidelity.json", {"command": command, "table": [dataclasses.asdict(entry) for entry in table]})
    _figure(table).savefig(out / "fidelity.png", dpi=150, bbox_inches="tight")


def _figure(table: Sequence[Cell]) -> Any:
    """Cosine to BPTT at initialisation and after training: cells by rules."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, rules = list(dict.fromkeys(e.cell for e in table)), list(dict.fromkeys(e.rule for e in table))
    found = {(entry.cell, entry.rule): entry for entry in table}
    figure = Figure(figsize=(2.6 + 0.85 * len(rules), 1.6 + 1.1 * len(cells)), facecolor="white")
    FigureCanvasAgg(figure)
    for place, (title, name) in enumerate((("at initialisation", "cosine"), ("after training", "trained_cosine")), 1):
        axes = figure.add_subplot(2, 1, place)
        values = [[getattr(found[cell, rule], name) for rule in rules] for cell in cells]
        axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_yticks(range(len(cells)), cells)
        labels = [rule.replace(",", ",\n") if place == 2 else "" for rule in rules]  # one field a line
        axes.set_xticks(range(len(rules)), labels, rotation=40, ha="right")
        axes.set_title(f"cosine to BPTT's gradient, {title}", fontsize=9)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = "-" if math.isnan(value) else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value < 0.6 else "black")
    figure.subplots_adjust(hspace=0.4)
    return figure
