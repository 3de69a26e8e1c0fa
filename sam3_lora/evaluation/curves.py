"""Curves of the evaluation report: precision over recall, and how training went; drawn as inline SVG.

The SVG takes its colours from CSS variables of the page, so that one drawing serves light and dark, and its text
stays text.
"""

from __future__ import annotations

import io
import math
import re
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

SIZE_INCHES = (5.4, 3.5)
SHORT_NAME = 12  # characters; two fit side by side
DRAWN_POINTS = 200  # longer curves are drawn as means of several points
# Placeholders that matplotlib takes for colours, and what the page is given in their place.
INK, GRID, TUNED, BASE = "#010203", "#010204", "#010205", "#010206"
VARIABLES = {INK: "var(--ink)", GRID: "var(--line)", TUNED: "var(--tuned)", BASE: "var(--base)"}


def plot_precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], names: Mapping[str, str]
) -> str:
    """SVG with a line each for "tuned" and "base", which the page calls by these names."""
    figure, axes = _axes("recall: share of the objects that are found", "precision: share that is right")
    for role, (recall, precision) in curves.items():
        colour, line = (BASE, "--") if role == "base" else (TUNED, "-")
        axes.plot(recall, precision, color=colour, linestyle=line, label=f"{role}, mean {precision.mean():.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    _legend(axes, columns=2 if max(map(len, names.values())) <= SHORT_NAME else 1)
    svg = _svg(figure, "pr")
    for role, name in names.items():  # afterwards: matplotlib reads formulas, and measures letters that no font has
        svg = svg.replace(f">{role}, mean", f">{escape(name)}, mean")
    return svg


def plot_loss(points: Sequence[Mapping[str, Any]]) -> str | None:
    """SVG of the training loss over steps; None where no step has one."""
    steps, losses = _thinned(_series(points, "train/loss"))
    if not len(steps):
        return None
    figure, axes = _axes("step", "training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(steps, losses, color=TUNED, marker="o" if len(steps) == 1 else None)
    axes.set_ylim(bottom=min(0.0, float(losses.min())))
    return _svg(figure, "loss")


def plot_metric(points: Sequence[Mapping[str, Any]], metric: str, *, lower_is_better: bool = False) -> str | None:
    """SVG of a validation metric over steps, its best value marked; None where it was never measured."""
    measured = _series(points, f"val/{metric}")
    if not len(measured):
        return None
    figure, axes = _axes("step", metric[:60])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps, values = measured.T
    axes.plot(steps, values, color=TUNED, marker="o", markersize=3)
    at = int(values.argmin() if lower_is_better else values.argmax())
    label = f"best: {values[at]:.3f} at step {steps[at]:.0f}"
    axes.plot(steps[at], values[at], color=TUNED, marker="*", markersize=13, linestyle="none", label=label)
    base = _series(points, f"base/{metric}")
    if len(base):
        axes.axhline(base[0, 1], color=BASE, linestyle="--", label=f"base: {base[0, 1]:.3f}")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _legend(axes)
    return _svg(figure, "metric")


def _series(points: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """(N, 2) steps and finite values."""
    rows = [(point["step"], point[key]) for point in points if isinstance(point.get(key), int | float)]
    return np.array([row for row in rows if math.isfinite(row[1])], dtype=np.float64).reshape(-1, 2)


def _thinned(series: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values, as means of equally many points: with uneven ones the line would seem to change its noise."""
    size = max(1, math.ceil(len(series) / DRAWN_POINTS))
    means = np.array([series[first : first + size].mean(0) for first in range(0, len(series), size)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=11)
    axes.grid(color=GRID, linewidth=0.8)
    # parse_math: a name with two dollar signs is no formula
    axes.set_xlabel(x_label, color=INK, fontsize=11, parse_math=False)
    axes.set_ylabel(y_label, color=INK, fontsize=11, parse_math=False)
    return figure, axes


def _legend(axes: Axes, *, columns: int = 2) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, labelcolor=INK, fontsize=11)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element to stand in a page: without prolog and style, its ids its own."""
    written = io.StringIO()
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.family": ["sans-serif"],
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        }
    ):
        figure.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg xmlns:xlink="http://www.w3.org/1999/xlink" \1>', svg)
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return svg.strip()
