"""Figures of activity and of eigenvalues. matplotlib is imported only where a figure is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import saiunit as u

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNITS = 200
"""Largest number of units in a panel. More would be too small to see."""
INK, LINE = "#1a1a1a", "#c1121f"


def activity(values: dict[str, Any], warmup: int, step: int) -> Figure:
    """A panel of colours for each array ``(T, n)``."""
    figure, panels = _panels(values, warmup, f"activity at step {step}")
    for ax, shown in panels:
        image = ax.imshow(shown.T, aspect="auto", origin="lower", interpolation="nearest")
        figure.colorbar(image, ax=ax)
    return figure


def raster(values: dict[str, Any], warmup: int, step: int) -> Figure:
    """A panel of dots for each array ``(T, n)``, where it is not 0. The title has the mean of each array."""
    figure, panels = _panels(values, warmup, f"spikes at step {step}")
    for ax, shown in panels:
        ax.plot(*np.nonzero(shown), "|", color=INK, markersize=3)
        ax.set(xlim=(-0.5, len(shown) - 0.5), ylim=(-0.5, shown.shape[1] - 0.5))
        ax.set_title(f"{ax.get_title(loc='left')}: {shown.mean():.3g} per unit and time step", loc="left", fontsize=9)
    return figure


def spectrum(eigenvalues: np.ndarray, times: np.ndarray, unit: str, step: int) -> Figure:
    """The eigenvalues with the unit circle, and the finite time constants in descending order."""
    figure = _figure((9, 4), f"recurrence at step {step}: largest absolute eigenvalue {np.abs(eigenvalues).max():.3g}")
    plane, ranks = figure.subplots(1, 2)
    angle = np.linspace(0, 2 * np.pi, 100)
    plane.plot(np.cos(angle), np.sin(angle), color=LINE, linewidth=1)
    plane.plot(np.real(eigenvalues), np.imag(eigenvalues), ".", color=INK)
    plane.set(aspect="equal", xlabel="real part", ylabel="imaginary part")
    finite = np.sort(times[np.isfinite(times) & (times > 0)])[::-1]
    ranks.plot(np.arange(1, len(finite) + 1), finite, ".", color=INK)
    if len(finite):
        ranks.set_yscale("log")
    ranks.set(xlabel="rank", ylabel=f"time constant ({unit})")
    ranks.set_title(f"{int(np.isinf(times).sum())} of {len(times)} do not decay", fontsize=9, color=INK)
    return figure


def _panels(values: dict[str, Any], warmup: int, title: str) -> tuple[Figure, list[tuple[Axes, np.ndarray]]]:
    """A figure with a panel for each array, and the part of each array to draw."""
    figure, panels = _figure((8, 0.6 + 2.4 * len(values)), title), []
    for (name, value), ax in zip(values.items(), figure.subplots(len(values), 1, squeeze=False)[:, 0], strict=True):
        array, unit = np.asarray(u.get_mantissa(value)), u.get_unit(value)
        more = f", first {UNITS} of {array.shape[1]} units" if array.shape[1] > UNITS else ""
        ax.set_title(name + ("" if unit.is_unitless else f" ({unit})") + more, loc="left", fontsize=9, color=INK)
        ax.set(xlabel="time step", ylabel="unit")
        ax.locator_params(integer=True)
        if warmup:
            ax.axvline(warmup - 0.5, color=LINE, linestyle="--", linewidth=1)
        panels.append((ax, array[:, :UNITS]))
    return figure, panels


def _figure(size: tuple[float, float], title: str) -> Figure:
    from matplotlib.figure import Figure

    # An opaque background makes the figure readable on light and dark pages.
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="tight")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure
