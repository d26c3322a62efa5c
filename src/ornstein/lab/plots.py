"""Pictures of the lab: errors over evaluations with the declared order drawn in, over dimension, over a change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from ..storage.files import atomic
from .dimension import DimensionReport
from .rates import Report, Series
from .studies import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers and in grey (Okabe & Ito), each with its own marker.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P")]


_THEORY = (0, (4.0, 3.0))
_OTHER_THEORY = (0, (1.0, 1.5))


def draw(report: Report, name: str) -> Figure:
    """The figure of one sampler of ``report``: measured errors, and below them lines n^−p, p the declared orders."""
    series = [s for s in report.series if s.sampler == name]
    figure, axes = _empty("evaluations of the denoiser", "error against the exact law")
    for one, (colour, marker) in zip(series, _STYLES * (1 + len(series) // len(_STYLES)), strict=False):
        points = _points(one)
        if points:
            x, y = zip(*points, strict=True)
            label = f"{one.target} {one.measure}: {shown(one)}"
            axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
    orders = sorted({one.declared for one in series})
    for i, order in enumerate(orders):
        _theory(axes, [one for one in series if one.declared == order], order, (_THEORY, _OTHER_THEORY)[i % 2])
    _ticks(axes, {n for one in series for n in one.evaluations})
    axes.set_title(f"{name}: declared order {' and '.join(f'{p:g}' for p in orders)}", loc="left", fontweight="bold")
    _corner(axes, f"{report.path.upper()} path, {report.grid} grid, σ̄ from 80")
    _legend(axes)
    return figure


def _points(one: Series) -> list[tuple[int, float]]:
    """(evaluations, error), where there is a positive number."""
    return [(n, e) for n, e in zip(one.evaluations, one.errors, strict=True) if e is not None and e > 0.0]


def _theory(axes: Axes, series: Sequence[Series], order: float, style: tuple[int, tuple[float, ...]]) -> None:
    """n^−order as a dashed line at half of the least error of these series where they end, so that none hides it."""
    ends = [(one, points[-1]) for one in series if (points := _points(one))]
    if not ends:
        return
    one, (last, error) = min(ends, key=lambda end: end[1][1])
    x = [n for n, _ in _points(one)]
    y = [0.5 * error * (last / n) ** order for n in x]
    axes.plot(x, y, color="#666666", linestyle=style, linewidth=1.2, label=f"theory: error ∝ n^(−{order:g})")


def draw_growth(report: DimensionReport, family: str) -> Figure:
    """Error over dimension of every sampler on one family, with √d drawn in."""
    growths = [one for one in report.growths if one.family == family]
    figure, axes = _empty("dimension d", growths[0].measure + " to the fine solution")
    for one, (colour, marker) in zip(growths, _STYLES * (1 + len(growths) // len(_STYLES)), strict=False):
        means = [sum(column) / len(column) for column in zip(*one.errors, strict=True)]
        label = f"{one.sampler}: d^({one.exponent:.2f} ± {one.half_width:.2f})"
        axes.plot(one.dimensions, means, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
        for row in one.errors:
            axes.plot(one.dimensions, row, color=colour, linestyle="none", marker=".", markersize=3, alpha=0.6)
    low = growths[0]
    anchor = 0.5 * min(e for one in growths for row in one.errors for e in row)
    line = [anchor * math.sqrt(d / low.dimensions[0]) for d in low.dimensions]
    axes.plot(low.dimensions, line, color="#666666", linestyle=_THEORY, linewidth=1.0, label="√d, for comparison")
    _ticks(axes, set(low.dimensions))
    axes.set_title(f"{family} targets, {low.steps} steps", loc="left", fontweight="bold")
    _corner(axes, f"{report.path.upper()} path, {report.grid} grid")
    _legend(axes)
    return figure


def draw_effects(study: Study, name: str) -> Figure:
    """Errors of one sampler with and without the change, over the number of steps."""
    effects = [one for one in study.effects if one.sampler == name]
    wrong = study.study == "score-error"
    figure, axes = _empty("steps", "error against the exact law" if wrong else "distance to the run in float64")
    words = ("exact score", f"score {study.change}") if wrong else ("float32 network", "float32 state")
    for one, (colour, marker) in zip(effects, _STYLES * (1 + len(effects) // len(_STYLES)), strict=False):
        for values, word, style in ((one.exact, words[0], ":"), (one.changed, words[1], "-")):
            points = [(n, e) for n, e in zip(one.counts, values, strict=True) if e]
            if points:
                x, y = zip(*points, strict=True)
                label = f"{one.target} {one.measure}: {word}"
                axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle=style, linewidth=1.6, label=label)
    _ticks(axes, set(study.counts))
    axes.set_title(name, loc="left", fontweight="bold")
    _corner(axes, f"{study.path.upper()} path, {study.grid} grid")
    _legend(axes)
    return figure


def _empty(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x, loc="left")
    axes.set_ylabel(y)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _ticks(axes: Axes, values: set[int]) -> None:
    """Only numbers that were measured, and none closer to its neighbour than a quarter of an octave."""
    from matplotlib.ticker import NullLocator

    kept: list[int] = []
    for value in sorted(values):
        if not kept or value >= 1.2 * kept[-1]:
            kept.append(value)
    axes.set_xticks(kept[:: max(1, math.ceil(len(kept) / 10))])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())


def _corner(axes: Axes, text: str) -> None:
    """Small print below the right end of the axis, where no title reaches."""
    axes.text(1.0, -0.1, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color="#666666")


def _legend(axes: Axes) -> None:
    """Below the axes, where it hides no curve; none where nothing is drawn."""
    if axes.lines:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, ncols=2)


def shown(one: Series) -> str:
    """The measured order in a few characters."""
    if one.fit.exact:
        return "exact"
    if one.fit.order is None or one.fit.half_width is None:
        return "not asymptotic"
    return f"order {one.fit.order:.2f} ± {one.fit.half_width:.2f}"


def write(report: Report, folder: FilePath, names: Sequence[str] | None = None) -> list[FilePath]:
    """One PNG a sampler in ``folder`` (made if missing), each replaced atomically; the paths."""
    chosen = dict.fromkeys(s.sampler for s in report.series) if names is None else names
    return save({name: draw(report, name) for name in chosen}, folder)


def save(figures: Mapping[str, Figure], folder: FilePath) -> list[FilePath]:
    """Figures by name, each to a PNG in ``folder`` (made if missing), replaced atomically; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    out: list[FilePath] = []
    for name, figure in figures.items():
        path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.png"
        with atomic(path) as file:
            figure.savefig(file, format="png", dpi=150)
        out.append(path)
    return out
